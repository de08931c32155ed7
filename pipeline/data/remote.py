"""Files behind URLs, through fsspec: ranged reads side by side, each retried from its first missing byte. Layer 1.

    source = RemoteFiles({"s3": {"endpoint_url": "http://store:9000"}}, attempts=8)
    source.prepare([(url, 0, 65536), (url, 70000, 8000)])      # neighbours become one request; requests run side by side
    source.read(url, 70000, 8000)                              # waits for what was prepared, or asks now

A network place is slow to answer and fast once it does, so everything is arranged to keep many requests under way: the
reads of a whole batch are prepared together, and a large read is cut into parts. What fails is tried again after a pause
that doubles and is drawn at random (so that a thousand processes do not come back in step); a part that arrived is never
asked for again. What cannot succeed (no such file, no permission) is not retried.

An instance may be used before and after a fork, and sent to another process: connections belong to the process that made
them. Several threads may use it.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, TypeVar, cast

from pipeline.data.files import Range

T = TypeVar("T")

log = logging.getLogger(__name__)

PART_BYTES = 8 << 20
MAX_GAP_BYTES = 64 << 10
"""Ranges this near to each other become one request: the bytes between them cost less than asking twice."""
CONNECTIONS = 16
MAX_PREPARED_BYTES = 256 << 20
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 20.0
QUIET = {"skip_instance_cache": True, "use_listings_cache": False}
CLIENTS: dict[str, dict[str, Any]] = {"s3": {"config_kwargs": {"retries": {"total_max_attempts": 1}}}}
"""Options by protocol under those of the user: clients that try again by themselves would multiply with us."""
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, TypeError, ImportError)
"""What trying again cannot cure."""
BUSY = (408, 425, 429)
"""HTTP answers from 400 to 499 that only mean: later."""


def pauses(attempts: int, rng: random.Random) -> list[float]:
    """Seconds to wait between ``attempts`` tries: doubling, bounded, and drawn from the upper half of each step."""
    steps = [min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**number) for number in range(attempts - 1)]
    return [step * rng.uniform(0.5, 1.0) for step in steps]


def _is_final(error: Exception) -> bool:
    """Whether trying again cannot help. fsspec's HTTP client calls a file missing whatever went wrong when it asked for its
    size, so there the status of the answer decides."""
    if isinstance(error, FileNotFoundError) and type(error.__cause__).__module__.startswith("aiohttp"):
        status = getattr(error.__cause__, "status", 0)
        return 400 <= status < 500 and status not in BUSY
    return isinstance(error, FINAL)


def _exactly(system: Any) -> dict[str, str]:
    """What keeps a file system from reading further than asked: those without ranged reads of their own (``hf://``) go through
    a buffered file, which would fetch 5 MB for every sample."""
    from fsspec import AbstractFileSystem

    inherited = getattr(system.cat_file, "__func__", None) is AbstractFileSystem.cat_file
    return {"cache_type": "none"} if inherited else {}


class RemoteFiles:
    """Files behind URLs.

    Args:
        options: of fsspec's file systems, by protocol.
        attempts: tries for each part of a read.
        sleep: how to wait between them.
    """

    def __init__(self, options: Mapping[str, Any], *, attempts: int = 8, sleep: Callable[[float], None] = time.sleep) -> None:
        self._options, self._attempts, self._sleep = dict(options), attempts, sleep
        self.num_retries = 0
        self._reset()

    def _reset(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._systems: dict[str, Any] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._ready: OrderedDict[Range, tuple[Future[bytes], int]] = OrderedDict()
        self._num_prepared = 0

    def size(self, path: str) -> int:
        """Bytes of the file."""
        size = self._try(path, lambda: self._system(path).info(path).get("size"))
        if size is None:
            raise OSError(f"{path}: the server does not say how large it is, which ranged reads need")
        return int(size)

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Bytes ``[offset, offset + size)``; fewer only when the file ends before."""
        self._after_fork()
        prepared = self._ready.pop((path, offset, size), None)
        if prepared is None:
            return self._fetch(path, offset, size)
        future, start = prepared
        self._num_prepared -= size
        return future.result()[start : start + size]

    def stream(self, path: str) -> BinaryIO:
        """The whole file, to be read forwards once, its next part always under way."""
        return cast(BinaryIO, io.BufferedReader(_Sequential(self, path, self.size(path)), PART_BYTES))

    def names(self, folder: str) -> list[str]:
        """Names of the entries of a folder, where the place can list them."""
        entries = self._try(folder, lambda: self._system(folder).ls(folder, detail=False))
        return [str(entry).rstrip("/").rpartition("/")[2] for entry in entries]

    def prepare(self, ranges: Iterable[Range]) -> None:
        """Ask for these ranges, neighbours together; ``read`` of one of them then waits for its answer."""
        self._after_fork()
        run: list[Range] = []
        for item in sorted(set(ranges) - set(self._ready)):
            self._num_prepared += item[2]
            if run and (item[0] != run[-1][0] or not self._joins(run, item)):
                self._submit(run)
                run = []
            run.append(item)
        if run:
            self._submit(run)
        while self._num_prepared > MAX_PREPARED_BYTES and self._ready:  # the oldest were prepared and never asked for
            self._num_prepared -= self._ready.popitem(last=False)[0][2]

    def keep(self, path: str, num_bytes: int, sha256: str) -> None:
        """Nothing: without a cache, only what is read is fetched."""

    def submit(self, path: str, offset: int, size: int) -> Future[bytes]:
        """Start fetching one part."""
        self._after_fork()
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="remote")
        return self._pool.submit(self._part, path, offset, size)

    @staticmethod
    def _joins(run: list[Range], item: Range) -> bool:
        end = run[-1][1] + run[-1][2]
        return item[1] - end <= MAX_GAP_BYTES and item[1] + item[2] - run[0][1] <= PART_BYTES

    def _submit(self, run: list[Range]) -> None:
        path, start, _ = run[0]
        stop = max(offset + size for _, offset, size in run)
        future = self.submit(path, start, stop - start)
        for item in run:
            self._ready[item] = (future, item[1] - start)

    def _fetch(self, path: str, offset: int, size: int) -> bytes:
        if size <= PART_BYTES:
            return self._part(path, offset, size)
        starts = range(offset, offset + size, PART_BYTES)
        parts = [self.submit(path, start, min(PART_BYTES, offset + size - start)) for start in starts]
        return b"".join(part.result() for part in parts)

    def _part(self, path: str, offset: int, size: int) -> bytes:
        """One request, or as many as it takes: what arrived is kept, and only the rest is asked for again."""
        data = b""

        def more() -> bytes:
            start = offset + len(data)
            system = self._system(path)
            got = cast(bytes, system.cat_file(path, start=start, end=offset + size, **_exactly(system)))
            if len(got) > offset + size - start:
                raise ValueError(f"{path}: asked for {size:,} bytes and got {len(got):,}; the server ignores ranges")
            return got

        while len(data) < size:
            got = self._try(path, more)
            if not got:
                break
            data += got
        return data

    def _try(self, path: str, ask: Callable[[], T]) -> T:
        waits = pauses(self._attempts, random.Random())
        while True:
            try:
                return ask()
            except Exception as error:  # what clients raise has no common base: OSError, ClientError, TimeoutError, ...
                if _is_final(error):
                    if isinstance(error, OSError):
                        raise
                    raise OSError(f"{path}: {error}") from error
                if not waits:
                    what = f"{type(error).__name__}: {error}"
                    raise OSError(f"{path} could not be read in {self._attempts} attempts: {what}") from error
                self.num_retries += 1
                log.debug("%s: %s; trying again", path, error)
                self._sleep(waits.pop(0))

    def _system(self, path: str) -> Any:
        """The file system of this process for the path's protocol."""
        import fsspec

        self._after_fork()
        protocol = path.partition("://")[0]
        with self._lock:
            if protocol not in self._systems:
                system = fsspec.filesystem(protocol, **(QUIET | CLIENTS.get(protocol, {}) | self._options.get(protocol, {})))
                if hasattr(system, "retries"):
                    system.retries = 1  # s3fs's own
                self._systems[protocol] = system
            return self._systems[protocol]

    def _after_fork(self) -> None:
        if self._pid != os.getpid():
            self._reset()

    def __reduce__(self) -> tuple[Callable[[], RemoteFiles], tuple[()]]:
        return functools.partial(RemoteFiles, self._options, attempts=self._attempts), ()


class _Sequential(io.RawIOBase):
    """A remote file as a forward stream; while one part is consumed the next one is under way."""

    def __init__(self, files: RemoteFiles, path: str, size: int) -> None:
        self._files, self._path, self._size = files, path, size
        self._at, self._next = 0, self._ask(0)

    def _ask(self, start: int) -> Future[bytes] | None:
        return self._files.submit(self._path, start, min(PART_BYTES, self._size - start)) if start < self._size else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._next is None:
            return 0
        data = self._next.result()
        size = min(len(data), len(buffer))
        buffer[:size] = data[:size]
        self._at += size
        if size < len(data):  # a small buffer: the rest of this part stays the next one
            rest: Future[bytes] = Future()
            rest.set_result(data[size:])
            self._next = rest
        else:
            self._next = self._ask(self._at) if data else None
        return size
