"""Running a job on this machine: start it through submitit, show rank 0's output, wait, and agree on one exit code.

Submitit's own waiting would hold on until every process ended, and a rank that died leaves the others in a collective.
Here the job ends a few seconds after its first failure. No process outlives the launcher, unless SIGKILL ends that one.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TextIO

from pipeline.errors import LaunchError
from slurm.job import Job
from slurm.task import TrainTask, exit_file

if TYPE_CHECKING:
    import submitit

GRACE_SECONDS = 5.0
"""How long the other ranks may take to report their own failure after the first one."""
TAIL_LINES = 20


def free_port() -> int:
    """A port that nothing listens on at this moment. Between now and its use another program could still take it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_local(job: Job) -> int:
    """Start all processes here, show rank 0's output, wait, and return the first failing rank's exit code (or 0)."""
    import submitit

    executor = submitit.LocalExecutor(_new_folder(job))
    executor.update_parameters(
        timeout_min=job.minutes,
        tasks_per_node=job.tasks_per_node,
        gpus_per_node=job.gpus_per_node,
        visible_gpus=_visible_gpus(job.gpus_per_node, os.environ.get("CUDA_VISIBLE_DEVICES")),
    )

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, stop)
    submitted = executor.submit(TrainTask(job.command, port=free_port()))
    try:
        logs = f"{submitted.paths.folder}/{submitted.job_id}_RANK_log.out and .err"
        print(f"started {job.world_size} processes · logs: {logs}", flush=True)
        codes = _wait(submitted, job.world_size)
    finally:
        signal.signal(signal.SIGTERM, previous)
        _stop(submitted)
    return _report(submitted, codes)


def _new_folder(job: Job) -> Path:
    """Process numbers come again, so submitit's job id (one of them) is not enough to keep two launches apart."""
    return job.folder / f"local-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


def _visible_gpus(gpus_per_node: int, visible: str | None) -> tuple[int, ...]:
    """Submitit counts GPUs from 0; a narrower choice that the shell made stays the choice."""
    if not gpus_per_node or visible is None:
        return ()
    if not all(part.strip().isdigit() for part in visible.split(",")):
        raise LaunchError(f"CUDA_VISIBLE_DEVICES = {visible!r}: give GPU numbers such as 2,3, or unset it")
    chosen = tuple(int(part) for part in visible.split(","))
    if len(chosen) < gpus_per_node:
        raise LaunchError(f"--gpus-per-node {gpus_per_node}, but CUDA_VISIBLE_DEVICES = {visible} shows {len(chosen)}")
    return chosen


def _wait(submitted: submitit.Job[None], size: int) -> dict[int, int]:
    """Wait until every rank ended, or until ``GRACE_SECONDS`` after one failed; returns the exit codes known by then.

    A rank that died leaves the others in a collective that only its time limit would end.
    """
    paths = submitted.task(0).paths
    output, errors = Follower(paths.stdout, sys.stdout), Follower(paths.stderr, sys.stderr)
    deadline = None
    while True:
        ended = submitted.done()
        output.copy_new()
        errors.copy_new()
        codes = _codes(submitted, size)
        if ended:
            return codes
        if deadline is None and any(codes.values()):
            deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            return codes
        time.sleep(0.2)


def _stop(submitted: submitit.Job[None]) -> None:
    """End what still runs: SIGTERM through submitit's controller, whose process number is the job id; then by force."""
    if submitted.done():
        return
    os.kill(int(submitted.job_id), signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while not submitted.done() and time.monotonic() < deadline:
        time.sleep(0.1)
    if not submitted.done():
        submitted.cancel()
        submitted.wait()


class Follower:
    """Copies what is added to a growing text file, as ``tail -f`` does; the file may not exist yet."""

    def __init__(self, path: Path, target: TextIO) -> None:
        self.path, self.target, self.offset = path, target, 0

    def copy_new(self) -> None:
        """Write everything that was added since the last call."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.offset)
            added = file.read()
        self.offset += len(added)
        if added:
            self.target.write(added.decode("utf-8", errors="replace"))
            self.target.flush()


def _codes(submitted: submitit.Job[None], size: int) -> dict[int, int]:
    """Exit code of every rank that ended."""
    notes = {rank: exit_file(submitted.task(rank).paths) for rank in range(size)}
    return {rank: int(note.read_text(encoding="utf-8")) for rank, note in notes.items() if note.exists()}


def _report(submitted: submitit.Job[None], codes: dict[int, int]) -> int:
    """Say which ranks failed, show the end of the first one's log, and return that one's exit code (0: none failed)."""
    size = submitted.num_tasks
    failed = {rank: codes[rank] for rank in sorted(codes) if codes[rank]}
    lost = [rank for rank in range(size) if rank not in codes]
    if not failed and not lost:
        return 0
    rank, code = next(iter(failed.items())) if failed else (lost[0], 1)
    what = ", ".join([f"rank {r} exited with {c}" for r, c in failed.items()] + [f"rank {r} was stopped" for r in lost])
    print(f"error: {what}", file=sys.stderr)
    path = submitted.task(rank).paths.stderr
    if rank != 0 and path.exists():  # rank 0's was shown already
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        print("\n".join([f"the last lines of {path}:", *lines]), file=sys.stderr)
    return code
