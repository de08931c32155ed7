"""Which checkpoints stay: the last n, every k-th step, the best by a figure. Pure, and never all of them go.

>>> sorted(superseded([100, 200, 300, 400], last=2, every=0, best=100))
[200]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def superseded(steps: Iterable[int], *, last: int, every: int, best: int | None) -> set[int]:
    """Steps of complete checkpoints that may be deleted.

    Args:
        steps: of all complete checkpoints; the newest is never deleted.
        last: how many of the newest stay; 0 keeps all.
        every: steps that are multiples of it stay; 0 names none.
        best: a step that stays.
    """
    ordered = sorted(steps)
    return {s for s in ordered[: -last if last else 0] if not (every and s % every == 0) and s != best}


def best_step(figures: Mapping[int, float], steps: Iterable[int], *, highest: bool) -> int | None:
    """The step with the best figure among those that are still there, the newest of equals; None if none was measured."""
    known = [(figures[step] if highest else -figures[step], step) for step in steps if step in figures]
    return max(known)[1] if known else None
