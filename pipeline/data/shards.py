"""Which shards a data path means, how many samples each holds, and where those lie. Layer 1; no torch.

    resolve("shards/cc3m")                              # folder: what its manifest.jsonl lists, else its *.tar
    resolve("shards/cc3m-{000000..000331}.tar")         # braces: ranges (zeros kept) and {a,b} lists
    resolve("shards/a.tar::s3://bucket/b-{0..3}.tar")   # several of them, local or remote

A manifest has one JSON line per shard, ``{"shard", "count", "bytes", "sha256", "index"}``, and an index one JSON line
per sample, ``{"key", "offset", "size"}``: the bytes of the tar that hold all members of that sample. With both,
opening a set costs one ``stat`` per local file and nothing per remote one; an index is read, and its shard held against the
manifest (``check``), when a sample of the shard is first asked for. So a shard that was cut or replaced is always noticed.
Without them the tars are read once, header by header.

Everything is read through a ``files.ByteSource``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from braceexpand import braceexpand

from pipeline.data import tar
from pipeline.data.files import ByteSource as ByteSource
from pipeline.data.files import LocalFiles as LocalFiles
from pipeline.data.files import is_url
from pipeline.errors import DataError, TruncatedTar

log = logging.getLogger(__name__)

MANIFEST = "manifest.jsonl"
ADVICE = "run `unisphere shards index` to write manifest and index again"
CHUNK_BYTES = 8 << 20


class Keys(Sequence[str]):
    """The keys of a shard in one piece of memory; as a tuple of texts they would take four times as much."""

    def __init__(self, keys: Iterable[str]) -> None:
        encoded = [key.encode("utf-8", "surrogatepass") for key in keys]
        self._joined = b"".join(encoded)
        self._bounds = np.cumsum([0, *map(len, encoded)], dtype=np.int64 if len(self._joined) >= 2**31 else np.int32)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, i: int) -> str: ...

    @overload
    def __getitem__(self, i: slice) -> list[str]: ...

    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[place] for place in range(*i.indices(len(self)))]
        return self.raw(range(len(self))[i]).decode("utf-8", "surrogatepass")

    def raw(self, i: int) -> bytes:
        """Key ``i`` as its bytes in the tar, but for a few that are no UTF-8; for those who cannot wait for a text."""
        return self._joined[self._bounds.item(i) : self._bounds.item(i + 1)]


@dataclass(frozen=True)
class ShardIndex:
    """Where the samples of one shard lie: ``keys[i]`` at bytes ``[offset[i], offset[i] + size[i])``."""

    keys: Keys
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shard:
    """One tar: its path, samples, bytes, and its index, either read already or the path of the file that holds it."""

    path: str
    count: int
    num_bytes: int
    index: ShardIndex | str
    sha256: str = ""
    """Of the whole tar, from the manifest; empty where that is not known."""


def resolve(spec: str, source: ByteSource | None = None) -> tuple[Shard, ...]:
    """The shards that ``spec`` means, in order. Forms: see the module's docstring.

    Raises:
        DataError: a folder or shard is missing, nothing matches, a manifest or index is broken, or a shard does not
            have the size that its manifest says.
        TruncatedTar: a shard without manifest ends early.
    """
    source = source or LocalFiles()
    shards: list[Shard] = []
    for is_folder, paths in itertools.groupby(expand(spec), _is_folder):
        if is_folder:
            shards += [shard for path in paths for shard in _folder(path, source)]
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


def _is_folder(path: str) -> bool:
    return not path.endswith(".tar") if is_url(path) else os.path.isdir(path)


def describe(paths: Sequence[str], source: ByteSource) -> list[Shard]:
    """The shards at these paths: from the manifest beside them where it lists them, else by reading their headers."""
    manifests = {folder: read_manifest(folder, source) for folder in dict.fromkeys(map(os.path.dirname, paths))}
    rows = [(path, manifests[os.path.dirname(path)].get(os.path.basename(path))) for path in paths]
    return _described(rows, source)


def _described(paths_and_rows: Sequence[tuple[str, dict[str, Any] | None]], source: ByteSource) -> list[Shard]:
    shards = [_scanned(path, source) if row is None else _listed(path, row, source) for path, row in paths_and_rows]
    num_scanned = sum(not isinstance(shard.index, str) for shard in shards)
    if num_scanned:
        log.info("read %d shards without index from end to end; `unisphere shards index` makes this instant", num_scanned)
    return shards


def _folder(folder: str, source: ByteSource) -> list[Shard]:
    manifest = read_manifest(folder, source)
    present: list[str] = []
    if not manifest or not is_url(folder):
        present = sorted((name for name in _names(folder, source) if name.endswith(".tar")), key=_natural)
    unlisted = sorted(set(present) - set(manifest))
    if manifest and unlisted:
        log.warning("%s: %d tars, like %s, are not in %s and not read", folder, len(unlisted), unlisted[0], MANIFEST)
    if not manifest and not present:
        entries = sorted(_names(folder, source))
        raise DataError(
            f"no shards in {folder}: neither {MANIFEST} nor *.tar; it holds {len(entries)} entries"
            + (f" ({', '.join(entries[:5])}{', ...' if len(entries) > 5 else ''})" if entries else "")
            + "; build shards with `unisphere shards build`, or correct the data path"
        )
    # A manifest may name shards that lie elsewhere by their whole address.
    paths = [(name if is_url(name) else os.path.join(folder, name), name) for name in manifest or present]
    return _described([(path, manifest.get(name)) for path, name in paths], source)


def _names(folder: str, source: ByteSource) -> list[str]:
    try:
        return source.names(folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {_why(error)}; give an existing folder, or shards (*.tar)") from error


def _why(error: OSError) -> str:
    return error.strerror or str(error)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which 2.tar comes before 10.tar."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def read_manifest(folder: str, source: ByteSource) -> dict[str, dict[str, Any]]:
    """Rows of the folder's manifest by shard name, in order; empty when it has none.

    Raises:
        DataError: it cannot be read, or is broken.
    """
    path = os.path.join(folder, MANIFEST)
    rows: dict[str, dict[str, Any]] = {}
    try:
        source.size(path)
    except FileNotFoundError:
        return rows
    except OSError as error:
        raise DataError(f"{path} cannot be read: {_why(error)}") from error
    for row in _json_lines(path, {"shard": str, "count": int, "bytes": int}, source):
        if row["shard"] in rows:
            raise DataError(f"{path} lists shard {row['shard']!r} twice; {ADVICE}")
        rows[row["shard"]] = row
    return rows


def _json_lines(path: str, fields: dict[str, type], source: ByteSource) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file. Raises DataError unless each has these fields with these types."""
    try:
        with source.stream(path) as stream:
            lines = stream.read().splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {_why(error)}; {ADVICE}") from error
    try:  # all lines in one go, which is several times faster; one by one only to say which one is wrong
        rows = json.loads(b"[" + b",".join(lines) + b"]")
    except (ValueError, RecursionError):
        rows = [_json_line(path, number, line) for number, line in enumerate(lines, start=1)]
    for number, row in enumerate(rows, start=1):
        for name, kind in fields.items():
            if not isinstance(row, dict) or type(row.get(name)) is not kind:
                raise DataError(f"{path}, line {number}: {name!r} is missing or no {kind.__name__}; {ADVICE}")
    return list(rows)


