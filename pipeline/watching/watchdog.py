"""Noticing that another rank is gone or stands still, saying which, and leaving in time. A thread per rank.

    watchdog = Watchdog(world, cfg.engine, pace.where)
    with watchdog:
        ...                      # training

What can happen, and what each rank then does:

    a rank dies (killed, out of memory, its node lost)    its beats stop; the others name it and leave with ``RankLost``
    a rank fails with an error of its own                  it says so on the way out; the others leave with the same exit code
    a step takes longer than ``engine.stall_seconds``      every rank writes its stacks; the rank that is late is named
    ... than the collective time-out                       the rank leaves, also where it hangs in native code
    the launcher is gone (torchrun's agent was killed)     the rank leaves: nobody would ever end it

Ranks show that they are alive in the store at which they met. Each one watches its neighbour only, and whoever misses one
tells all, so a rank makes three small requests per beat, however many ranks there are. A beat says how far the rank is, and
whether its main thread is inside a collective: the late rank is the one that is least far and does not wait for others.
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from types import TracebackType
from typing import Any

import torch

from pipeline import dist
from pipeline.config import EngineConfig
from pipeline.dist import World
from pipeline.errors import RankLost
from pipeline.watching.pace import Where

MISSED_BEATS = 6
"""A rank without a sign for so many beats is taken for lost."""
NOTICE = "notice"
"""The store's key under which the first one to know says what happened."""
PATIENT = ("setup", "evaluate")
"""Phases that are as long as they are. A save may take long too, which is worth a report, but no reason to leave."""
WAITING_IN = (os.path.join("torch", "distributed"), f"{os.sep}deepspeed{os.sep}", os.path.join("losses", "gather.py"))
"""Files in which a main thread waits for others."""


def meet(world: World, device: torch.device, cfg: EngineConfig) -> None:
    """Join the process group; from here on a watchdog can do its work.

    Raises:
        RankLost: not all ranks came in time. Which one is missing nobody can know before they have met.
    """
    try:
        dist.init(world, device, cfg.collective_timeout_seconds)
    except (RuntimeError, OSError) as error:  # torch's distributed errors are RuntimeErrors
        said = str(error).strip().splitlines()
        raise RankLost(
            f"rank {world.rank} of {world.size} did not meet all others at {world.master or 'this process'} within "
            f"{cfg.collective_timeout_seconds} s (engine.collective_timeout_seconds): "
            f"{said[0] if said else type(error).__name__}"
        ) from error


