"""Which shards a data path means, how many samples each holds, and where those lie. Layer 1; no torch.

    resolve("shards/cc3m")                              # folder: what its manifest.jsonl lists, else its *.tar
    resolve("shards/cc3m-{000000..000331}.tar")         # braces: ranges (zeros kept) and {a,b} lists
    resolve("shards/a.tar::shards/b-{0..3}.tar")        # several of them

A manifest has one JSON line per shard, ``{"shard", "count", "bytes", "sha256", "index"}``, and an index one JSON line
per sample, ``{"key", "offset", "size"}``: the bytes of the tar that hold all members of that sample. With both,
opening a set costs one ``stat`` per file, a shard that was cut or replaced is noticed before training starts, and an
index is read when a sample of its shard is first asked for. Without them the tars are read once, header by header.

Everything is read through a ``ByteSource``; ``LocalFiles`` is the one for a mounted file system.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
from braceexpand import braceexpand

from pipeline.data import tar
from pipeline.errors import DataError, TruncatedTar

log = logging.getLogger(__name__)

MANIFEST = "manifest.jsonl"
MAX_OPEN_FILES = 64
ADVICE = "run `unisphere shards index` to write manifest and index again"


class ByteSource(Protocol):
    """Where shards lie. All methods raise OSError when the place cannot be read."""

    def size(self, path: str) -> int:
        """Bytes of the file."""

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Bytes ``[offset, offset + size)``; fewer only when the file ends before."""

    def stream(self, path: str) -> BinaryIO:
        """The whole file, to be read forwards once."""


class LocalFiles:
    """Files of a mounted file system, at most ``MAX_OPEN_FILES`` of them open.

    Reads name their position, so that loader processes forked from this one may share its descriptors; a copy sent to
    another process starts with none. One instance serves one thread.
    """

    def __init__(self) -> None:
        self._descriptors: OrderedDict[str, int] = OrderedDict()

    def size(self, path: str) -> int:
        """Bytes of the file."""
        return os.stat(path).st_size

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Bytes ``[offset, offset + size)``; fewer only when the file ends before."""
        descriptor = self._open(path)
        data = os.pread(descriptor, size, offset)
        while len(data) < size:
            more = os.pread(descriptor, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def stream(self, path: str) -> BinaryIO:
        """The whole file, to be read forwards once."""
        return open(path, "rb")

    def _open(self, path: str) -> int:
        descriptor = self._descriptors.pop(path, None)
        if descriptor is None:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._descriptors[path] = descriptor
        if len(self._descriptors) > MAX_OPEN_FILES:
            os.close(self._descriptors.popitem(last=False)[1])
        return descriptor

    def close(self) -> None:
        """Close every descriptor of this process; a later read opens them again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[LocalFiles], tuple[()]]:
        return LocalFiles, ()


@dataclass(frozen=True)
class ShardIndex:
    """Where the samples of one shard lie: ``keys[i]`` at bytes ``[offset[i], offset[i] + size[i])``."""

    keys: tuple[str, ...]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shard:
    """One tar: its path, samples, bytes, and its index, either read already or the path of the file that holds it."""

    path: str
    count: int
    num_bytes: int
    index: ShardIndex | str


def resolve(spec: str, source: ByteSource | None = None) -> tuple[Shard, ...]:
    """The shards that ``spec`` means, in order. Forms: see the module's docstring.

    Raises:
        DataError: a folder or shard is missing, nothing matches, a manifest or index is broken, or a shard does not
            have the size that its manifest says.
        TruncatedTar: a shard without manifest ends early.
    """
    source = source or LocalFiles()
    shards: list[Shard] = []
    for is_folder, paths in itertools.groupby(expand(spec), os.path.isdir):
        if is_folder:
            shards += [shard for path in paths for shard in _folder(Path(path), source)]
        else:
            shards += describe(list(paths), source)
    if sum(shard.count for shard in shards) == 0:
        raise DataError(f"{spec}: {len(shards)} shards with 0 samples; build them with `unisphere shards build`")
    return tuple(shards)


def expand(spec: str) -> list[str]:
    """Paths that a spec with braces and ``::`` stands for: ``a-{08..10}.tar`` is a-08.tar, a-09.tar, a-10.tar.

    Raises:
        DataError: a brace that is not closed, or nothing named at all.
    """
    try:
        paths = [path for part in spec.split("::") if part for path in braceexpand(part)]
    except ValueError as error:
        raise DataError(f"data path {spec!r}: {error}; ranges look like {{000..011}}, lists like {{a,b}}") from error
    if not paths:
        raise DataError(f"data path {spec!r} names no shards; give a folder, a .tar, or a pattern like x-{{00..11}}.tar")
    return paths


def describe(paths: Sequence[str], source: ByteSource) -> list[Shard]:
    """The shards at these paths: from the manifest beside them where it lists them, else by reading their headers."""
    manifests = {folder: _manifest(folder, source) for folder in dict.fromkeys(Path(path).parent for path in paths)}
    return _described([(path, manifests[Path(path).parent].get(Path(path).name)) for path in paths], source)


