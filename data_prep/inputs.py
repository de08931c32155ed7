"""Finding and opening shards that exist: local paths, and s3://, https:// or whatever else fsspec knows.

    find_tars(["shards/cc3m", "s3://bucket/laion", "https://host/set/{000..011}.tar"])
    with open_stream("s3://bucket/laion/000.tar") as stream: ...

A folder means the tars in and below it. A web server cannot list a folder, so there the names are given, by braces.
Nothing here writes.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.manifest import natural
from data_prep.patience import patiently
from pipeline.errors import DataError

REMOTE_BLOCK_BYTES = 8 << 20


def is_remote(path: str) -> bool:
    """Whether ``path`` is a URL."""
    return "://" in path


def split_path(path: str) -> tuple[str, str]:
    """(folder, name) of a local path or URL.

    >>> split_path("s3://bucket/a/0.tar"), split_path("0.tar")
    (('s3://bucket/a', '0.tar'), ('.', '0.tar'))
    """
    folder, slash, name = path.rpartition("/")
    return (folder or ("/" if slash else "."), name)


def join(folder: str, name: str) -> str:
    """The path of a file in a folder, local or remote. A name that is absolute or a URL stands for itself."""
    if is_remote(name) or name.startswith("/"):
        return name
    return f"{folder.rstrip('/')}/{name}" if folder != "." else name


def find_tars(specs: Sequence[str]) -> list[str]:
    """The tars that ``specs`` name: paths, URLs, brace patterns, and folders searched through; each once.

    Raises DataError when one does not exist, or there is none at all.
    """
    from pipeline.data.shards import expand

    tars: dict[str, None] = {}
    for spec in specs:
        if os.path.exists(spec):  # an existing name may hold braces
            tars.update(dict.fromkeys(_local_tars(spec)))
            continue
        for path in expand(spec) if not is_remote(spec) else _expand_url(spec):
            tars.update(dict.fromkeys(_remote_tars(path) if is_remote(path) else _local_tars(path)))
    if not tars:
        raise DataError(f"no .tar in {', '.join(specs)}; build shards with `unisphere shards build`")
    return list(tars)


def _local_tars(text: str) -> list[str]:
    path = Path(text).absolute()
    if not path.exists():
        raise DataError(f"{path} does not exist; give .tar files or folders that hold them")
    found = path.rglob("*.tar") if path.is_dir() else [path]
    visible = (tar for tar in found if not any(part.startswith(".") for part in tar.relative_to(path).parts))
    return sorted(map(str, visible), key=natural)


def _expand_url(spec: str) -> list[str]:
    """Braces of a URL; ``::`` is fsspec's own there and stays."""
    from braceexpand import braceexpand

    return list(braceexpand(spec))


def _remote_tars(url: str) -> list[str]:
    if url.endswith(".tar"):
        return [url]
    system, path = filesystem(url)
    try:
        found = system.find(path)
    except Exception as error:  # each remote file system has exceptions of its own
        raise DataError(f"{url} cannot be listed: {type(error).__name__}: {error}; name its .tar files, with braces") from error
    root = path.rstrip("/")
    inner = (name[len(root) :].lstrip("/") for name in found if name.endswith(".tar") and name.startswith(root))
    return sorted((join(url.rstrip("/"), name) for name in inner), key=natural)


def filesystem(url: str) -> tuple[Any, str]:
    """The file system that fsspec has for a URL, and the path in it. Raises DataError for a protocol that is not installed."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except Exception as error:
        raise DataError(f"{url} cannot be opened: {type(error).__name__}: {error}") from error
    return system, path


class _RemoteStream(io.RawIOBase):
    """A remote file whose reads are tried again a few times and then fail with a ``DataError`` that names it."""

    def __init__(self, path: str) -> None:
        super().__init__()
        system, inner = filesystem(path)
        self._path = path
        self._file = system.open(inner, "rb", block_size=REMOTE_BLOCK_BYTES, cache_type="readahead")

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Where the store can answer for a part of a file."""
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """As for any file."""
        return int(self._file.seek(offset, whence))

    def readinto(self, buffer: Any, /) -> int:
        """At most as many bytes as fit ``buffer``; 0 at the end. Reading does not move on when it fails, so may be repeated."""
        try:
            data = patiently(lambda: self._file.read(len(buffer)))
        except Exception as error:  # each remote file system has exceptions of its own
            raise _unreadable(self._path, error) from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close both."""
        if not self.closed:
            self._file.close()
        super().close()


def _unreadable(path: str, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read: {type(error).__name__}: {error}")


def open_stream(path: str) -> BinaryIO:
    """The file, to be read. Raises DataError when it cannot be opened, and a remote one also when a read fails for good."""
    try:
        return io.BufferedReader(_RemoteStream(path), 1 << 20) if is_remote(path) else open(path, "rb")
    except DataError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def size_of(path: str) -> int:
    """Bytes of the file. Raises DataError when there is none."""
    try:
        if not is_remote(path):
            return os.stat(path).st_size
        system, inner = filesystem(path)
        return int(system.size(inner) or 0)
    except DataError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def exists(path: str) -> bool:
    """Whether there is such a file."""
    if not is_remote(path):
        return os.path.exists(path)
    system, inner = filesystem(path)
    return bool(system.exists(inner))


def read_bytes(path: str) -> bytes:
    """A whole small file (manifest, sizes). Raises DataError when it cannot be read."""
    with open_stream(path) as stream:
        try:
            return stream.read()
        except OSError as error:
            raise _unreadable(path, error) from error
