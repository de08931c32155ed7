"""Where shards are written: a local folder, or anything that fsspec knows (``s3://bucket/set``, ``gs://``, ``memory://``).

    place = open_place("s3://bucket/cc3m")
    with place.writer(".build/=/000000.tar") as handle:     # appears whole when the block ends well, or not at all
        handle.write(...)
    place.publish(".build/=/000000.tar", "cc3m-000000.tar")

Both kinds keep one promise: a name is absent or holds the whole file. Locally a temporary file is synced and renamed.
On an object store the file is first completed on this machine and then uploaded; a store shows an object only when its
upload (for large ones: the multipart upload) was completed, and a failed one is aborted. Publishing links the staged
file (locally: a hard link; remote: a copy inside the store), so a run that dies between two names loses neither.

Every failure is a ``DataError`` that names the place; a remote store is asked again a few times first (``patience``).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from data_prep.files import atomic, sha256_of
from data_prep.patience import patiently
from pipeline.errors import DataError

PART_BYTES = 50 << 20
"""Of a multipart upload to S3, which begins at twice this size. S3 takes at most 10,000 parts of at least 5 MiB."""

AGAIN = "when that is corrected, run the same command again: what was finished is kept"


class Place(Protocol):
    """A folder that names are relative to. All methods raise DataError when the place refuses."""

    def writer(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A binary file that appears under ``name`` when the block ends without an exception."""

    def reader(self, name: str) -> BinaryIO:
        """The whole file, to be read forwards."""

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file; None when there is none."""

    def size(self, name: str) -> int | None:
        """Bytes of a file; None when there is none."""

    def holds(self, name: str, num_bytes: int, sha256: str) -> bool:
        """Whether the file is still what was written: by its hash locally, by its size where reading it would cost."""

    def publish(self, staged: str, name: str) -> None:
        """Give the staged file a second name, replacing what had it."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def remove_tree(self, name: str) -> None:
        """Remove a folder with all it holds, if it is there."""

    def entries(self) -> list[str]:
        """Names of the files and folders directly in the place, sorted; empty when it does not exist."""

    def show(self, name: str = "") -> str:
        """The full name for messages."""


def open_place(spec: str | Path) -> Place:
    """The place that a path or an fsspec URL names. Raises DataError when no file system knows the URL."""
    text = os.fspath(spec)
    return RemotePlace(text) if "://" in text else LocalPlace(Path(text))


def write_text(place: Place, name: str, text: str) -> None:
    """Write a UTF-8 file that appears whole."""
    with place.writer(name) as handle:
        handle.write(text.encode("utf-8"))