def _described(paths_and_rows: Sequence[tuple[str, dict[str, Any] | None]], source: ByteSource) -> list[Shard]:
    shards = [_scanned(path, source) if row is None else _listed(path, row, source) for path, row in paths_and_rows]
    num_scanned = sum(not isinstance(shard.index, str) for shard in shards)
    if num_scanned:
        log.info("read %d shards without index from end to end; `unisphere shards index` makes this instant", num_scanned)
    return shards


def _folder(folder: Path, source: ByteSource) -> list[Shard]:
    manifest = _manifest(folder, source)
    present = sorted((path.name for path in folder.glob("*.tar")), key=_natural)
    unlisted = sorted(set(present) - set(manifest))
    if manifest and unlisted:
        log.warning("%s: %d tars, like %s, are not in %s and not read", folder, len(unlisted), unlisted[0], MANIFEST)
    if not manifest and not present:
        entries = sorted(path.name for path in folder.iterdir())
        raise DataError(
            f"no shards in {folder}: neither {MANIFEST} nor *.tar; it holds {len(entries)} entries"
            + (f" ({', '.join(entries[:5])}{', ...' if len(entries) > 5 else ''})" if entries else "")
            + "; build shards with `unisphere shards build`, or correct the data path"
        )
    return _described([(str(folder / name), manifest.get(name)) for name in manifest or present], source)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which 2.tar comes before 10.tar."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _manifest(folder: Path, source: ByteSource) -> dict[str, dict[str, Any]]:
    """Rows of the folder's manifest by shard name, in order; empty when it has none."""
    path = folder / MANIFEST
    rows: dict[str, dict[str, Any]] = {}
    try:
        source.size(str(path))
    except FileNotFoundError:
        return rows
    for row in _json_lines(str(path), {"shard": str, "count": int, "bytes": int}, source):
        if row["shard"] in rows:
            raise DataError(f"{path} lists shard {row['shard']!r} twice; {ADVICE}")
        rows[row["shard"]] = row
    return rows


def _json_lines(path: str, fields: dict[str, type], source: ByteSource) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file. Raises DataError unless each has these fields with these types."""
    try:
        with source.stream(path) as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{path}, line {number}: not JSON ({error}); {ADVICE}") from error
                for name, kind in fields.items():
                    if not isinstance(row, dict) or type(row.get(name)) is not kind:
                        raise DataError(f"{path}, line {number}: {name!r} is missing or no {kind.__name__}; {ADVICE}")
                yield row
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; {ADVICE}") from error


def _size(path: str, source: ByteSource) -> int:
    try:
        return source.size(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; give an existing folder, or shards (*.tar)") from error


def _listed(path: str, row: dict[str, Any], source: ByteSource) -> Shard:
    num_bytes = _size(path, source)
    if num_bytes != row["bytes"]:
        kind, verb = (TruncatedTar, "cut short") if num_bytes < row["bytes"] else (DataError, "changed")
        raise kind(
            f"shard {path} has {num_bytes:,} bytes, its manifest says {row['bytes']:,}: it was {verb} after it was "
            f"built; copy it again, or {ADVICE}"
        )
    if not isinstance(row.get("index"), str):
        return _scanned(path, source, row["count"])
    index = str(Path(path).parent / row["index"])
    try:
        source.size(index)
    except OSError as error:
        raise DataError(f"index {index} of shard {path} cannot be read: {error.strerror}; {ADVICE}") from error
    return Shard(path, row["count"], num_bytes, index)


def _scanned(path: str, source: ByteSource, count: int | None = None) -> Shard:
    num_bytes = _size(path, source)
    with source.stream(path) as stream:
        spans = list(tar.iter_samples(stream, path))
    if count is not None and count != len(spans):
        raise DataError(f"shard {path} holds {len(spans)} samples, its manifest says {count}; {ADVICE}")
    offset = np.array([span.offset for span in spans], np.int64)
    size = np.array([span.size for span in spans], np.int64)
    return Shard(path, len(spans), num_bytes, ShardIndex(tuple(span.key for span in spans), offset, size))


def load_index(shard: Shard, source: ByteSource) -> ShardIndex:
    """The shard's index, read from its file where that has not happened yet.

    Raises:
        DataError: the index is unreadable, does not have ``shard.count`` lines, or points outside the shard.
    """
    if isinstance(shard.index, ShardIndex):
        return shard.index
    rows = list(_json_lines(shard.index, {"key": str, "offset": int, "size": int}, source))
    offset = np.array([row["offset"] for row in rows], np.int64)
    size = np.array([row["size"] for row in rows], np.int64)
    if len(rows) != shard.count:
        raise DataError(f"index {shard.index} has {len(rows)} lines, the manifest says {shard.count}; {ADVICE}")
    if len(rows) and (offset.min() < 0 or size.min() <= 0 or int((offset + size).max()) > shard.num_bytes):
        raise DataError(f"index {shard.index} points outside {shard.path} ({shard.num_bytes:,} bytes); {ADVICE}")
    return ShardIndex(tuple(row["key"] for row in rows), offset, size)
