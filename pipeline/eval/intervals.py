"""How far a measured rate could have come out otherwise: bootstrap confidence intervals over the samples of a set.

    interval(hit_N)                              # [0.713, 0.741] around a mean of 0.727
    interval(hits_N, per_N)                      # captions of one image are drawn together: images are the independent draws

Percentile bootstrap: the set is drawn again with replacement ``ROUNDS`` times, from a fixed seed, so that the same hits give
the same interval everywhere. It says how much the choice of test samples matters, nothing about training with another seed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ROUNDS = 1000
LEVEL = 0.95
_DRAWS_AT_ONCE = 1 << 22


def interval(
    hits_N: npt.ArrayLike, weight_N: npt.ArrayLike | None = None, *, rounds: int = ROUNDS, level: float = LEVEL
) -> list[float]:
    """Interval of ``sum hits / sum weight`` over N independent samples.

    Args:
        hits_N: successes of each sample (0 or 1, or a count where a sample holds several queries).
        weight_N: queries of each sample; None means one each.
        rounds: bootstrap draws.
        level: share of them inside the interval.

    Returns:
        ``[low, high]``, rounded to six decimals.
    """
    hits = np.asarray(hits_N, np.float64)
    weight = np.ones_like(hits) if weight_N is None else np.asarray(weight_N, np.float64)
    assert hits.shape == weight.shape and hits.ndim == 1 and hits.size, f"{hits.shape} hits, {weight.shape} weights"
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([hits.size, rounds])))
    at_once = max(1, _DRAWS_AT_ONCE // hits.size)
    rates = []
    for start in range(0, rounds, at_once):
        # How often each sample is drawn, for a number of rounds at a time.
        times_RN = rng.multinomial(hits.size, np.full(hits.size, 1 / hits.size), size=min(at_once, rounds - start))
        rates.append((times_RN @ hits) / np.maximum(times_RN @ weight, 1e-300))
    low, high = np.quantile(np.concatenate(rates), [(1 - level) / 2, (1 + level) / 2])
    return [round(float(low), 6), round(float(high), 6)]
