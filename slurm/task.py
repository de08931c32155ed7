"""What a process that submitit starts does: become one rank of the training (``TrainTask``, on this machine), or the inside of
a batch job (``BatchTask``, on a cluster), and end as that ends.

The training runs as a child of its own. Submitit installs signal handlers in the process it starts, and would answer a
signal for the training on rank 0 alone, where saving needs every rank; the child keeps its signals to itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from slurm.job import Place, rank_environment, threads_per_process

if TYPE_CHECKING:
    from submitit.core.utils import JobPaths


@dataclass(frozen=True)
class TrainTask:
    """A picklable callable: run ``command`` as the rank of this machine that submitit's environment describes.

    ``port`` is where the ranks meet.
    """

    command: tuple[str, ...]
    port: int

    def __call__(self) -> None:
        """Run the training, note its exit code in ``exit_file``, and end this process with it where it is not 0."""
        import submitit

        env = submitit.JobEnvironment()
        place = Place(
            rank=env.global_rank,
            size=env.num_tasks,
            local_rank=env.local_rank,
            local_size=env.num_tasks,
            master_port=self.port,
            threads=threads_per_process(env.num_tasks),
        )
        code = 1  # unless the training ends by itself
        try:
            code = run_to_end(self.command, rank_environment(os.environ, place))
        finally:
            note = exit_file(env.paths)
            note.parent.mkdir(parents=True, exist_ok=True)
            partial = note.with_suffix(".part")
            partial.write_text(str(code), encoding="utf-8")
            partial.replace(note)  # whoever polls for the file finds it complete
        if code:
            sys.exit(code)


@dataclass(frozen=True)
class BatchTask:
    """A picklable callable for a batch script: turn this process into ``slurm.batch`` with these arguments.

    It replaces the process, so that Slurm's signals and the exit code have nothing in between. ``code`` is the frozen copy that
    is imported.
    """

    arguments: tuple[str, ...]
    code: str

    def __call__(self) -> None:
        """Never returns."""
        env = {**os.environ, "PYTHONPATH": self.code}
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):  # submitit answers them with a requeue of its own
            signal.signal(number, signal.SIG_DFL)
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, "-P", "-u", "-m", "slurm.batch", *self.arguments], env)


def exit_file(paths: JobPaths) -> Path:
    """Where a rank's exit code is noted, beside its logs."""
    return Path(paths.folder) / f"{paths.job_id}_{paths.task_id}_exit"


def run_to_end(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Run a command, passing SIGTERM on to it; returns its exit code, 128 + n where signal n ended it.

    Whatever interrupts the waiting also ends the command: no training outlives the process that started it.
    """
    child = subprocess.Popen(command, env=dict(env))

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    previous = signal.signal(signal.SIGTERM, forward)
    try:
        code = child.wait()
    finally:
        signal.signal(signal.SIGTERM, previous)
        if child.poll() is None:
            child.kill()
            child.wait()
    return code if code >= 0 else 128 - code
