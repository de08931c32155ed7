"""What a folder of shards says about itself, beside its tars.

    manifest.jsonl       one line per shard: {"shard", "count", "bytes", "sha256", "index"}
    NAME.index.jsonl     one line per sample: {"key", "offset", "size"}; all of its members are in
                         bytes [offset, offset + size) of the tar
    sizes.json           {"NAME.tar": count}, the form that open_clip reads

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


def index_line(span: SampleSpan) -> bytes:
    """One line of an index file with its line end; ASCII, so that a key that is not UTF-8 survives."""
    line = {"key": span.key, "offset": span.offset, "size": span.size}
    return json.dumps(line, separators=(",", ":")).encode("ascii") + b"\n"


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which 2.tar comes before 10.tar."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def write_manifest(folder: Path, lines: Iterable[ShardLine]) -> None:
    """Write ``sizes.json`` and then, last, the manifest of ``folder``. Raises DataError when they cannot be written."""
    ordered = sorted(lines, key=lambda line: natural(line.shard))
    write_text(folder / SIZES, json.dumps({line.shard: line.count for line in ordered}, indent=1) + "\n")
    write_text(folder / MANIFEST, "".join(json.dumps(asdict(line)) + "\n" for line in ordered))


def read_manifest(folder: Path) -> list[ShardLine]:
    """The lines of a folder's manifest. Raises DataError when it is missing or not as described above."""
    path = folder / MANIFEST
    lines = []
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{folder} has no {MANIFEST}; write one with `unisphere shards index {folder}`") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            lines.append(ShardLine(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}, line {number}: {error}; write it again with `unisphere shards index`") from error
    return lines


def folders_below(root: Path) -> list[Path]:
    """Every folder at or below ``root`` that has a manifest, sorted. Raises DataError when there is none."""
    folders = sorted(path.parent for path in root.rglob(MANIFEST))
    if not folders:
        raise DataError(f"no {MANIFEST} in or below {root}; adopt existing tars with `unisphere shards index {root}`")
    return folders


def listing(root: Path) -> str:
    """A table of the shards at or below ``root``: name, samples, bytes. Raises DataError as ``read_manifest`` does."""
    rows = []
    for folder in folders_below(root):
        prefix = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
        rows += [(prefix + line.shard, line.count, line.bytes) for line in read_manifest(folder)]
    rows.append((f"{len(rows)} shards", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    width = max(len(name) for name, _, _ in rows)
    head = f"{'shard':<{width}}  {'samples':>12}  {'bytes':>18}"
    return "\n".join([head] + [f"{name:<{width}}  {count:>12,}  {size:>18,}" for name, count, size in rows])
