"""When things happen and how large the learning rate is: pure functions of the step, so that resume needs no state.

Steps count completed optimizer steps. ``lr_at(step)`` is the rate used by the step that turns ``step`` into ``step + 1``:

    >>> [round(lr_at(s, peak=1.0, warmup_steps=2, total_steps=6), 3) for s in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config import WeightConfig


def lr_at(step: int, *, peak: float, warmup_steps: int, total_steps: int, floor: float = 0.0) -> float:
    """Linear warm-up to ``peak``, then a half cosine towards ``floor``.

    Args:
        step: optimizer steps already completed, ``0 <= step < total_steps``.
        peak: the largest rate.
        warmup_steps: steps until ``peak`` is reached; step ``i`` of the warm-up uses ``peak * (i + 1) / warmup_steps``.
        total_steps: length of the whole run in optimizer steps.
        floor: the rate that the cosine approaches at ``total_steps``.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def weight_at(step: int, *, cfg: WeightConfig, epoch: int, total_steps: int) -> float:
    """A loss term's weight in the step that follows ``step`` completed ones, in epoch ``epoch`` (from 0)."""
    progress = step / max(1, total_steps - 1)
    if cfg.schedule == "linear":
        return cfg.weight + (cfg.final_weight - cfg.weight) * progress
    if cfg.schedule == "cosine":
        return cfg.final_weight + (cfg.weight - cfg.final_weight) * 0.5 * (1.0 + math.cos(math.pi * progress))
    if cfg.schedule == "inverse_epoch":
        return cfg.weight / (epoch + 1)
    return cfg.weight


def is_time(completed: int, *, every: int, total_steps: int) -> bool:
    """Whether something that happens every ``every`` steps (0: only at the end) happens after ``completed`` steps."""
    return completed == total_steps or (every > 0 and completed % every == 0)
