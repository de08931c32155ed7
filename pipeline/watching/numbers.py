"""What a run does about numbers that are not finite: skip, go back, stop. The same on every rank.

    watch = NumbersWatch(cfg.numbers, state.notes)
    if watch.must_go_back(beats): ...      # see pulse.py; every rank gets the same beats
    notes = {**state.notes, **watch.notes()}

A step whose loss or gradient norm is not finite never reaches the weights (``engine/gate.py``). One such step may be a bad
batch, and is only counted. Many in a row mean that the weights themselves are beyond help: the run goes back to its last
checkpoint and continues with the batches after those that it has seen, because the same ones would lead to the same place.
If that happens more often than ``numbers.max_rollbacks``, it stops: ``NumericsError``, one exit code on all ranks.

Skipping is a function of the step's own numbers, so a resumed run skips the same steps. The counts are part of a checkpoint:
however often a run is stopped and started again, its bad steps in a row and the times that it went back add up.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config import NumbersConfig
from pipeline.errors import NumericsError
from pipeline.watching.pulse import Beat

_MEMORY = 0.98
"""Weight of the past in the running average of gradient norms: about the last 50 steps."""
_FIRST_STEPS = 10
"""Steps before a spike can be told from a beginning."""
_NOTE = "numbers"


@dataclass
class Counts:
    """What happened in a run so far."""

    skipped: int = 0
    spikes: int = 0
    rollbacks: int = 0
    in_a_row: int = 0
    """Bad steps just now, without a good one between."""
    usual: int = 0
    """Steps in the average below."""
    mean_log_norm: float = 0.0
    """Running average of the gradient norm's logarithm."""


class NumbersWatch:
    """Counts steps that were skipped, steps that stood out, and times that the run went back."""

    def __init__(self, cfg: NumbersConfig, notes: Mapping[str, Any] | None = None) -> None:
        """Begin, or go on from the ``notes`` of a checkpoint; one without counts is a beginning."""
        self._cfg = cfg
        self.counts = Counts(**(notes or {}).get(_NOTE, {}))

    def notes(self) -> dict[str, Any]:
        """What a checkpoint must remember, as plain data under a name of its own."""
        return {_NOTE: dataclasses.asdict(self.counts)}

    def must_go_back(self, beats: Iterable[Beat]) -> bool:
        """Take steps into account; True if the run has to return to its last checkpoint.

        Raises:
            NumericsError: it has returned as often as it may, and the numbers are still not finite.
        """
        return any(self._is_too_much(beat) for beat in beats)  # those after it happen again

    def _is_too_much(self, beat: Beat) -> bool:
        self.counts.skipped += beat.skipped
        if not beat.skipped:
            self.counts.in_a_row = 0
            self._compare(beat.grad_norm)
        elif not beat.searching:
            self.counts.in_a_row += 1
        if self.counts.in_a_row < self._cfg.max_skips_in_a_row:
            return False
        if self.counts.rollbacks >= self._cfg.max_rollbacks:
            raise NumericsError(self._message(beat))
        self.counts.rollbacks += 1
        self.counts.in_a_row = 0
        return True

    def figures(self) -> dict[str, float]:
        """The counts, for the log."""
        return {"skipped": self.counts.skipped, "grad_spikes": self.counts.spikes, "rollbacks": self.counts.rollbacks}

    def _compare(self, norm: float) -> None:
        log_norm = math.log(max(norm, 1e-30))
        if self.counts.usual >= _FIRST_STEPS and log_norm > self.counts.mean_log_norm + math.log(self._cfg.spike_factor):
            self.counts.spikes += 1
            return  # a spike is no part of what is usual
        memory = min(_MEMORY, self.counts.usual / (self.counts.usual + 1))
        self.counts.mean_log_norm = memory * self.counts.mean_log_norm + (1 - memory) * log_norm
        self.counts.usual += 1

    def _message(self, beat: Beat) -> str:
        what = f"the loss is {beat.loss}" if not math.isfinite(beat.loss) else f"the gradient norm is {beat.grad_norm}"
        counts = self.counts
        return (
            f"{what} at step {beat.step}, the last of {counts.in_a_row} skipped in a row, after going back {counts.rollbacks} "
            f"times (numbers.max_rollbacks); none of these steps changed the weights. Usual causes: a learning rate that is "
            f"too high (optim.lr), too short a warm-up (optim.warmup_steps), or fp16 where bf16 would do (engine.precision)"
        )
