"""Adopt tars of any origin: find their samples, and write index, manifest and sizes beside them.

    adopt([Path("/mnt/foreign/shards")])           # every .tar in or below; nothing in the tars is changed
    adopt([Path("a/x-000.tar")], skip_bad=True)    # this one; the other lines of a/manifest.jsonl stay

Each tar is read once, forwards, in bounded memory; checksum and sample positions come from the same pass. A tar that
is cut, damaged, or holds no sample with an image and a text is bad. All tars are looked at before anything is written,
so that one run reports every bad one; with bad ones nothing is written unless ``skip_bad``.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.files import HashingReader, atomic
from data_prep.manifest import MANIFEST, ShardLine, index_line, index_name, natural, read_manifest, write_manifest
from pipeline.data.samples import IMAGE_EXTENSIONS
from pipeline.data.tar import SampleSpan, iter_samples
from pipeline.errors import DataError

TEXT_EXTENSIONS = ("txt", "json", "cls")  # json may hold the captions; a test set may have labels only


@dataclass
class Adopted:
    """What ``adopt`` found."""

    num_shards: int = 0
    num_samples: int = 0
    num_incomplete: int = 0  # samples without an image or without a text; indexed, and counted again when training reads them
    bad: list[str] = field(default_factory=list)  # one message per bad tar
    written: bool = False


def adopt(paths: Sequence[Path], *, skip_bad: bool = False) -> Adopted:
    """Index the tars among ``paths`` and below its folders; write their manifests, one per folder.

    Raises DataError when a path does not exist, there is no tar, or a file cannot be written.
    """
    from tqdm import tqdm

    folders: dict[Path, dict[str, ShardLine]] = {}
    result = Adopted()
    for path in tqdm(find_tars(paths), desc="tars", unit="tar", file=sys.stderr):
        try:
            line, num_incomplete = _scan_to_staged_index(path)
        except DataError as error:
            result.bad.append(str(error))
            continue
        folders.setdefault(path.parent, {})[line.shard] = line
        result.num_shards += 1
        result.num_samples += line.count
        result.num_incomplete += num_incomplete
    result.written = bool(folders) and (skip_bad or not result.bad)
    whole = {path.absolute() for path in paths if path.is_dir()}
    for folder, lines in folders.items():
        for line in lines.values():
            staged = _staged_index(folder / line.shard)
            if result.written:
                staged.replace(folder / line.index)
            else:
                staged.unlink()
        if result.written:
            is_whole = any(folder.is_relative_to(root) for root in whole)
            write_manifest(folder, (({} if is_whole else _other_lines(folder)) | lines).values())
    return result


def find_tars(paths: Sequence[Path]) -> list[Path]:
    """The tars that ``paths`` name, folders searched through. Raises DataError when there is none."""
    tars: dict[Path, None] = {}
    for path in (path.absolute() for path in paths):
        if not path.exists():
            raise DataError(f"{path} does not exist; give .tar files or folders that hold them")
        found = path.rglob("*.tar") if path.is_dir() else [path]
        visible = (tar for tar in found if not any(part.startswith(".") for part in tar.relative_to(path).parts))
        tars.update(dict.fromkeys(sorted(visible, key=lambda tar: natural(str(tar)))))
    if not tars:
        raise DataError(f"no .tar in {', '.join(map(str, paths))}; build shards with `unisphere shards build`")
    return list(tars)


def _staged_index(shard: Path) -> Path:
    return shard.with_name(f".{index_name(shard.name)}.new")


def _scan_to_staged_index(path: Path) -> tuple[ShardLine, int]:
    """The manifest line of one tar, its index in ``_staged_index``; and how many samples lack an image or a text.

    Raises DataError naming the tar when it is damaged or holds no complete sample.
    """
    count = num_complete = 0
    extensions: Counter[str] = Counter()
    try:
        with open(path, "rb") as raw, atomic(_staged_index(path)) as index:
            reader = HashingReader(raw)
            for span in iter_samples(reader, str(path)):
                index.write(index_line(span))
                extensions.update(span.extensions)
                count += 1
                num_complete += _is_complete(span)
            if not num_complete:
                raise DataError(_no_sample(path, reader.num_bytes, extensions))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except DataError:
        _staged_index(path).unlink(missing_ok=True)
        raise
    return ShardLine(path.name, count, reader.num_bytes, reader.hexdigest(), index_name(path.name)), count - num_complete


def _is_complete(span: SampleSpan) -> bool:
    found = set(span.extensions)
    return bool(found & set(IMAGE_EXTENSIONS)) and bool(found & set(TEXT_EXTENSIONS))


def _no_sample(path: Path, num_bytes: int, extensions: Counter[str]) -> str:
    found = ", ".join(f".{name} ({number})" for name, number in extensions.most_common(8)) or "no file with an extension"
    return (
        f"{path}: no sample has both an image and a text in its {num_bytes:,} bytes; members found: {found}; "
        f"expected under one key, next to each other: an image (.{', .'.join(IMAGE_EXTENSIONS)}) "
        f"and a text (.{', .'.join(TEXT_EXTENSIONS)})"
    )


def _other_lines(folder: Path) -> dict[str, ShardLine]:
    """The lines of an existing manifest whose shards are still there."""
    if not (folder / MANIFEST).exists():
        return {}
    return {line.shard: line for line in read_manifest(folder) if (folder / line.shard).exists()}
