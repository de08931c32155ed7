"""Being asked to stop: signals and time limits become a flag, which the training loop looks at between two steps.

    listen()                      # first of all: from here on SIGTERM, SIGUSR1 and SIGUSR2 are only noted
    wish = StopWish(deadline=time.time() + 3600)
    ...
    if wish.reason: ...           # "SIGTERM", "SIGUSR1", "the time limit", or "" while nobody asked

One rank's flag stops nothing: saving needs all of them, and a launcher may tell any subset (Slurm all, submitit one, a person
one). The ranks share their flags in the small collective that each step has anyway (``pulse.py``) and stop after the same one.
A second signal finds the flag set and changes nothing, so a save that has begun is finished, once. Loader workers ignore these
signals (``data/loader.py``).
"""

from __future__ import annotations

import signal
import time
from types import FrameType

from pipeline.config import CheckpointConfig

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


_heard: list[str] = []
"""The stop signals of this process, in their order."""


def listen() -> None:
    """Take the stop signals, until the process ends: one that comes while it starts or leaves must not kill it half-way."""
    for number in STOP_SIGNALS:
        signal.signal(number, _hear)


def _hear(number: int, frame: FrameType | None) -> None:
    _heard.append(signal.Signals(number).name)


class StopWish:
    """Whether this rank was asked to stop, and by what: the first signal, or else the time limit."""

    def __init__(self, deadline: float | None = None) -> None:
        """``deadline``: unix time after which the run should stop; None has no limit."""
        self._deadline = deadline

    @property
    def reason(self) -> str:
        """What asked, or an empty string."""
        if _heard:
            return _heard[0]
        return "the time limit" if self._deadline is not None and time.time() >= self._deadline else ""


def deadline(now: float, time_limit_minutes: float | None, ends_at: float | None, seconds_before_limit: float) -> float | None:
    """When to stop, as unix time: the earlier of the run's own limit and the launcher's, or None where there is neither.

    Args:
        now: unix time of this start.
        time_limit_minutes: ``train.time_limit_minutes``, counted from now.
        ends_at: unix time at which the launcher ends the job (``World.ends_at``).
        seconds_before_limit: how long before that there must be time to save.
    """
    limits = []
    if time_limit_minutes is not None:
        limits.append(now + 60 * time_limit_minutes)
    if ends_at is not None:
        limits.append(ends_at - seconds_before_limit)
    return min(limits, default=None)


class SaveWish:
    """Whether this rank wants a checkpoint because of the time since the last one. Clocks differ, so ranks agree like above."""

    def __init__(self, cfg: CheckpointConfig) -> None:
        """Start counting time now."""
        self._seconds, self._saved_at, self._saved_step = 60 * cfg.every_minutes, time.monotonic(), 0

    @property
    def due(self) -> bool:
        """Whether so much time has passed."""
        return self._seconds > 0 and time.monotonic() - self._saved_at >= self._seconds

    def counts(self, step: int) -> bool:
        """Whether a wish that was uttered in the step that ended as ``step`` is still open; wishes arrive a step late."""
        return step > self._saved_step

    def granted(self, step: int) -> None:
        """A checkpoint of ``step`` completed steps is being written."""
        self._saved_at, self._saved_step = time.monotonic(), step
