"""Where rows come from: a table, a folder of images, existing shards, or a recipe.

    open_source("pairs.jsonl")               one JSON object per line
    open_source("s3://bucket/pairs.parquet") the same columns; .csv and .tsv with a header line
    open_source("photos/")                   every image below, its captions in a .txt beside it, one per line; more in a .json
    open_source("downloads/")                a folder of tars: existing WebDataset shards, or what img2dataset left; with
                                             the splits and evaluation sets of one that was built here (``layout``)
    open_source("set-{000..011}.tar")        the same, named one by one
    open_source("recipe:emoji")              code that knows one dataset, see ``recipes``

Every path may be a URL that fsspec knows. The same rows, whichever kind they came from, are the same ``Row`` values, and
so the same shards.

Nothing is dropped here: a line that cannot be parsed, an image without captions and captions without an image are all
rows, with a ``problem`` or a missing part, so that the build can count them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from data_prep.inputs import exists, filesystem, find_tars, is_remote, open_stream
from data_prep.layout import eval_sets_of, splits_of
from data_prep.rows import MAX_CAPTION_BYTES, BadRow, Row, Source, from_members
from data_prep.tables import MAX_LINE_BYTES, TABLES, column_names, suffix_of, table_rows
from data_prep.tars import companions_of, tar_rows
from pipeline.data.samples import IMAGE_EXTENSIONS
from pipeline.errors import DataError

SIDECAR_BYTES = {"txt": MAX_CAPTION_BYTES, "json": MAX_LINE_BYTES, "cls": 100}
KNOWN = f"a table ({', '.join(TABLES)}), a folder of images, .tar files or a folder of them, and recipe:NAME"


def open_source(spec: str) -> Source:
    """The source that ``spec`` means; forms as above.

    Raises DataError when it does not exist, is of no known kind, or is a table without image and caption columns.
    """
    if spec.startswith("recipe:"):
        from data_prep.recipes import open_recipe

        return open_recipe(spec.removeprefix("recipe:"))
    path = spec.rstrip("/") if is_remote(spec) else os.path.abspath(spec)
    suffix, stem = suffix_of(path), _shard_name(Path(path.partition("?")[0]).stem)
    if suffix == ".tar" and (is_remote(path) or not os.path.isdir(path)):
        return tar_source(re.sub(r"_*[{\d].*$", "", stem) or stem, find_tars([path]))
    if suffix in TABLES:
        if not is_remote(path) and not os.path.exists(path):
            raise DataError(f"source {spec} does not exist; give {KNOWN}")
        column_names(path)
        return Source(stem, partial(table_rows, path), root="" if is_remote(path) else str(Path(path).parent))
    if not _is_folder(path):
        reason = f"ends in {suffix!r}" if exists(path) else "does not exist"
        raise DataError(f"source {spec} {reason}; known are {KNOWN}")
    name = _shard_name(path.rpartition("/")[2])
    if _holds_tars(path):
        tars = find_tars([path])
        splits = splits_of(path, tars)
        source = tar_source(name, tars, splits)
        return replace(source, eval_sets=eval_sets_of(path, sorted(set(splits.values()))))
    return Source(name, partial(_folder_rows, path), root="" if is_remote(path) else path)


def tar_source(name: str, tars: list[str], splits: Mapping[str, str] | None = None) -> Source:
    """The samples of existing tars; what img2dataset wrote beside them is kept and its failures are rows too.

    ``splits`` (tar -> split) are those of samples whose json member names none.
    """
    local = [tar for tar in tars if not is_remote(tar)]
    return Source(name, partial(tar_rows, tars, splits or {}), root=local[0] if local else "", companions=companions_of(tars))


def _shard_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", text) or "shard"


def _is_folder(path: str) -> bool:
    if not is_remote(path):
        return os.path.isdir(path)
    system, inner = filesystem(path)
    try:
        return bool(system.isdir(inner))
    except Exception as error:  # each remote file system has exceptions of its own
        raise DataError(f"source {path} cannot be read: {type(error).__name__}: {error}") from error


def _holds_tars(folder: str) -> bool:
    """Whether there is a tar directly in the folder or in one directly below it (a split)."""
    if is_remote(folder):
        system, inner = filesystem(folder)
        return any(name.endswith(".tar") for name in system.find(inner, maxdepth=2))
    root = Path(folder)
    return any(next(root.glob(pattern), None) for pattern in ("*.tar", "*/*.tar"))


def _folder_rows(root: str) -> Iterator[Row]:
    """Every image and every lonely .txt below ``root`` in sorted order; an image and the files of its stem are one row.

    Memory holds the names of one folder at a time.
    """
    number = 0
    for folder, links, names in _walk(root):
        for link in links:
            detail = f"{folder}/{link} is a link to a folder, which could lead in circles; name its target"
            yield Row(number, image=f"{folder}/{link}", problem=BadRow("link-not-followed", detail))
            number += 1
        present = set(names)
        images = sorted(name for name in names if name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS)
        stems = {name.rpartition(".")[0] for name in images}
        for name in images:
            stem = name.rpartition(".")[0]
            yield _folder_row(number, folder, name, stem, [e for e in SIDECAR_BYTES if f"{stem}.{e}" in present], root)
            number += 1
        for stem in sorted({name[: -len(".txt")] for name in names if name.endswith(".txt")} - stems):
            detail = f"{folder}/{stem}.txt has no image beside it (.{', .'.join(IMAGE_EXTENSIONS)})"
            yield Row(number, image=f"{folder}/{stem}", problem=BadRow("image-missing", detail))
            number += 1
        for name in sorted(name for name in names if name.endswith(".tar")):
            detail = f"{folder}/{name} is a tar among images; build from it as a source of its own"
            yield Row(number, image=f"{folder}/{name}", problem=BadRow("row-invalid", detail))
            number += 1


def _walk(root: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """(folder, names of links to folders, names of files) from ``root`` down, in sorted order."""
    if is_remote(root):
        system, inner = filesystem(root)
        scheme = root.partition("://")[0]
        for folder, subfolders, files in system.walk(inner):
            if isinstance(subfolders, list):
                subfolders.sort()
            yield f"{scheme}://{folder}".replace(":///", "://") if "://" not in folder else folder, [], sorted(files)
        return
    for folder, subfolders, names in os.walk(root, onerror=_refuse):
        subfolders.sort()
        yield folder, [name for name in subfolders if os.path.islink(os.path.join(folder, name))], names


def _refuse(error: OSError) -> None:
    """A folder that cannot be listed may hide any number of rows."""
    raise DataError(f"{error.filename} cannot be listed: {error.strerror}; correct its permissions") from error


def _folder_row(number: int, folder: str, name: str, stem: str, sidecars: list[str], root: str) -> Row:
    image, key = f"{folder}/{name}", f"{folder}/{stem}"[len(root) :].lstrip("/")
    members = {}
    for extension in sidecars:
        path, limit = f"{folder}/{stem}.{extension}", SIDECAR_BYTES[extension]
        try:
            with open_stream(path) as stream:
                members[extension] = stream.read(limit + 1)
        except (OSError, DataError) as error:
            return Row(number, image, key=key, problem=BadRow("caption-missing", f"{path} cannot be read: {error}"))
        if len(members[extension]) > limit:
            cause = "caption-too-long" if extension == "txt" else "row-invalid"
            return Row(number, image, key=key, problem=BadRow(cause, f"{path} has more than {limit:,} bytes"))
    return from_members(number, image, key, members, lines=True)
