"""One ``ByteSource`` for every path: local ones from disk, URLs through fsspec, with a cache where one is set. Layer 1.

source = open_storage(cfg.data)
source.read("shards/a.tar", 0, 512), source.read("s3://bucket/b.tar", 0, 512)
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from pipeline.config import DataConfig
from pipeline.data.cache import CachedFiles
from pipeline.data.files import ByteSource, LocalFiles, Range, is_url
from pipeline.data.remote import RemoteFiles


class Storage:
    """Local files and remote ones behind one interface."""

    def __init__(self, remote: ByteSource, local: ByteSource | None = None) -> None:
        self._local, self._remote = local or LocalFiles(), remote

    def _at(self, path: str) -> ByteSource:
        return self._remote if is_url(path) else self._local

    def size(self, path: str) -> int:
        """Bytes of the file."""
        return self._at(path).size(path)

    def read(self, path: str, offset: int, size: int) -> bytes | memoryview:
        """Bytes ``[offset, offset + size)``; fewer only when the file ends before."""
        return self._at(path).read(path, offset, size)

    def stream(self, path: str) -> BinaryIO:
        """The whole file, to be read forwards once."""
        return self._at(path).stream(path)

    def names(self, folder: str) -> list[str]:
        """Names of the entries of a folder."""
        return self._at(folder).names(folder)

    def prepare(self, ranges: Iterable[Range]) -> None:
        """Start bringing near what will be read next."""
        ranges = list(ranges)
        self._local.prepare(item for item in ranges if not is_url(item[0]))
        self._remote.prepare(item for item in ranges if is_url(item[0]))

    def keep(self, path: str, num_bytes: int, sha256: str) -> None:
        """Say that much of this file will be read."""
        self._at(path).keep(path, num_bytes, sha256)


def open_storage(data: DataConfig) -> Storage:
    """The storage that these settings describe; nothing is asked of it yet."""
    remote = RemoteFiles(data.storage, attempts=data.read_attempts)
    if data.cache_dir is None:
        return Storage(remote, LocalFiles(mapped=data.map_files))
    cached = CachedFiles(remote, Path(data.cache_dir), int(data.cache_gigabytes * 1e9))
    return Storage(cached, LocalFiles(mapped=data.map_files))
