"""Saving beside the training: a step waits for the copy to host memory; writing, hashing and publishing happen in a thread.

    saver = Saver(cfg.checkpoint, cfg.run_dir, engine, world=world, generation=generation)
    if due(cfg.checkpoint, ...):
        saver.begin(state)          # every rank; returns when the state is copied
    folder = saver.poll()           # every rank, once per step; a folder once, when a checkpoint is complete
    folder = saver.wait()           # before something needs the last one

Every rank writes its own shard; when all have, rank 0 puts the checkpoint together and makes it visible (``publish.py``).
Ranks exchange a few bytes per step for that, and only while a checkpoint is being written. At most one is: ``begin`` waits for
the one before. A failed write is reported on every rank at the next ``poll``, counted, and cleared away; the training goes on
and older checkpoints are untouched. A thread and not a process: the bytes are written from the memory that they were copied to,
writing and hashing leave Python's lock to the training, and nothing is forked while a GPU is in use.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from pipeline import dist
from pipeline.checkpoint.files import Entry
from pipeline.checkpoint.generation import Generation
from pipeline.checkpoint.publish import Draft, copy_out, note_figures, publish, retain, start
from pipeline.checkpoint.remote import Remote
from pipeline.checkpoint.shards import Staging
from pipeline.checkpoint.state import Record, TrainState
from pipeline.config import CheckpointConfig
from pipeline.dist import World
from pipeline.errors import CheckpointError, Superseded
from pipeline.pieces import Saveable

_log = logging.getLogger("unisphere")


class Saver:
    """Writes one run's checkpoints."""

    def __init__(
        self,
        cfg: CheckpointConfig,
        run_dir: Path,
        engine: Saveable,
        *,
        world: World,
        generation: Generation | None = None,
    ) -> None:
        """Prepare; nothing is written yet. A thread makes the memory for the first copy ready meanwhile.

        Args:
            generation: this start's claim on the folder; None for a single process that nobody competes with.
        """
        self._cfg, self._engine, self._world = cfg, engine, world
        self._checkpoints = run_dir / "checkpoints"
        self._generation = generation or Generation(None, 0)
        self._remote = Remote(cfg.upload, run_dir.name) if cfg.upload is not None and world.is_main else None
        self._staging = Staging()
        self._draft: Draft | None = None
        self._work: Future[Any] | None = None
        """What this rank's thread is doing for the draft; None where it has nothing to do."""
        self._publishing = False
        self._upload: Future[None] | None = None
        self._to_upload: tuple[Path, Record] | None = None
        """The newest checkpoint whose copy has not begun; one that is overtaken while it waits is not copied."""
        self._gone: list[str] = []
        self._begun = 0.0
        self._figures = {"failures": 0.0, "upload_failures": 0.0, "stall_seconds": 0.0, "write_seconds": 0.0}
        self._ready: Future[None] | None = None
        """Host memory for the first copy: a thread touches every page of it, so that no step waits for that."""
        if not engine.on_disk:  # else even looking at the state means to read all of it
            pieces = engine.snapshot().pieces
            self._ready = _in_thread(lambda: self._staging.reserve(pieces), waited_for=True)
        self.last_error = ""
        """Why the last save failed; empty after one that did not."""

    def begin(self, state: TrainState) -> None:
        """Copy the state and start writing it; waits for an unfinished save before. Every rank, together.

        Raises:
            Superseded: on every rank, if a newer start owns the run's folder.
        """
        self.wait()
        started = time.perf_counter()
        snapshot = self._engine.snapshot()
        record = Record(state, self._world.size, self._generation.number, snapshot.scalars, {})
        draft = Draft.of(self._checkpoints, record, snapshot)
        if failure := self._on_main(lambda: self._start(draft)):
            self._failed(draft, failure)
            return
        if self._ready is not None:
            wait([self._ready])  # memory that it could not have is asked for again below
            self._ready = None
        self._staging.copy(snapshot.pieces)
        shard = draft.writing / draft.shard(self._world.rank)
        self._draft, self._publishing = draft, False
        self._work = _in_thread(lambda: self._write(shard))
        self._begun = time.perf_counter()
        self._figures["stall_seconds"] = self._begun - started
        if not self._cfg.background:
            self.wait()

    def _write(self, shard: Path) -> Entry:
        shard.parent.mkdir(parents=True, exist_ok=True)  # rank 0 made it; on another node this makes it seen
        return self._staging.write(shard)

    def _start(self, draft: Draft) -> None:
        self._generation.check()
        start(draft)

    def poll(self) -> Path | None:
        """Look at the save in progress; every rank, together. Costs nothing while there is none.

        Returns:
            The checkpoint's folder, once, when it has become complete.

        Raises:
            Superseded: on every rank, if a newer start owns the run's folder.
        """
        self._look_at_upload()
        if self._draft is None:
            return None
        statuses = dist.all_gather_object(_status(self._work))
        if any(status is None for status in statuses):
            return None
        draft, failure = self._draft, next((f"rank {r}: {s}" for r, s in enumerate(statuses) if isinstance(s, _Failure)), "")
        superseded = any(isinstance(status, _Failure) and status.superseded for status in statuses)
        if failure:
            self._draft = self._work = None
            self._failed(draft, failure)
            if superseded:
                raise Superseded(failure)
            return None
        if not self._publishing:
            self._publishing = True
            self._work = _in_thread(lambda: self._publish(draft, statuses)) if self._world.is_main else None
            return None
        self._draft = self._work = None
        return self._done(*statuses[0])

    def _publish(self, draft: Draft, entries: list[Entry]) -> tuple[Path, Record, list[str]]:
        """Rank 0's thread, when every shard is written."""
        folder, record = publish(draft, entries, self._generation.check)
        try:
            return folder, record, retain(self._checkpoints, self._cfg)
        except OSError as error:
            _log.warning("older checkpoints could not be deleted: %s", error)
            return folder, record, []

    def _done(self, folder: Path, record: Record, gone: list[str]) -> Path:
        self._figures["write_seconds"] = time.perf_counter() - self._begun
        self.last_error = ""
        if self._world.is_main:
            _log.info("saved %s (%.1f s beside the training)", folder.name, self._figures["write_seconds"])
            self._to_upload, self._gone = (folder, record), self._gone + gone
            self._look_at_upload()
        return folder

    def wait(self) -> Path | None:
        """Until nothing is being written; what ``poll`` would have returned. Every rank, together."""
        folder = None
        while self._draft is not None:
            folder = self.poll()
            if self._draft is not None:
                time.sleep(0.005)
        return folder

    def save(self, state: TrainState) -> Path:
        """Save and wait: the last save of a run, or one that a signal asked for.

        Raises:
            CheckpointError: on every rank, if it could not be written; older checkpoints are untouched.
        """
        self.begin(state)
        folder = self.wait()
        if self.last_error:
            raise CheckpointError(self.last_error)
        return folder or self._checkpoints / f"step-{state.step:08d}"  # already finished within ``begin``

    def close(self) -> None:
        """Wait for everything, copies elsewhere too. Every rank, together."""
        self.wait()
        while self._upload is not None:
            time.sleep(0.005)
            self._look_at_upload()

    def note(self, step: int, figures: dict[str, float]) -> None:
        """Remember an evaluation of a checkpoint, by which ``checkpoint.best_metric`` chooses; rank 0 writes."""
        if self._world.is_main:
            note_figures(self._checkpoints, step, figures)

    def metrics(self) -> dict[str, float]:
        """For the log: saves and copies that failed in this start, the last save's stall and writing time, in seconds."""
        return {f"checkpoint/{name}": value for name, value in self._figures.items()}

    def _failed(self, draft: Draft, failure: str) -> None:
        self._figures["failures"] += 1
        self.last_error = f"cannot write {draft.folder}: {failure}"
        if self._world.is_main:
            shutil.rmtree(draft.writing, ignore_errors=True)
            _log.error("%s; training goes on, older checkpoints are untouched", self.last_error)

    def _look_at_upload(self) -> None:
        if self._upload is not None and self._upload.done():
            error, self._upload = self._upload.exception(), None
            if error is not None:
                self._figures["upload_failures"] += 1
                _log.error("%s; the next checkpoint will be copied", error)
        if (remote := self._remote) is not None and self._upload is None and self._to_upload is not None:
            (folder, record), gone = self._to_upload, self._gone
            self._to_upload, self._gone = None, []
            self._upload = _in_thread(lambda: copy_out(remote, folder, record, gone, self._generation.check))

    def _on_main(self, action: Callable[[], None]) -> str:
        """Run ``action`` on rank 0; what went wrong there, on every rank."""
        outcome: _Failure | None = None
        if self._world.is_main:
            try:
                action()
            except (OSError, CheckpointError) as error:
                outcome = _Failure.of(error)
        outcome = dist.broadcast_object(outcome)
        if outcome is not None and outcome.superseded:
            raise Superseded(outcome)
        return outcome or ""


class _Failure(str):
    """A failed save's message, as ranks exchange it."""

    superseded = False

    @staticmethod
    def of(error: BaseException) -> _Failure:
        failure = _Failure(str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}")
        failure.superseded = isinstance(error, Superseded)
        return failure


def _status(work: Future[Any] | None) -> Any:
    """None while there is work, a ``_Failure``, or the result; a rank without work is done."""
    if work is None:
        return ()
    if not work.done():
        return None
    error = work.exception()
    return work.result() if error is None else _Failure.of(error)


def _in_thread(action: Callable[[], Any], *, waited_for: bool = False) -> Future[Any]:
    """Run ``action`` in a thread of its own, which does not keep a dying process alive; unless it is ``waited_for``.

    A thread inside torch aborts an interpreter that ends around it (C++ cannot be unwound), so what is brief is waited for.
    """
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="checkpoint", daemon=not waited_for).start()
    return future
