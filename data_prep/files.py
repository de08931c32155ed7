"""Files that are either complete or absent, and hashing on the way.

    with atomic(Path("out/manifest.jsonl")) as handle:
        handle.write(b"...")

A process that dies inside the block leaves ``out/.manifest.jsonl.<pid>.tmp`` and no manifest. The rename happens after
the data reached the disk, so a power cut cannot leave an empty file under the final name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import DataError

CHUNK_BYTES = 1 << 20


@contextmanager
def atomic(path: Path, advice: str = "") -> Iterator[BinaryIO]:
    """A binary file that appears under ``path`` when the block ends without an exception, and not at all otherwise.

    Raises DataError, ending in ``advice``, when it cannot be written (no space, no permission).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error}" + (f"; {advice}" if advice else "")) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically. Raises DataError as ``atomic`` does."""
    with atomic(path) as handle:
        handle.write(text.encode("utf-8"))


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes, read in chunks. Raises OSError when it cannot be read."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class HashingReader:
    """Reads another stream forwards and hashes every byte that passes, so that one pass gives contents and checksum."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes of the stream; empty at its end."""
        data = self._stream.read(size)
        self._digest.update(data)
        self.num_bytes += len(data)
        return data

    def hexdigest(self) -> str:
        """SHA-256 of what was read so far."""
        return self._digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
