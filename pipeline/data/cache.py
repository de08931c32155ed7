"""Remote shards kept on a local disk, for all processes of a host. Layer 1; no torch.

    source = CachedFiles(RemoteFiles({}), Path("/local/nvme/shards"), max_bytes=200 * 10**9)
    source.keep(url, num_bytes=512_000_000, sha256="9f2c...")   # somebody starts to copy it, in the background
    source.read(url, offset, size)                              # from the copy once it is complete, until then from afar

    FOLDER/KEY.shard    a complete copy; KEY is a hash of the whole URL, the size, and the checksum
    FOLDER/KEY.part     one being made: of full size from the start, locked by the process that makes it

Whoever holds the lock of a part writes it; others read from afar meanwhile, so nobody waits for anybody. A copy is published
by renaming it, after its size and, where the manifest has one, its SHA-256 were right. If we die while copying, the lock goes
with us and the next one who needs room removes the part. Room is made before a copy starts, by removing the copies used
longest ago; a reader that has one open keeps it, and one that comes too late reads from afar. A disk that is full, or any
other failure of the cache, is said once and costs time, never a sample.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.data.files import LocalFiles, Range
from pipeline.data.remote import RemoteFiles

log = logging.getLogger(__name__)

COPIERS = 2
"""Shards that one process copies at a time; each copy has several requests under way."""
CHUNK_BYTES = 8 << 20


class CachedFiles:
    """Files behind URLs through a local folder; every method of ``RemoteFiles``, with copies where ``keep`` was called."""

    def __init__(self, remote: RemoteFiles, folder: Path, max_bytes: int) -> None:
        self._remote, self._folder, self._max_bytes = remote, folder, max_bytes
        self._local = LocalFiles()
        self._kept: dict[str, Path] = {}
        self._pools: dict[int, ThreadPoolExecutor] = {}
        self._failed = False

    def size(self, path: str) -> int:
        """Bytes of the file, as the remote place says."""
        return self._remote.size(path)

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Bytes ``[offset, offset + size)``, from the copy if there is one."""
        copy = self._kept.get(path)
        if copy is not None:
            try:
                return bytes(self._local.read(str(copy), offset, size))
            except OSError:  # not made yet, or removed to make room
                pass
        return self._remote.read(path, offset, size)

    def stream(self, path: str) -> BinaryIO:
        """The whole file, from the copy if there is one."""
        try:
            return open(self._kept[path], "rb")
        except (KeyError, OSError):
            return self._remote.stream(path)

    def names(self, folder: str) -> list[str]:
        """Names of the entries of a remote folder."""
        return self._remote.names(folder)

    def prepare(self, ranges: Iterable[Range]) -> None:
        """Bring near what is not in a copy."""
        here, afar = [], []
        for item in ranges:
            copy = self._kept.get(item[0])
            if copy is not None and copy.exists():
                here.append((str(copy), item[1], item[2]))
            else:
                afar.append(item)
        self._local.prepare(here)
        self._remote.prepare(afar)

    def keep(self, path: str, num_bytes: int, sha256: str) -> None:
        """Make sure that a copy of this file is there soon; returns at once."""
        key = hashlib.sha256(f"{path}\n{num_bytes}\n{sha256}".encode()).hexdigest()[:40]
        copy = self._folder / f"{key}.shard"
        self._kept[path] = copy
        try:
            os.utime(copy)
            if copy.stat().st_size == num_bytes:
                return
            copy.unlink(missing_ok=True)  # cut by a crash of the whole host; copied again
        except FileNotFoundError:
            pass
        if not self._failed:
            self._pool().submit(self._copy_or_say, path, copy, num_bytes, sha256)

    def _pool(self) -> ThreadPoolExecutor:
        """The threads of this process; those of the one it was forked from stayed there."""
        found = self._pools.get(os.getpid())
        return found or self._pools.setdefault(os.getpid(), ThreadPoolExecutor(COPIERS, thread_name_prefix="cache"))

    def _copy_or_say(self, path: str, copy: Path, num_bytes: int, sha256: str) -> None:
        try:
            self._copy(path, copy, num_bytes, sha256)
        except OSError as error:
            # What the disk says will stay so; what a remote place did, or a file that just went, may not happen again.
            self._failed = error.errno not in (None, errno.ENOENT)
            log.warning("cache %s cannot take %s: %s; this process reads from afar instead", self._folder, path, error)

    def _copy(self, path: str, copy: Path, num_bytes: int, sha256: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        part = copy.with_suffix(".part")
        if copy.exists():
            return  # another process has made it
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with open(descriptor, "r+b") as file:
            if not _lock(descriptor) or not _is_still(part, descriptor):
                return  # another process is making it
            try:
                if copy.exists() or not self._make_room(part, num_bytes, descriptor):
                    return
                digest = hashlib.sha256()
                with self._remote.stream(path) as stream:
                    while chunk := stream.read(CHUNK_BYTES):
                        digest.update(chunk)
                        file.write(chunk)
                file.flush()
                self._check(path, file.tell(), num_bytes, digest.hexdigest(), sha256)
                os.rename(part, copy)
            finally:
                part.unlink(missing_ok=True)

    @staticmethod
    def _check(path: str, got_bytes: int, num_bytes: int, got_sha256: str, sha256: str) -> None:
        if got_bytes != num_bytes:
            raise OSError(f"{got_bytes:,} bytes arrived, the manifest says {num_bytes:,}")
        if sha256 and got_sha256 != sha256:
            raise OSError(f"its SHA-256 is {got_sha256[:12]}..., the manifest says {sha256[:12]}...")

    def _make_room(self, part: Path, num_bytes: int, descriptor: int) -> bool:
        """Take ``num_bytes`` for a part, and remove what was used longest ago until the bound holds."""
        with self._one_at_a_time():
            files = {path: found for path in self._folder.iterdir() if path != part and (found := _stat(path))}
            total = sum(found.st_size for found in files.values())
            for path in sorted(files, key=lambda path: (_in_use(path), files[path].st_mtime)):
                if total + num_bytes <= self._max_bytes or _in_use(path):
                    break
                path.unlink(missing_ok=True)
                total -= files[path].st_size
            if total + num_bytes > self._max_bytes:
                log.debug("no room in the cache for %s bytes beside %s being copied", num_bytes, total)
                return False
            os.posix_fallocate(descriptor, 0, max(1, num_bytes))
            return True

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        with open(self._folder / "room.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def __reduce__(self) -> tuple[Callable[[], CachedFiles], tuple[()]]:
        return functools.partial(CachedFiles, self._remote, self._folder, self._max_bytes), ()


def _stat(path: Path) -> os.stat_result | None:
    """Of a copy or a part; None for what is something else, or was renamed or removed by another process just now."""
    try:
        return path.stat() if path.suffix in (".shard", ".part") else None
    except FileNotFoundError:
        return None


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the path still names the open file, and not one that came after it was renamed or removed."""
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def _in_use(path: Path) -> bool:
    """Whether this is a part that some process is writing."""
    if path.suffix != ".part":
        return False
    try:
        with open(path, "rb") as file:
            return not _lock(file.fileno())
    except FileNotFoundError:
        return False
