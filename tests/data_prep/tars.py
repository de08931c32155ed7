"""Tars that the tests of the shard tools share: good ones, and every way in which one can be hostile."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from pipeline.data.tar import END_OF_ARCHIVE, member_bytes
from tests.data_prep.conftest import encode


def sample(number: int, caption: str | None = None, **more: bytes) -> dict[str, bytes]:
    """Members of one good sample, by name."""
    text = f"picture {number}" if caption is None else caption
    members = {"png": encode(number), "txt": text.encode(), **more}
    return {f"{number:04d}.{extension}": data for extension, data in members.items()}


def tar_of(*samples: Mapping[str, bytes], end: bytes = END_OF_ARCHIVE) -> bytes:
    """A plain tar of these members."""
    return b"".join(member_bytes(name, data) for members in samples for name, data in members.items()) + end


def write_set(folder: Path, num_shards: int = 2, num_samples: int = 3) -> Path:
    """A folder of tars without index or manifest: ``0.tar``, ``1.tar``, ... with keys 0000, 0001, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_shards):
        first = number * num_samples
        raw = tar_of(*(sample(place) for place in range(first, first + num_samples)))
        (folder / f"{number}.tar").write_bytes(raw)
    return folder


def special(name: str, kind: bytes, size: int = 0, link: str = "") -> bytes:
    """The header of a member that is no file; ``size`` is written as given, whatever the kind."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info.tobuf(tarfile.USTAR_FORMAT)


def claiming(name: str, size: int, kind: bytes = b"0") -> bytes:
    """A header that claims ``size`` bytes, in base 256 where octal has no room."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def pax(**records: str) -> bytes:
    """A pax header with these records."""
    body = b""
    for name, value in records.items():
        line = f" {name}={value}\n".encode()
        length = len(line) + len(str(len(line) + 2))
        body += str(length).encode() + line
    return claiming("././@PaxHeader", len(body), b"x") + body.ljust(-(-len(body) // 512) * 512, b"\0")


class Bounded(io.BytesIO):
    """A stream that notices how much is asked of it at once."""

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw)
        self.largest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, and remember the largest request."""
        self.largest = max(self.largest, size or 0)
        return super().read(size)
