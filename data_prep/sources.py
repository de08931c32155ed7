"""Where rows come from: a table, a folder of images, or a recipe.

    open_source("pairs.jsonl")      one JSON object per line
    open_source("pairs.csv")        with a header line; .tsv: tabs
    open_source("photos/")          every image below, its captions in a .txt beside it, one per line
    open_source("recipe:emoji")     code that knows one dataset, see ``recipes``

Nothing is dropped here: a line that cannot be parsed, an image without captions and captions without an image are all
rows, with a ``problem`` or a missing part, so that the build can count them.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from data_prep.rows import CAPTION_FIELDS, IMAGE_FIELDS, BadRow, Row, Source, from_fields
from pipeline.data.samples import IMAGE_EXTENSIONS
from pipeline.errors import DataError

RECIPES = {"emoji": "data_prep.recipes.emoji"}
SEPARATORS = {".csv": ",", ".tsv": "\t"}
MAX_CSV_FIELD_BYTES = 1 << 24  # far above a usable caption, so that a long one is counted as such and not as a csv error


def open_source(spec: str) -> Source:
    """The source that ``spec`` means: ``recipe:NAME``, a folder, or a .jsonl, .csv or .tsv file.

    Raises DataError when it does not exist, is of no known kind, or is a table without image and caption columns.
    """
    if spec.startswith("recipe:"):
        name = spec.removeprefix("recipe:")
        if name not in RECIPES:
            raise DataError(f"no recipe named {name!r}; there are: {', '.join(sorted(RECIPES))}")
        source = importlib.import_module(RECIPES[name]).source()
        assert isinstance(source, Source), f"recipe {name} returned {type(source).__name__}"
        return source
    path = Path(spec).absolute()
    if path.is_dir():
        return Source(_shard_name(path.name), partial(_folder_rows, path))
    if not path.exists():
        raise DataError(f"source {spec} does not exist; give a .jsonl, .csv or .tsv file, a folder of images, or recipe:NAME")
    if path.suffix == ".jsonl":
        return Source(_shard_name(path.stem), partial(_json_rows, path))
    if path.suffix in SEPARATORS:
        _check_header(path)
        return Source(_shard_name(path.stem), partial(_table_rows, path))
    raise DataError(f"source {spec} ends in {path.suffix!r}; known are .jsonl, .csv, .tsv, a folder of images, and recipe:NAME")


def _shard_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", text) or "shard"


def _json_rows(path: Path) -> Iterator[Row]:
    """One row per line that is not blank. ``surrogateescape`` keeps bytes that are not UTF-8 for a later check."""
    number = 0
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
                if not isinstance(fields, dict):
                    raise ValueError(f"expected an object, got {type(fields).__name__}")
                yield from_fields(number, fields, path.parent)
            except (ValueError, RecursionError) as error:
                yield Row(number, problem=BadRow("row-invalid", f"not a JSON object: {error}; {line[:60]!r}"))
            number += 1


def _check_header(path: Path) -> None:
    csv.field_size_limit(MAX_CSV_FIELD_BYTES)
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        header = next(csv.reader(lines, delimiter=SEPARATORS[path.suffix]), [])
    for names in (IMAGE_FIELDS, CAPTION_FIELDS):
        if not set(names) & set(header):
            raise DataError(
                f"{path}: the header line names no {names[0]} column; it has {header[:20]}, one of {', '.join(names)} is needed"
            )


def _table_rows(path: Path) -> Iterator[Row]:
    """One row per record of a csv or tsv file. A record with too many or too few fields is a row with a problem."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(lines, delimiter=SEPARATORS[path.suffix])
        header = next(reader)
        number = 0
        while True:
            try:
                values = next(reader, None)
                if values is None:
                    return
                if not values:  # the csv module's word for a blank line
                    continue
                if len(values) != len(header):
                    raise BadRow("row-invalid", f"{len(values)} fields at line {reader.line_num}, the header has {len(header)}")
                row = from_fields(number, dict(zip(header, values, strict=True)), path.parent)
            except csv.Error as error:
                row = Row(number, problem=BadRow("row-invalid", f"line {reader.line_num}: {error}"))
            except BadRow as problem:
                row = Row(number, problem=problem)
            yield row
            number += 1


def _folder_rows(root: Path) -> Iterator[Row]:
    """Every image and every .txt below ``root`` in sorted order; an image and the .txt of the same stem are one row."""
    number = 0
    for folder, subfolders, names in os.walk(root, onerror=_refuse):
        subfolders.sort()
        for link in [name for name in subfolders if os.path.islink(os.path.join(folder, name))]:
            detail = f"{os.path.join(folder, link)} is a link to a folder, which could lead in circles; name its target"
            yield Row(number, image=os.path.join(folder, link), problem=BadRow("link-not-followed", detail))
            number += 1
        images = sorted(name for name in names if name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS)
        texts = {name[: -len(".txt")] for name in names if name.endswith(".txt")}
        here = Path(folder)
        for name in images:
            stem = name.rpartition(".")[0]
            yield _folder_row(number, here / name, here / f"{stem}.txt" if stem in texts else None, here / stem, root)
            number += 1
        for stem in sorted(texts - {name.rpartition(".")[0] for name in images}):
            detail = f"{here / stem}.txt has no image beside it (.{', .'.join(IMAGE_EXTENSIONS)})"
            yield Row(number, image=str(here / stem), problem=BadRow("image-missing", detail))
            number += 1


def _refuse(error: OSError) -> None:
    """A folder that cannot be listed may hide any number of rows."""
    raise DataError(f"{error.filename} cannot be listed: {error.strerror}; correct its permissions") from error


def _folder_row(number: int, image: Path, text: Path | None, stem: Path, root: Path) -> Row:
    key = stem.relative_to(root).as_posix()
    if text is None:
        return Row(number, str(image), key=key)
    try:
        captions = text.read_bytes().decode("utf-8-sig", "surrogateescape").splitlines()
    except OSError as error:
        return Row(number, str(image), key=key, problem=BadRow("caption-missing", f"{text} cannot be read: {error}"))
    return Row(number, str(image), tuple(captions), key)