class LocalPlace:
    """A folder of a mounted file system."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def writer(self, name: str) -> AbstractContextManager[BinaryIO]:
        """See ``Place``."""
        return atomic(self.root / name, AGAIN)

    def reader(self, name: str) -> BinaryIO:
        """See ``Place``."""
        with self._errors("read", name):
            return open(self.root / name, "rb")

    def read(self, name: str) -> bytes | None:
        """See ``Place``."""
        with self._errors("read", name):
            try:
                return (self.root / name).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def size(self, name: str) -> int | None:
        """See ``Place``."""
        with self._errors("read", name):
            try:
                return (self.root / name).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def holds(self, name: str, num_bytes: int, sha256: str) -> bool:
        """See ``Place``."""
        return self.size(name) == num_bytes and sha256_of(self.root / name) == sha256

    def publish(self, staged: str, name: str) -> None:
        """See ``Place``. A file system without hard links gets a copy."""
        final = self.root / name
        temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
        with self._errors("write", name):
            final.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            try:
                os.link(self.root / staged, temporary)
            except OSError:
                shutil.copyfile(self.root / staged, temporary)
            os.replace(temporary, final)
            temporary.unlink(missing_ok=True)  # replacing a file by a link to itself does nothing at all

    def remove(self, name: str) -> None:
        """See ``Place``."""
        with self._errors("remove", name):
            (self.root / name).unlink(missing_ok=True)

    def remove_tree(self, name: str) -> None:
        """See ``Place``."""
        with self._errors("remove", name):
            if (self.root / name).exists():
                shutil.rmtree(self.root / name)

    def entries(self) -> list[str]:
        """See ``Place``."""
        with self._errors("list", ""):
            if self.root.exists() and not self.root.is_dir():
                raise DataError(f"{self.root} is not a folder; choose another output")
            return sorted(path.name for path in self.root.iterdir()) if self.root.exists() else []

    def show(self, name: str = "") -> str:
        """See ``Place``."""
        return str(self.root / name)

    @contextmanager
    def _errors(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"cannot {verb} {self.show(name)}: {error}; {AGAIN}") from error


class RemotePlace:
    """A prefix of an fsspec file system. Connections belong to a process: a copy sent to another opens its own."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._opened: tuple[Any, str] | None = None

    def __reduce__(self) -> tuple[type[RemotePlace], tuple[str]]:
        return RemotePlace, (self.url,)

    @contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """See ``Place``. The file is completed in the temporary folder (``TMPDIR``) and then uploaded."""
        try:
            with tempfile.NamedTemporaryFile(prefix="unisphere-") as local:
                yield cast(BinaryIO, local)
                local.flush()
                with self._errors("write", name):
                    system, path = self._path(name)
                    is_s3 = "s3" in system.protocol
                    options = {"chunksize": PART_BYTES} if is_s3 else {}
                    patiently(lambda: system.put_file(local.name, path, **options))
        except OSError as error:
            raise DataError(f"cannot write a temporary file in {tempfile.gettempdir()}: {error}; {AGAIN}") from error

    def reader(self, name: str) -> BinaryIO:
        """See ``Place``."""
        with self._errors("read", name):
            system, path = self._path(name)
            return cast(BinaryIO, patiently(lambda: system.open(path, "rb")))

    def read(self, name: str) -> bytes | None:
        """See ``Place``."""
        with self._errors("read", name):
            system, path = self._path(name)
            try:
                return cast(bytes, patiently(lambda: system.cat_file(path)))
            except FileNotFoundError:
                return None

    def size(self, name: str) -> int | None:
        """See ``Place``."""
        with self._errors("read", name):
            system, path = self._path(name)
            try:
                return int(patiently(lambda: system.info(path))["size"])
            except FileNotFoundError:
                return None

    def holds(self, name: str, num_bytes: int, sha256: str) -> bool:
        """See ``Place``. An object store shows whole objects only."""
        return self.size(name) == num_bytes

    def publish(self, staged: str, name: str) -> None:
        """See ``Place``. The bytes stay inside the store."""
        with self._errors("write", name):
            system, source = self._path(staged)
            target = self._path(name)[1]
            patiently(lambda: system.copy(source, target))

    def remove(self, name: str) -> None:
        """See ``Place``."""
        with self._errors("remove", name):
            system, path = self._path(name)
            try:
                patiently(lambda: system.rm_file(path))
            except FileNotFoundError:
                return

    def remove_tree(self, name: str) -> None:
        """See ``Place``."""
        with self._errors("remove", name):
            system, path = self._path(name)
            try:
                patiently(lambda: system.rm(path, recursive=True))
            except FileNotFoundError:
                return

    def entries(self) -> list[str]:
        """See ``Place``."""
        with self._errors("list", ""):
            system, path = self._path("")
            try:
                found = patiently(lambda: system.ls(path, detail=False))
            except FileNotFoundError:
                return []
            return sorted({str(entry).rstrip("/").rpartition("/")[2] for entry in found} - {path.rpartition("/")[2]})

    def show(self, name: str = "") -> str:
        """See ``Place``."""
        return f"{self.url}/{name}" if name else self.url

    def _path(self, name: str) -> tuple[Any, str]:
        if self._opened is None:
            import fsspec

            # Other processes write below this prefix too: a remembered listing would be wrong.
            self._opened = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        system, root = self._opened
        return system, f"{root}/{name}" if name else root

    @contextmanager
    def _errors(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except DataError:
            raise
        except Exception as error:  # each remote file system has exceptions of its own
            raise DataError(f"cannot {verb} {self.show(name)}: {type(error).__name__}: {error}; {AGAIN}") from error
