"""A new folder of shards that is either complete or absent.

    with new_folder("shards/clean", force=False) as folder:      # a hidden folder beside it
        with ShardWriter(folder / "train", "pairs", shard_size=1000) as shards:
            shards.add("0001", {"jpg": jpeg, "txt": b"a dog"})   # pairs-000000.tar, its index, and at the end the manifest
    # here shards/clean appears, in one rename

Whoever is killed before that leaves only the hidden folder, which the next run clears away. An output on S3 or another
fsspec file system is made in a temporary folder here and copied there at the end, manifests last.

Bytes depend on the samples alone: ustar headers without owner or time (``pipeline.data.tar.member_bytes``).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from data_prep.dimensions import HEAD_BYTES, dimensions
from data_prep.inputs import filesystem, is_remote
from data_prep.manifest import MANIFEST, ShardLine, index_line, index_name, write_manifest
from pipeline.data.samples import IMAGE_EXTENSIONS
from pipeline.data.tar import END_OF_ARCHIVE, SampleSpan, member_bytes
from pipeline.errors import DataError

MAX_NAME_BYTES = 100  # of a ustar header
LONG_KEY_BYTES = 60


def tar_key(key: str, extensions: Mapping[str, bytes]) -> str:
    """``key`` as it can stand before these extensions in a ustar header: a long one is cut and ends in a hash of it all.

    >>> tar_key("a/0001", {"jpg": b""}), tar_key("k" * 99, {"jpg": b""})[-22:]
    ('a/0001', 'kkkkk-59b34d7c39e5d092')
    """
    longest = max((len(name.encode("utf-8", "surrogateescape")) for name in extensions), default=0)
    encoded = key.encode("utf-8", "surrogateescape")
    clean = encoded.decode("utf-8", "replace")
    if clean == key and len(encoded) + 1 + longest <= MAX_NAME_BYTES:
        return key
    head = clean.encode()[:LONG_KEY_BYTES].decode("utf-8", "ignore")
    return f"{head}-{hashlib.blake2b(encoded, digest_size=8).hexdigest()}"


class ShardWriter:
    """Writes samples one after another into the shards of one folder; on a clean exit also its manifest."""

    def __init__(self, folder: Path, name: str, *, shard_size: int = 0, shard_bytes: int = 0) -> None:
        """``shard_size`` samples or ``shard_bytes`` bytes end a shard; with neither, only ``start`` does."""
        self.folder, self.name = folder, name
        self._shard_size, self._shard_bytes = shard_size, shard_bytes
        self.lines: list[ShardLine] = []
        self.num_samples = 0
        self.num_renamed = 0  # keys that are too long for a tar header, or that the shard has already
        self._shard: _OpenShard | None = None

    def start(self, shard: str) -> None:
        """Begin the shard with this file name; the one before it is complete."""
        self._finish()
        self._shard = _OpenShard(self.folder, shard)

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append one sample. Raises DataError when it cannot be written or fits no tar header."""
        if self._shard is None or self._is_full(self._shard):
            self.start(f"{self.name}-{len(self.lines) + (self._shard is not None):06d}.tar")
        assert self._shard is not None, "a shard was started"
        written = self._shard.unused(tar_key(key, members))
        self.num_renamed += written != key
        try:
            self._shard.add(written, members)
        except OSError as error:
            raise DataError(f"cannot write {self.folder / self._shard.name}: {error}") from error
        self.num_samples += 1

    def _is_full(self, shard: _OpenShard) -> bool:
        by_count = self._shard_size and shard.count >= self._shard_size
        return bool(by_count or (self._shard_bytes and shard.offset >= self._shard_bytes))

    def _finish(self) -> None:
        if self._shard is not None:
            line = self._shard.finish()
            if line.count:  # a shard of which nothing was kept is not written
                self.lines.append(line)
        self._shard = None

    def close(self) -> None:
        """Complete the last shard and write the manifest of the folder, if it has any samples."""
        try:
            self._finish()
            if self.lines:
                write_manifest(self.folder, self.lines)
        except OSError as failure:
            raise DataError(f"cannot write {self.folder}: {failure}") from failure

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        elif self._shard is not None:
            self._shard.abandon()


