"""What a folder of shards says about itself, beside its tars.

    manifest.jsonl       one line per shard: {"shard", "count", "bytes", "sha256", "index"}
    NAME.index.jsonl     one line per sample: {"key", "offset", "size", "width", "height"}; all of its members
                         are in bytes [offset, offset + size) of the tar; no sides where they cannot be told
    sizes.json           {"NAME.tar": count}, the form that open_clip reads
    open_lm.jsonl        {"shard": "NAME", "num_sequences": count}, the form that open_lm reads

The manifest is written last: a folder that has one is complete.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.files import write_text
from pipeline.data.tar import SampleSpan
from pipeline.errors import DataError

MANIFEST = "manifest.jsonl"
SIZES = "sizes.json"
OPEN_LM = "open_lm.jsonl"


@dataclass(frozen=True)
class ShardLine:
    """One line of the manifest."""

    shard: str  # file name in the manifest's folder
    count: int  # samples
    bytes: int
    sha256: str  # hex, of the whole tar
    index: str  # file name of the index


def index_name(shard: str) -> str:
    """The index file's name for a shard's.

    >>> index_name("cc3m-000000.tar")
    'cc3m-000000.index.jsonl'
    """
    return shard.removesuffix(".tar") + ".index.jsonl"


def index_line(span: SampleSpan, size_px: tuple[int, int] | None = None) -> bytes:
    """One line of an index file with its line end; ASCII, so that a key that is not UTF-8 survives.

    ``size_px`` is the picture's stored (width, height); None where ``data_prep.dimensions`` cannot tell it.
    """
    line: dict[str, str | int] = {"key": span.key, "offset": span.offset, "size": span.size}
    if size_px is not None:
        line["width"], line["height"] = size_px
    return json.dumps(line, separators=(",", ":")).encode("ascii") + b"\n"


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which 2.tar comes before 10.tar."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def manifest_texts(lines: Iterable[ShardLine]) -> tuple[str, str]:
    """(``sizes.json``, ``manifest.jsonl``) of these lines, in natural order of the shards' names."""
    ordered = sorted(lines, key=lambda line: natural(line.shard))
    sizes = json.dumps({line.shard: line.count for line in ordered}, indent=1) + "\n"
    return sizes, "".join(json.dumps(asdict(line)) + "\n" for line in ordered)


def open_lm_text(lines: Iterable[ShardLine]) -> str:
    """``open_lm.jsonl`` of these lines: names without .tar, which open_lm puts into one brace pattern."""
    ordered = sorted(lines, key=lambda line: natural(line.shard))
    rows = ({"shard": line.shard.removesuffix(".tar"), "num_sequences": line.count} for line in ordered)
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_manifest(folder: Path, lines: Iterable[ShardLine]) -> None:
    """Write ``sizes.json``, ``open_lm.jsonl`` and then, last, the manifest of ``folder``.

    Raises DataError when they cannot be written.
    """
    lines = list(lines)
    sizes, manifest = manifest_texts(lines)
    write_text(folder / SIZES, sizes)
    write_text(folder / OPEN_LM, open_lm_text(lines))
    write_text(folder / MANIFEST, manifest)


def read_manifest(folder: Path) -> list[ShardLine]:
    """The lines of a folder's manifest. Raises DataError when it is missing or not as described above."""
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{folder} has no {MANIFEST}; write one with `unisphere shards index {folder}`") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return parse_manifest(content, str(path))


def parse_manifest(content: bytes, where: str) -> list[ShardLine]:
    """The lines of a manifest's bytes. Raises DataError, naming ``where`` and the line, unless all are as above."""
    lines = []
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} cannot be read: {error}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            lines.append(ShardLine(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise DataError(f"{where}, line {number}: {error}; write it again with `unisphere shards index`") from error
    return lines


def folders_below(root: Path) -> list[Path]:
    """Every folder at or below ``root`` that has a manifest, sorted. Raises DataError when there is none."""
    folders = sorted(path.parent for path in root.rglob(MANIFEST))
    if not folders:
        raise DataError(f"no {MANIFEST} in or below {root}; adopt existing tars with `unisphere shards index {root}`")
    return folders
