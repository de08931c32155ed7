"""Where a run is and where its time goes: phases of a step, throughput, utilisation, time to the end.

    pace = Pace(total_steps=1000)
    for batch in pace.waiting_for(batches):     # phase "data" while it waits
        pace.enter("forward", step)
        ...
        pace.enter("backward", step)
    pace.lap(...)                               # samples per second, share of waiting for data, since the last lap

The same marks serve three readers: the log (how long a step waits for data), the watchdog (which phase a rank stands still in)
and the profile (a table of all phases).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

OUTSIDE = ("setup", "save", "evaluate")
"""Phases that belong to no step: they take as long as they take, and throughput leaves them out."""


@dataclass(frozen=True)
class Where:
    """How far a rank is. ``order`` counts phases since the start, so that it grows with every one."""

    order: int
    step: int
    phase: str
    seconds: float
    """How long it has been in this phase."""
    may_stall: bool
    """Whether the phase belongs to a step; setting up, saving and evaluating take as long as they take."""


class Pace:
    """Times the phases of the main thread."""

    def __init__(self, settle: Callable[[], None] | None = None) -> None:
        """``settle`` waits for the device, so that a phase's time is its own; only a profile does that."""
        self._settle = settle
        self._order, self._step, self._phase, self._since = 0, 0, "setup", time.perf_counter()
        self.seconds: dict[str, float] = {}
        """Time spent by phase, since the last lap."""
        self._steps = 0

    def enter(self, phase: str, step: int | None = None) -> None:
        """From here on the run is in ``phase``; ``step`` is the number of completed steps."""
        if self._settle is not None:
            self._settle()
        now = time.perf_counter()
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._since
        self._step = self._step if step is None else step
        self._order, self._phase, self._since = self._order + 1, phase, now

    def waiting_for(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield the batches, in phase ``data`` until each is there."""
        self.enter("data")
        for batch in batches:
            self._steps += 1
            yield batch
            self.enter("data")

    def where(self) -> Where:
        """How far the main thread is; called from another one."""
        return Where(self._order, self._step, self._phase, time.perf_counter() - self._since, self._phase not in OUTSIDE)

    def lap(self, samples_per_step: int) -> dict[str, float]:
        """Samples per second over all ranks, and the share of time spent waiting for data, since the last lap."""
        self.enter(self._phase)
        seconds = sum(spent for phase, spent in self.seconds.items() if phase not in OUTSIDE)
        result = {
            "samples_per_second": self._steps * samples_per_step / max(seconds, 1e-9),
            "data_wait_share": self.seconds.get("data", 0.0) / max(seconds, 1e-9),
        }
        self.seconds, self._steps = {}, 0
        return result
