"""Who keeps the training waiting: a board on which loader processes write what they are reading. Layer 2.

    board = Board(num_workers)                      # shared with the workers, which are forked after it
    board.at(worker, step, shard, key)              # in a worker, before each read; microseconds
    with StallWatch(board, rank, stall_seconds=60, limit_seconds=300) as dog:
        with dog.waiting(step):                     # in the training process, around the wait for a batch
            batch = next(batches)

A wait longer than ``stall_seconds`` is reported, naming the rank, the worker, and the shard and sample it is at. A worker that
takes longer than ``limit_seconds`` is killed: the loader then builds the same batch again with new workers, because a worker
that hangs in a read (a dead connection, a lost mount) rarely comes back by itself.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

log = logging.getLogger(__name__)

LINE_BYTES = 512
_HEAD = struct.Struct("<dqqH")
IDLE = -1
"""Step of a worker that waits for work."""


@dataclass(frozen=True)
class Line:
    """What one worker wrote last: its process, the step it works for, where it is, and since when (monotonic seconds)."""

    worker: int
    pid: int
    step: int
    place: str
    since: float


class Board:
    """One line per worker in memory that forked processes share; each writes its own, whoever reads sees the latest."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._memory = mmap.mmap(-1, LINE_BYTES * max(1, num_workers))

    def at(self, worker: int, step: int, place: str = "") -> None:
        """Say that ``worker``, this process, works for ``step`` and is at ``place``."""
        text = place.encode("utf-8", "replace")[-(LINE_BYTES - _HEAD.size) :]
        head = _HEAD.pack(time.monotonic(), os.getpid(), step, len(text))
        start = worker * LINE_BYTES
        self._memory[start : start + _HEAD.size + len(text)] = head + text

    def lines(self) -> list[Line]:
        """What every worker that has started wrote last."""
        found = []
        for worker in range(self.num_workers):
            line = self._memory[worker * LINE_BYTES : (worker + 1) * LINE_BYTES]
            since, pid, step, length = _HEAD.unpack_from(line)
            text = line[_HEAD.size : _HEAD.size + length].decode("utf-8", "replace")
            if pid:
                found.append(Line(worker, pid, step, text, since))
        return found


class StallWatch:
    """Watches, from a thread, how long this rank waits for batches. See the module's docstring."""

    def __init__(self, board: Board, rank: int, *, stall_seconds: float, limit_seconds: float) -> None:
        self._board, self._rank = board, rank
        self._stall, self._limit = stall_seconds, limit_seconds
        self._waiting: tuple[int, float] | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="data watchdog")
        self.killed: list[str] = []
        """What was said about each worker that was killed."""

    def __enter__(self) -> StallWatch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    @contextmanager
    def waiting(self, step: int) -> Iterator[None]:
        """Marks that the training waits for the batch of ``step``."""
        self._waiting = (step, time.monotonic())
        try:
            yield
        finally:
            self._waiting = None

    def report(self, step: int, seconds: float) -> str:
        """One line for people: what this rank waits for, and what each of its workers is doing."""
        now = time.monotonic()
        doing = []
        for line in self._board.lines():
            what = "idle" if line.step == IDLE else f"on step {line.step + 1} at {line.place}"
            doing.append(f"worker {line.worker} (pid {line.pid}) {what} for {now - line.since:.0f} s")
        return f"rank {self._rank} has waited {seconds:.0f} s for the data of step {step + 1}: " + (
            "; ".join(doing) or "no worker has started"
        )

    def _watch(self) -> None:
        reported = self._stall
        while not self._done.wait(min(1.0, self._stall / 4, self._limit / 4)):
            waiting = self._waiting
            if waiting is None:
                reported = self._stall
                continue
            step, start = waiting
            seconds = time.monotonic() - start
            if seconds > reported:
                log.warning("%s", self.report(step, seconds))
                reported *= 2
            if seconds > self._limit:
                self._kill(step, seconds)

    def _kill(self, step: int, seconds: float) -> None:
        """End the worker that has the batch everybody waits for, or all where none says that it has."""
        lines = [line for line in self._board.lines() if line.pid != os.getpid()]
        late = [line for line in lines if line.step == step] or lines
        if late:
            self.killed.append(self.report(step, seconds))
            self._waiting = (step, time.monotonic())
        for line in late:
            log.error("killing worker %d (pid %d): %s", line.worker, line.pid, self.killed[-1])
            try:
                os.kill(line.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