def _json_line(path: str, number: int, line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number}: not JSON ({error}); {ADVICE}") from error


def _size(path: str, source: ByteSource) -> int:
    try:
        return source.size(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {_why(error)}; give an existing folder, or shards (*.tar)") from error


def _listed(path: str, row: dict[str, Any], source: ByteSource) -> Shard:
    sha256 = row["sha256"] if isinstance(row.get("sha256"), str) else ""
    if not is_url(path):
        _check_size(path, _size(path, source), row["bytes"])
    if not isinstance(row.get("index"), str):
        return _scanned(path, source, row["count"])
    index = os.path.join(os.path.dirname(path), row["index"])
    if not is_url(path):
        try:
            source.size(index)
        except OSError as error:
            raise DataError(f"index {index} of shard {path} cannot be read: {_why(error)}; {ADVICE}") from error
    return Shard(path, row["count"], row["bytes"], index, sha256)


def _check_size(path: str, num_bytes: int, expected: int) -> None:
    if num_bytes != expected:
        kind, verb = (TruncatedTar, "cut short") if num_bytes < expected else (DataError, "changed")
        raise kind(
            f"shard {path} has {num_bytes:,} bytes, its manifest says {expected:,}: it was {verb} after it was "
            f"built; copy it again, or {ADVICE}"
        )


def _scanned(path: str, source: ByteSource, count: int | None = None) -> Shard:
    num_bytes = _size(path, source)
    with source.stream(path) as stream:
        spans = list(tar.iter_samples(stream, path))
    if count is not None and count != len(spans):
        raise DataError(f"shard {path} holds {len(spans)} samples, its manifest says {count}; {ADVICE}")
    offset = np.array([span.offset for span in spans], np.int64)
    size = np.array([span.size for span in spans], np.int64)
    return Shard(path, len(spans), num_bytes, ShardIndex(Keys(span.key for span in spans), offset, size))


def check(shard: Shard, source: ByteSource, *, content: bool = False) -> None:
    """Hold a shard against its manifest: its size, and with ``content`` its SHA-256 where the manifest has one.

    Raises:
        TruncatedTar: it is shorter.
        DataError: it is longer, or its bytes are others.
        OSError: it cannot be read at all.
    """
    _check_size(shard.path, source.size(shard.path), shard.num_bytes)
    if content and shard.sha256:
        digest = hashlib.sha256()
        with source.stream(shard.path) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
        if digest.hexdigest() != shard.sha256:
            raise DataError(
                f"shard {shard.path} has SHA-256 {digest.hexdigest()[:12]}..., its manifest says {shard.sha256[:12]}...: it "
                f"was damaged or changed after it was built; copy it again, or {ADVICE}"
            )


def load_index(shard: Shard, source: ByteSource) -> ShardIndex:
    """The shard's index, read from its file where that has not happened yet.

    Raises:
        DataError: the index is unreadable, does not have ``shard.count`` lines, or points outside the shard.
    """
    if isinstance(shard.index, ShardIndex):
        return shard.index
    rows = _json_lines(shard.index, {"key": str, "offset": int, "size": int}, source)
    offset = np.array([row["offset"] for row in rows], np.int64)
    size = np.array([row["size"] for row in rows], np.int64)
    if len(rows) != shard.count:
        raise DataError(f"index {shard.index} has {len(rows)} lines, the manifest says {shard.count}; {ADVICE}")
    if len(rows) and (offset.min() < 0 or size.min() <= 0 or int((offset + size).max()) > shard.num_bytes):
        raise DataError(f"index {shard.index} points outside {shard.path} ({shard.num_bytes:,} bytes); {ADVICE}")
    return ShardIndex(Keys(row["key"] for row in rows), offset, size)
