"""Pictures that a recipe had to make or take out of a package, in one tar in the cache; rows name them by byte range.

    store = stored(cache / "mnist-test.tar", lambda: ((f"{n}.png", png) for n, png in ...), room)
    Row(..., image=store.url("17.png"))

A store is written once, atomically, and read by any number of worker processes, each picture in one read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from data_prep.files import atomic
from data_prep.pictures import RANGE
from data_prep.recipes.packages import make_room
from data_prep.rows import MAX_KEY_BYTES
from pipeline.data.tar import END_OF_ARCHIVE, member_bytes, scan
from pipeline.errors import DataError


def short_key(name: str) -> str:
    """``name`` as a sample's key; a long one is cut and ends in a hash of it all.

    >>> short_key("animals/frog"), len(short_key("x" * 200))
    ('animals/frog', 77)
    """
    if len(name.encode()) <= MAX_KEY_BYTES:
        return name
    return f"{name.encode()[:60].decode('utf-8', 'ignore')}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Store:
    """A tar of files: name -> (offset, size) of its data."""

    path: Path
    places: dict[str, tuple[int, int]]

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def read(self, name: str) -> bytes:
        """One file's bytes."""
        offset, size = self.places[name]
        with open(self.path, "rb") as handle:
            return os.pread(handle.fileno(), size, offset)

    def url(self, name: str) -> str:
        """How a row names one file."""
        offset, size = self.places[name]
        return f"{RANGE}{offset}-{size}::{self.path}"


def stored(path: Path, files: Callable[[], Iterable[tuple[str, bytes]]], cache_bytes: int) -> Store:
    """The store at ``path``, filled with ``files()`` unless it exists. Raises DataError when it cannot be written."""
    if not path.exists():
        make_room(path.parent, 0, cache_bytes)
        with atomic(path) as handle:
            for name, data in files():
                handle.write(member_bytes(name, data))
            handle.write(END_OF_ARCHIVE)
        if path.stat().st_size > cache_bytes:
            path.unlink()
            raise DataError(f"{path.name} would not fit the cache of {cache_bytes:,} bytes; raise it with --cache-gb")
    os.utime(path)
    with open(path, "rb") as stream:
        return Store(path, {member.name: (member.data_offset, member.size) for member in scan(stream, str(path))})
