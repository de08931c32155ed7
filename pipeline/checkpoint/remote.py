"""Copies of complete checkpoints under a URL: ``s3://bucket/folder`` or any that fsspec knows.

    remote = Remote("s3://bucket/runs", "emoji")          # s3://bucket/runs/emoji/step-00000040/...
    remote.upload(folder, record)
    remote.fetch(checkpoints)                             # the newest complete set there, verified, as a local checkpoint

An object store has no rename, so ``state.json``, which names every other file with its size and hash, is written last: a set
without it, or with a file of another size, is unfinished and is never used.
"""

from __future__ import annotations

import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec

from pipeline.checkpoint.files import replace_text, sync
from pipeline.checkpoint.find import verify
from pipeline.checkpoint.state import POINTER, STATE, Record
from pipeline.errors import CheckpointError

_AT_ONCE = 8
_log = logging.getLogger("unisphere")


class Remote:
    """A run's folder of checkpoints elsewhere."""

    def __init__(self, url: str, run: str) -> None:
        """``url``: where runs are copied to; ``run``: the name of this one."""
        self.url = f"{url.rstrip('/')}/{run}"
        self._files: Any
        self._files, self._root = fsspec.core.url_to_fs(self.url)

    def upload(self, folder: Path, record: Record) -> None:
        """Copy a complete checkpoint: what is there under its name stops being complete first, its state is written last.

        Raises:
            CheckpointError: the other side refused or broke off; what is there then is an unfinished set.
        """
        target = f"{self._root}/{folder.name}"

        def send(name: str) -> None:
            self._files.makedirs(f"{target}/{name}".rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(folder / name), f"{target}/{name}")

        try:
            if self._size(f"{target}/{STATE}") is not None:  # of a run that went back and came by this step again
                self._files.rm_file(f"{target}/{STATE}")
            with ThreadPoolExecutor(_AT_ONCE) as threads:
                list(threads.map(send, record.files))
            self._files.put_file(str(folder / STATE), f"{target}/{STATE}")
        except Exception as error:  # every backend has its own; none may end a training
            raise CheckpointError(f"cannot copy {folder.name} to {self.url}: {type(error).__name__}: {error}") from error

    def complete(self) -> dict[str, Record]:
        """Complete sets by folder name.

        Raises:
            CheckpointError: the other side cannot be listed.
        """
        self._files.invalidate_cache()
        try:
            found = self._files.ls(self._root, detail=False) if self._files.exists(self._root) else []
        except Exception as error:
            raise CheckpointError(f"cannot list {self.url}: {type(error).__name__}: {error}") from error
        names = [path.rstrip("/").rpartition("/")[2] for path in found]
        records = {name: self._record(name) for name in names if name.startswith("step-")}
        return {name: record for name, record in records.items() if record is not None}

    def _record(self, name: str) -> Record | None:
        target = f"{self._root}/{name}"
        try:
            record = Record.parse(self._files.cat_file(f"{target}/{STATE}").decode())
        except (OSError, ValueError, TypeError, KeyError):
            return None
        sizes = {file: self._size(f"{target}/{file}") for file in record.files}
        return record if sizes == {file: entry.bytes for file, entry in record.files.items()} else None

    def _size(self, path: str) -> int | None:
        try:
            return int(self._files.info(path)["size"])
        except OSError:
            return None

    def delete(self, name: str) -> None:
        """Remove a set, its state first, so that it is never a set with missing files that claims to be complete."""
        self._files.rm_file(f"{self._root}/{name}/{STATE}")
        self._files.rm(f"{self._root}/{name}", recursive=True)

    def fetch(self, checkpoints: Path) -> Path | None:
        """Copy the newest complete set here; one that arrives damaged is passed over with a warning. None if there is none.

        Raises:
            CheckpointError: there are complete sets, and none arrives whole.
        """
        damage = []
        for name in sorted(self.complete(), reverse=True):
            try:
                return self.fetch_one(name, checkpoints)
            except CheckpointError as error:
                damage.append(str(error))
                _log.warning("passed over %s/%s: %s", self.url, name, error)
        if damage:
            raise CheckpointError(f"no checkpoint under {self.url} arrives whole:\n  " + "\n  ".join(damage))
        return None

    def fetch_one(self, name: str, checkpoints: Path) -> Path:
        """Copy one set here, compare it with its hashes, and make it the local run's newest checkpoint.

        Raises:
            CheckpointError: it cannot be read, or arrives damaged.
        """
        arriving = checkpoints / f".arriving-{name}"
        shutil.rmtree(arriving, ignore_errors=True)
        record = self._record(name)
        assert record is not None, "listed as complete"

        def get(file: str) -> None:
            (arriving / file).parent.mkdir(parents=True, exist_ok=True)
            self._files.get_file(f"{self._root}/{name}/{file}", str(arriving / file))

        try:
            with ThreadPoolExecutor(_AT_ONCE) as threads:
                list(threads.map(get, [*record.files, STATE]))
        except Exception as error:
            raise CheckpointError(f"cannot fetch {self.url}/{name}: {type(error).__name__}: {error}") from error
        verify(arriving)
        folder = checkpoints / name
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(arriving, folder)
        sync(checkpoints)
        replace_text(checkpoints / POINTER, name + "\n")
        return folder
