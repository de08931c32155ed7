"""Which sources a batch is made of, and so what every rank reads at every step. Layer 1; pure arithmetic.

    shares = Shares([[3.0, 1.0]], ends=[10_000])            # one piece of constant weights, 10,000 samples long
    shares.taken(64)                                        # (48, 16): what the first 64 samples of the run came from
    plan = RunPlan([Passes(counts, ...), Passes(...)], shares, global_batch_size=64)
    rows = plan.rows(step=7, rank=1, size=4)                # 16 samples with their sources and the sources' own epochs

``taken`` is exact at every sample: a source is never more than a few samples away from its share, whatever the step, so
that the mix of a run needs no history. Each source is read as its own endless stream; the share only says how far each
has come. Inside a batch the sources are spread evenly over the columns, so that every rank gets the same mix, and the
samples of one source stay in the order of its lanes (see ``plan.py``), so that shards stay with few nodes.

A run without a mixture has one source, whose epochs are whole batches, the last of them completed from the start of the
epoch's own order; in a mixture every source has epochs of its own, which begin and end anywhere in a batch, without repeats.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.plan import Indices, Passes, rank_columns
from pipeline.errors import ConfigError

WEIGHT_UNIT = 2**40
"""Weights are rounded to fractions of this, so that all arithmetic on positions is exact."""


@dataclass(frozen=True)
class Rows:
    """What one rank reads in one step, B samples; indices count over all sources, source after source."""

    step: int
    epoch: int
    """Of the run: how often as many samples were read as all sources hold together."""
    index_B: Indices
    epoch_B: Indices
    """Of the sample's own source; views and captions are drawn anew in each."""
    source_B: Indices

    @staticmethod
    def of(epoch: int, index_B: Indices) -> Rows:
        """Rows of a single source, all in one epoch."""
        return Rows(0, epoch, index_B, np.full(len(index_B), epoch, np.int64), np.zeros(len(index_B), np.int64))


class Shares:
    """How many samples of each source the first ``n`` samples of a run hold.

    Args:
        weights: of each source, for each piece of the run; at least one is positive in every piece.
        ends: where each piece ends, in samples from the start of the run, ascending; the last piece goes on for ever.

    Raises:
        ConfigError: a weight is negative or not finite, or those of a piece are all zero.
    """

    def __init__(self, weights: Sequence[Sequence[float]], ends: Sequence[int]) -> None:
        assert len(weights) == len(ends) and list(ends) == sorted(set(ends)), "one ascending end per piece"
        self._units = [_units(piece) for piece in weights]
        self._starts = [0, *ends[:-1]]
        self._before = [(0,) * len(weights[0])]
        for number, (start, end) in enumerate(zip(self._starts, ends, strict=True)):
            self._before.append(_sum(self._before[-1], _split(end - start, self._units[number])))

    def taken(self, n: int) -> tuple[int, ...]:
        """Samples of each source among the first ``n``; they sum to ``n``, and none ever falls as ``n`` grows."""
        piece = bisect.bisect_right(self._starts, n) - 1
        return _sum(self._before[piece], _split(n - self._starts[piece], self._units[piece]))


def _units(weights: Sequence[float]) -> tuple[int, ...]:
    total = sum(weights)
    if not (0 < total < float("inf")) or min(weights) < 0:
        raise ConfigError(f"mixture weights {[round(weight, 6) for weight in weights]}: need some above 0 and none below")
    return tuple(round(weight / total * WEIGHT_UNIT) for weight in weights)


def _split(n: int, units: tuple[int, ...]) -> tuple[int, ...]:
    """``n`` samples over sources: the first takes its rounded share, the next its share of what is left, and so on.

    Each step of the chain gives one sample of a stream to this source or to the rest, so no count ever falls.
    """
    taken, left = [], sum(units)
    for unit in units:
        mine = (2 * n * unit + left) // (2 * left) if unit else 0
        taken.append(mine)
        n, left = n - mine, left - unit
    return tuple(taken)


def _sum(left: Sequence[int], right: Sequence[int]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))


class RunPlan:
    """Which samples are read at each step of a run by each rank, for any step and any number of ranks.

    Args:
        passes: one stream per source.
        shares: what each contributes.
        global_batch_size: samples per step over all ranks; part of the order.
    """

    def __init__(self, passes: Sequence[Passes], shares: Shares, global_batch_size: int) -> None:
        self._passes, self._shares, self._batch = tuple(passes), shares, global_batch_size
        sizes = [stream.num_samples for stream in passes]
        self._first_index = [sum(sizes[:number]) for number in range(len(sizes))]
        self._epoch_length = passes[0].length if len(sizes) == 1 else sum(sizes)

    def epochs(self, total_steps: int) -> tuple[tuple[float, float], ...]:
        """Of each source: its fraction of the samples of ``total_steps`` steps, and the epochs of its own that these make."""
        taken = self._shares.taken(total_steps * self._batch)
        total = max(1, total_steps * self._batch)
        return tuple((n / total, n / stream.length) for n, stream in zip(taken, self._passes, strict=True))

    def rows(self, step: int, rank: int = 0, size: int = 1) -> Rows:
        """This rank's part of the global batch of ``step``; over the ranks they concatenate to the whole of it."""
        before = self._shares.taken(step * self._batch)
        after = self._shares.taken((step + 1) * self._batch)
        low, high = rank_columns(self._batch, rank, size)
        source_B = _columns(tuple(b - a for a, b in zip(before, after, strict=True)))
        index_B, epoch_B = np.empty(high - low, np.int64), np.empty(high - low, np.int64)
        for number, stream in enumerate(self._passes):
            is_mine = source_B[low:high] == number
            first = int((source_B[:low] == number).sum())
            wanted = (first, first + int(is_mine.sum()))
            epoch_B[is_mine], samples = stream.take(before[number], after[number], wanted)
            index_B[is_mine] = samples + self._first_index[number]
        return Rows(step, step * self._batch // self._epoch_length, index_B, epoch_B, source_B[low:high])


@functools.lru_cache(maxsize=8)
def _columns(counts: tuple[int, ...]) -> Indices:
    """The source of each column of a batch that holds ``counts`` samples of each: all spread evenly."""
    source = np.repeat(np.arange(len(counts)), counts)
    where = np.concatenate([(np.arange(count) + 0.5) / count for count in counts if count])
    return source[np.argsort(where, kind="stable")]