class _OpenShard:
    """A tar and its index while they are written."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.count, self.offset = name, 0, 0
        self._folder = folder
        self._digest = hashlib.sha256()
        self._keys: Counter[str] = Counter()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._tar: BinaryIO = open(folder / name, "wb", buffering=1 << 20)  # noqa: SIM115
            self._index: BinaryIO = open(folder / index_name(name), "wb")  # noqa: SIM115
        except OSError as error:
            raise DataError(f"cannot write {folder / name}: {error}") from error

    def unused(self, key: str) -> str:
        """``key``, or ``key+2`` where the shard has one already: next to each other the two would be one sample."""
        self._keys[key] += 1
        return key if self._keys[key] == 1 else self.unused(f"{key[:LONG_KEY_BYTES]}+{self._keys[key]}")

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        buffer = b"".join(member_bytes(f"{key}.{extension}", data) for extension, data in members.items())
        self._write(buffer)
        image = next((members[extension] for extension in IMAGE_EXTENSIONS if extension in members), b"")
        span = SampleSpan(key, self.offset, len(buffer), tuple(members))
        self._index.write(index_line(span, dimensions(image[:HEAD_BYTES])))
        self.offset += len(buffer)
        self.count += 1

    def _write(self, data: bytes) -> None:
        self._tar.write(data)
        self._digest.update(data)

    def finish(self) -> ShardLine:
        self._write(END_OF_ARCHIVE)
        for handle in (self._tar, self._index):
            handle.flush()
            os.fsync(handle.fileno())
            handle.close()
        if not self.count:
            for name in (self.name, index_name(self.name)):
                (self._folder / name).unlink()
        num_bytes = self.offset + len(END_OF_ARCHIVE)
        return ShardLine(self.name, self.count, num_bytes, self._digest.hexdigest(), index_name(self.name))

    def abandon(self) -> None:
        self._tar.close()
        self._index.close()


@contextmanager
def new_folder(out: str, *, force: bool = False) -> Iterator[Path]:
    """A folder to fill; when the block ends without an exception it becomes ``out``, and otherwise it is gone.

    Raises DataError when ``out`` is not empty (``force`` replaces it if it is a folder of shards), or cannot be written.
    """
    if is_remote(out):
        with _copied_to(out, force) as folder:
            yield folder
        return
    final = Path(out).absolute()
    _refuse(final, force)
    staging = final.with_name(f".{final.name}.partial")
    try:
        staging.mkdir(parents=True, exist_ok=True)
        lock = os.open(staging, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"cannot write {final}: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _clear(staging)
        yield staging
        _replace(staging, final)
    except BlockingIOError as error:
        raise DataError(f"another command is writing {final}; wait for it or choose another folder") from error
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _refuse(final: Path, force: bool) -> None:
    if not final.exists():
        return
    entries = sorted(path.name for path in final.iterdir()) if final.is_dir() else [final.name]
    if entries and not (force and final.is_dir() and any(final.rglob(MANIFEST))):
        hint = "choose another folder" if force else "choose another folder, or pass --force to replace its shards"
        raise DataError(f"{final} is not empty ({', '.join(entries[:5])}); {hint}")


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _replace(staging: Path, final: Path) -> None:
    """Put ``staging`` in the place of ``final``. Killed between the two renames, the older shards are in ``.NAME.old``."""
    old = final.with_name(f".{final.name}.old")
    try:
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(final, old)
        os.rename(staging, final)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise DataError(f"cannot write {final}: {error}") from error


@contextmanager
def _copied_to(url: str, force: bool) -> Iterator[Path]:
    """A temporary folder whose files are copied to ``url`` at the end, manifests last."""
    system, inner = filesystem(url)
    try:
        if not force and system.exists(inner) and system.find(inner):
            raise DataError(f"{url} is not empty; choose another folder, or pass --force to replace its shards")
        with tempfile.TemporaryDirectory(prefix="unisphere-") as name:
            folder = Path(name)
            yield folder
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            for path in sorted(files, key=lambda path: path.name == MANIFEST):
                system.put_file(str(path), f"{inner.rstrip('/')}/{path.relative_to(folder).as_posix()}")
    except (DataError, KeyboardInterrupt):
        raise
    except Exception as error:  # each remote file system has exceptions of its own
        raise DataError(f"cannot write {url}: {type(error).__name__}: {error}") from error
