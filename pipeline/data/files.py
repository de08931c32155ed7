"""Bytes by path: what a place that holds shards must offer, and the mounted file system as one. Layer 1; no torch.

    source = LocalFiles()
    source.size("shards/a.tar"), source.read("shards/a.tar", offset=512, size=1024)
    source.prepare([("shards/a.tar", 512, 1024)])       # soon: start bringing it near

``remote.py`` reads URLs, ``cache.py`` keeps remote files on a local disk, ``storage.py`` chooses between them by path.
"""

from __future__ import annotations

import functools
import mmap
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import BinaryIO, Protocol

MAX_OPEN_FILES = 192
"""Above the number of shards that a shuffle touches at a time (see ``plan.py``), below the usual limit of 1024."""

Range = tuple[str, int, int]
"""Path, offset, size in bytes."""


class ByteSource(Protocol):
    """Where shards lie. All methods but ``prepare`` and ``keep`` raise OSError when the place cannot be read."""

    def size(self, path: str) -> int:
        """Bytes of the file."""

    def read(self, path: str, offset: int, size: int) -> bytes | memoryview:
        """Bytes ``[offset, offset + size)``; fewer only when the file ends before."""

    def stream(self, path: str) -> BinaryIO:
        """The whole file, to be read forwards once."""

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder."""

    def prepare(self, ranges: Iterable[Range]) -> None:
        """Start bringing near what will be read next; a hint that changes nothing but time."""

    def keep(self, path: str, num_bytes: int, sha256: str) -> None:
        """Say that much of this file will be read, what its size should be, and its checksum where that is known."""


def is_url(path: str) -> bool:
    """Whether a path names a remote place."""
    return "://" in path


class LocalFiles:
    """Files of a mounted file system, at most ``MAX_OPEN_FILES`` of them open.

    Reads name their position, so that loader processes forked from this one may share its descriptors; a copy sent to
    another process starts with none. One instance serves one thread.

    Args:
        mapped: read through memory maps. That saves one copy of every byte; but what was read then counts as memory of
            this process until the file is closed, and a file that is cut while in use ends the process (SIGBUS).
    """

    def __init__(self, *, mapped: bool = False) -> None:
        self._mapped = mapped
        self._descriptors: OrderedDict[str, int] = OrderedDict()
        self._maps: dict[str, mmap.mmap] = {}

    def size(self, path: str) -> int:
        """Bytes of the file."""
        return os.stat(path).st_size

    def read(self, path: str, offset: int, size: int) -> bytes | memoryview:
        """Bytes ``[offset, offset + size)``; fewer only when the file ends before."""
        descriptor = self._descriptors.get(path)
        if descriptor is None:
            descriptor = self._open(path)
        else:
            self._descriptors.move_to_end(path)
        if self._mapped and size:
            return memoryview(self._map(path, descriptor))[offset : offset + size]
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

    def names(self, folder: str) -> list[str]:
        """Names of the entries of a folder."""
        return os.listdir(folder)

    def prepare(self, ranges: Iterable[Range]) -> None:
        """Ask the system to read ahead; it then fetches these ranges side by side, which a network disk needs."""
        for path, offset, size in ranges:
            try:
                descriptor = self._descriptors[path] if path in self._descriptors else self._open(path)
                os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)
            except OSError:
                continue  # the read itself will say what is wrong

    def keep(self, path: str, num_bytes: int, sha256: str) -> None:
        """Nothing: the file is here already."""

    def _open(self, path: str) -> int:
        descriptor = self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if len(self._descriptors) > MAX_OPEN_FILES:
            self._close(next(iter(self._descriptors)))
        return descriptor

    def _map(self, path: str, descriptor: int) -> mmap.mmap:
        found = self._maps.get(path)
        if found is None:
            found = self._maps[path] = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        return found

    def _close(self, path: str) -> None:
        os.close(self._descriptors.pop(path))
        self._maps.pop(path, None)  # unmapped when the last view into it is gone

    def close(self) -> None:
        """Close every descriptor of this process; a later read opens them again."""
        while self._descriptors:
            self._close(next(iter(self._descriptors)))

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[], LocalFiles], tuple[()]]:
        return functools.partial(LocalFiles, mapped=self._mapped), ()