class Watchdog:
    """The thread, and what the main thread asks it when something failed."""

    def __init__(self, world: World, cfg: EngineConfig, where: Callable[[], Where]) -> None:
        """``where`` is called from the thread."""
        self._world, self._cfg, self._where = world, cfg, where
        self._store: Any = None
        self._main = threading.main_thread().ident or 0
        self._parent = os.getppid()
        self._stop, self._noticed = threading.Event(), threading.Event()
        self._notice, self._exit_code = "", RankLost.exit_code
        self._count = 0
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        """Start watching.

        Raises:
            RankLost: the others were there a moment ago, and one of them is not any more.
        """
        try:
            self._store = dist.own_store()
        except (RuntimeError, OSError) as error:  # torch's distributed errors are RuntimeErrors
            said = str(error).strip().splitlines()
            raise RankLost(
                f"rank {self._world.rank} met the others, and then one of them was gone, most likely rank 0, which serves the "
                f"rendezvous at {self._world.master}: {said[0] if said else type(error).__name__}"
            ) from error
        if self._store is not None:
            self._store.set_timeout(datetime.timedelta(seconds=self._patience))
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop watching. An error that another rank caused becomes ``RankLost`` with that rank's name.

        Raises:
            RankLost: instead of ``error``, where that is only the echo of a rank that is gone.
        """
        echo = self._world.size > 1 and _from_a_collective(trace)
        # Whoever was left in a collective fails first, and learns why a little later.
        if echo and self._noticed.wait(self._patience + 6 * self._cfg.heartbeat_seconds):
            self._stop.set()
            lost = RankLost(self._notice)
            lost.exit_code = self._exit_code
            raise lost from error
        self._stop.set()
        if self._store is None:
            return
        if error is not None and not isinstance(error, KeyboardInterrupt):
            said = str(error).strip().splitlines()
            text = f"rank {self._world.rank} failed: {said[0] if said else type(error).__name__}"
            self._tell(text, getattr(error, "exit_code", 1))
        with contextlib.suppress(RuntimeError, OSError):  # the store may be gone first: rank 0 serves it
            self._store.set(_key(self._world.rank), "done")
            if error is not None and self._world.is_main:
                self._linger()

    def _linger(self) -> None:
        """Rank 0 takes the store with it: let the others read why."""
        deadline = time.monotonic() + 3 * self._cfg.heartbeat_seconds
        others = [rank for rank in range(self._world.size) if rank != self._world.rank]
        while time.monotonic() < deadline and any(self._read(rank) != "done" for rank in others):
            time.sleep(0.05)

    @property
    def _patience(self) -> float:
        return MISSED_BEATS * self._cfg.heartbeat_seconds

    def _watch(self) -> None:
        neighbour, seen, seen_at = (self._world.rank + 1) % self._world.size, "", time.monotonic()
        answered_at, dumped_at = time.monotonic(), -1
        while not self._stop.wait(self._cfg.heartbeat_seconds):
            if self._launcher_is_gone():
                self._leave(f"the launcher of rank {self._world.rank} is gone; leaving without it", at_once=True)
            where = self._where()
            if where.phase not in PATIENT and where.seconds > self._cfg.stall_seconds and dumped_at != where.order:
                dumped_at = where.order
                self._report_stall(where)
            if where.may_stall and where.seconds > self._cfg.collective_timeout_seconds + self._patience:
                self._leave(f"rank {self._world.rank} stands still in step {where.step}, {where.phase}", at_once=True)
            if self._store is None:
                continue
            try:
                self._beat(where)
                if self._store.check([NOTICE]):
                    code, _, text = self._store.get(NOTICE).decode().partition(" ")
                    self._leave(text, int(code))
                    return
                beat = self._read(neighbour)
                answered_at = time.monotonic()
            except (RuntimeError, OSError):  # torch's store errors are RuntimeErrors
                if time.monotonic() - answered_at > self._patience:
                    self._leave(f"rank 0 or its launcher, which serve the store at {self._world.master}, do not answer")
                    return
                continue
            if beat != seen:
                seen, seen_at = beat, time.monotonic()
            elif beat != "done" and time.monotonic() - seen_at > self._patience:
                seen_at = time.monotonic()
                with contextlib.suppress(RuntimeError, OSError):  # a store that is gone shows at the next beat
                    if missing := self._missing():
                        self._tell(missing)

    def _beat(self, where: Where) -> None:
        self._count += 1
        mine = {
            **asdict(where),
            "count": self._count,
            "waiting": self._waiting(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        self._store.set(_key(self._world.rank), json.dumps(mine))

    def _waiting(self) -> bool:
        """Whether the main thread is inside a collective: the function it is in belongs to those who wait for others."""
        frame = sys._current_frames().get(self._main)
        return frame is not None and any(part in frame.f_code.co_filename for part in WAITING_IN)

    def _read(self, rank: int) -> str:
        """A rank's last beat as it was written; empty before its first."""
        return self._store.get(_key(rank)).decode() if self._store.check([_key(rank)]) else ""

    def _missing(self) -> str:
        """Who gives no sign of life, as a message; empty if all do after all.

        Takes two beats more, to see who else is gone: a lost node takes all its ranks.
        """
        before = [self._read(rank) for rank in range(self._world.size)]
        self._stop.wait(2.5 * self._cfg.heartbeat_seconds)
        lost = [
            rank
            for rank in range(self._world.size)
            if rank != self._world.rank and before[rank] != "done" and self._read(rank) == before[rank]
        ]
        if not lost:
            return ""
        described = ", ".join(_describe(rank, before[rank]) for rank in lost)
        return f"no sign of life for {self._patience:g} s from {described}; the others leave, and a new start continues"

    def _tell(self, notice: str, exit_code: int = RankLost.exit_code) -> None:
        """Let everybody know, and with which code to leave, unless somebody else was first."""
        with contextlib.suppress(RuntimeError, OSError):
            self._store.compare_set(NOTICE, "", f"{exit_code} {notice}")

    def _leave(self, notice: str, exit_code: int = RankLost.exit_code, *, at_once: bool = False) -> None:
        """Hand the notice to the main thread; where that does not come back, end the process."""
        self._notice, self._exit_code = notice, exit_code
        self._noticed.set()
        if at_once or not self._stop.wait(2 * self._cfg.heartbeat_seconds + 1):
            print(f"error: {notice}", file=sys.stderr, flush=True)
            os._exit(exit_code)

    def _launcher_is_gone(self) -> bool:
        """Whether the process that started this one has died; who was started with nohup is meant to outlive it."""
        launched = self._world.source in ("torchrun", "slurm", "env://") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
        return launched and os.getppid() != self._parent

    def _report_stall(self, where: Where) -> None:
        """Write the stacks of this rank, and who is late."""
        late = f"rank {self._world.rank}"
        if self._store is not None:
            with contextlib.suppress(RuntimeError, OSError):
                self._beat(where)
                beats = {rank: self._read(rank) for rank in range(self._world.size)}
                rank = min((rank for rank, beat in beats.items() if beat != "done"), key=lambda rank: _progress(beats[rank]))
                late = _describe(rank, beats[rank])
        print(
            f"error: rank {self._world.rank} has been in step {where.step}, {where.phase}, for {where.seconds:.0f} s "
            f"(engine.stall_seconds); the late one is {late}. Stacks of rank {self._world.rank}:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)


def _key(rank: int) -> str:
    return f"beat/{rank}"


def _from_a_collective(trace: TracebackType | None) -> bool:
    """Whether an error came out of talking to other ranks."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)]
    return any(part in file for file in files for part in WAITING_IN)


def _progress(beat: str) -> tuple[int, bool]:
    """How far a rank is: phases entered, then whether it waits for others; less is later."""
    at: dict[str, Any] = json.loads(beat or "{}")
    return at.get("order", 0), at.get("waiting", False)


def _describe(rank: int, beat: str) -> str:
    """A rank by name, with where its last beat saw it."""
    if not beat:
        return f"rank {rank} (which never showed any)"
    at: dict[str, Any] = json.loads(beat)
    return f"rank {rank} (host {at['host']}, process {at['pid']}, last seen in step {at['step']}, {at['phase']})"
