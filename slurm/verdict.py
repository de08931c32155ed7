"""What a batch job does when its training has ended: pure functions of the exit code and of how it came about.

    verdict(75, told_to_end=False, restarts=2, max_restarts=100)      # Verdict("requeue", "stopped and saved", ...)

The exit codes are those of ``pipeline.errors``. A job requeues itself only where that can help: after the warning ahead of its
time limit, and after losing a rank. It does not when Slurm or a person ended it: after a preemption Slurm requeues by itself,
and ``scancel`` means it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.errors import EXIT_REQUEUE, NoProgress, RankLost, Superseded

KILLED = (128 + 6, 128 + 7, 128 + 9, 128 + 11)
"""A rank died of ABRT, BUS, KILL or SEGV: memory, hardware, or its host. srun reports the highest code of all ranks."""


@dataclass(frozen=True)
class Verdict:
    """What to do, why (for people), and the code that the job ends with."""

    action: Literal["done", "requeue", "stop"]
    why: str
    exit_code: int


def verdict(exit_code: int, *, told_to_end: bool, restarts: int, max_restarts: int) -> Verdict:
    """The decision.

    Args:
        exit_code: of srun.
        told_to_end: whether the batch script itself got SIGTERM: preemption, scancel, or the end of the time limit.
        restarts: how often the job has been requeued already (``SLURM_RESTART_COUNT``).
        max_restarts: how often it may be.
    """
    if exit_code == 0:
        return Verdict("done", "the training is complete", 0)
    if told_to_end:
        return Verdict("stop", "Slurm ended this job (preemption, scancel, or its time limit)", exit_code)
    if exit_code == EXIT_REQUEUE:
        why = "the training was asked to stop, and saved"
    elif exit_code == RankLost.exit_code or exit_code in KILLED:
        why = f"a rank was lost (exit code {exit_code})"
    elif exit_code == NoProgress.exit_code:
        return Verdict("stop", "the training makes no progress from start to start; a person must look", exit_code)
    elif exit_code == Superseded.exit_code:
        return Verdict("stop", "a later start of this run has taken over; this one must not write any more", exit_code)
    else:
        return Verdict(
            "stop", f"the training failed with exit code {exit_code}, which starting again would not cure", exit_code
        )
    if restarts >= max_restarts:
        return Verdict("stop", f"{why}; requeued {restarts} times already, the limit of --max-restarts", exit_code)
    return Verdict("requeue", why, exit_code)
