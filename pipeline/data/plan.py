"""In which order the samples of one source are read: pure functions of integers. Layer 1; numpy only.

Samples are numbered over the shards in order: shard 0 has ``0 .. counts[0] - 1``, and so on. In each epoch

1. the shards are shuffled and laid end to end on one line (or, with replacement, runs of samples that start anywhere);
2. the line is cut into ``lanes`` of equal length, and the order takes one sample of each lane in turn;
3. inside each lane the samples are shuffled in blocks of ``shuffle_window / lanes``, whose borders are staggered.

So at any time about ``shuffle_window`` samples are being mixed, from at least as many shards as there are lanes, while one
lane reads from one or two shards. ``EpochOrder.take`` hands a piece of the order out lane after lane: a rank that takes
contiguous columns of a batch stays in few lanes, so that each shard is read by few nodes, and yet the batch is the same for
every number of ranks. MosaicML Streaming calls such lanes canonical nodes.

    order = EpochOrder([1000, 800], seed=0, epoch=0, shuffle_window=500, max_lanes=64)
    order.lanes                             # 7: blocks have 64 samples or more; a set of up to a window is shuffled whole
    order.take(64, 128)                     # the second batch of 64
    order.take(64, 128, columns=(16, 32))   # what the second of four ranks reads of it

    plan = plan_epoch([1000, 800], seed=0, epoch=0, global_batch_size=64, shuffle_window=500)
    plan.shape                              # (29, 64): 1800 samples, the last batch completed from the start

Any piece is found without computing those before it, and memory holds one block per lane, never an epoch. How well this
shuffles, and how local it is, is measured in docs/streaming.md. A run over one or several sources is ``mixture.RunPlan``.

Randomness comes only from ``numpy.random.SeedSequence`` of explicit integers (seed, epoch, tag, ...).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError, DataError

Indices = npt.NDArray[np.int64]

MAX_LANES = 64
"""Default number of lanes: up to this many nodes, no shard is read by more than two or three of them."""

MIN_BLOCK = 64
"""Samples that are shuffled together inside a lane, at least: shorter blocks would leave neighbours beside each other."""

SHARD_ORDER, WINDOW_ORDER, SAMPLE, REPLACEMENT, SOURCE, STREAM = range(6)
"""Tags that keep the streams of random numbers apart."""


def generator(*words: int) -> np.random.Generator:
    """A generator determined by these non-negative integers, in this order.

    Raises:
        ConfigError: an integer is negative, which numpy cannot seed from.
    """
    if min(words) < 0:
        raise ConfigError(f"random generator seeded with {words}: all must be >= 0; use a seed that is not negative")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def sample_rng(seed: int, epoch: int, key: str) -> np.random.Generator:
    """The generator behind one sample's view and caption in one epoch, wherever and whenever it is read."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return generator(seed, epoch, SAMPLE, int.from_bytes(digest, "big"))


def replacement_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator that chooses what is read instead of sample ``index`` when that one cannot be used."""
    return generator(seed, epoch, REPLACEMENT, index)


def source_seed(seed: int, number: int) -> int:
    """The seed of the order of source ``number``; the first one's is the run's own."""
    return seed if number == 0 else int(generator(seed, SOURCE, number).integers(2**63))


def num_steps_per_epoch(num_samples: int, global_batch_size: int) -> int:
    """Batches that cover all samples once; the last one may hold repeats, always fewer than one batch of them."""
    return -(-num_samples // global_batch_size)


class EpochOrder:
    """The order of one epoch, computed block by block.

    Args:
        counts: samples per shard; zeros are allowed.
        seed: of the source.
        epoch: from 0.
        shuffle_window: samples mixed at a time, over all lanes.
        max_lanes: lanes where the set is long enough for them; part of the order, so it must not follow the world size.
        replacement: draw runs of samples, as long as a shard on average, with replacement instead of every shard once.

    Raises:
        DataError: there is no sample at all, or a count is negative.
        ConfigError: the seed is negative, or the window or the number of lanes is not positive.
    """

    def __init__(
        self,
        counts: Sequence[int] | Indices,
        *,
        seed: int,
        epoch: int,
        shuffle_window: int,
        max_lanes: int = MAX_LANES,
        replacement: bool = False,
    ) -> None:
        sizes = np.asarray(counts, dtype=np.int64)
        if sizes.ndim != 1 or sizes.size == 0 or sizes.min() < 0 or sizes.sum() == 0:
            raise DataError(f"{sizes.size} shards with {sizes.sum()} samples cannot fill an epoch; check the data path")
        for name, value in (("shuffle_window", shuffle_window), ("shuffle_lanes", max_lanes)):
            if value < 1:
                raise ConfigError(f"data.{name} = {value}: must be at least 1")
        self.num_samples = int(sizes.sum())
        self.lanes = max(1, min(max_lanes, shuffle_window // MIN_BLOCK)) if self.num_samples > shuffle_window else 1
        self._seed, self._epoch = seed, epoch
        self._block_size = max(1, shuffle_window // self.lanes)
        self._first_index, self._first_position = self._line(sizes, generator(seed, epoch, SHARD_ORDER), replacement)
        self._blocks: dict[int, tuple[int, Indices]] = {}

    def _line(self, sizes: Indices, rng: np.random.Generator, replacement: bool) -> tuple[Indices, Indices]:
        """Sample number and position of the first sample of each run on the line."""
        if replacement:
            length = -(-self.num_samples // sizes.size)
            starts = np.arange(0, self.num_samples, length)
            return rng.integers(0, self.num_samples, starts.size), starts
        shards = rng.permutation(sizes.size)
        return (np.cumsum(sizes) - sizes)[shards], np.cumsum(sizes[shards]) - sizes[shards]

    def take(self, start: int, stop: int, columns: tuple[int, int] | None = None) -> Indices:
        """Samples ``start .. stop - 1`` of the order, ``0 <= start <= stop <= num_samples``, lane after lane.

        Args:
            columns: which part of the result is wanted, all by default; the rest is not computed.
        """
        low, high = columns or (0, stop - start)
        lane = np.arange(self.lanes)
        first_row = -((lane - start) // self.lanes)  # of each lane; row r of lane g is place r * lanes + g of the order
        num_rows = -((lane - stop) // self.lanes) - first_row
        end = np.cumsum(num_rows)
        parts = []
        for g in range(int(np.searchsorted(end, low, side="right")), int(np.searchsorted(end, high, side="left")) + 1):
            if g < self.lanes:
                offset = int(end[g] - num_rows[g])
                row = int(first_row[g])
                parts += self._lane(g, row + max(0, low - offset), row + min(int(num_rows[g]), high - offset))
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _lane(self, lane: int, start: int, stop: int) -> list[Indices]:
        parts = []
        stagger = self._stagger(lane)
        while start < stop:
            number, offset = divmod(start + stagger, self._block_size)
            offset -= stagger if number == 0 else 0
            part = self._block(lane, number)[offset : offset + stop - start]
            parts.append(part)
            start += part.size
        return parts

    def _stagger(self, lane: int) -> int:
        """By how much the first block of a lane is shorter: lanes go on to other shards at different times, not all at once."""
        return self._block_size * lane // self.lanes

    def _block(self, lane: int, number: int) -> Indices:
        if self._blocks.get(lane, (-1,))[0] != number:
            whole, longer = divmod(self.num_samples, self.lanes)  # the first ``longer`` lanes have one sample more
            lane_start = lane * whole + min(lane, longer)
            low = max(0, number * self._block_size - self._stagger(lane))
            size = min((number + 1) * self._block_size - self._stagger(lane), whole + (lane < longer)) - low
            blocks_per_lane = -(-(whole + 1) // self._block_size) + 1
            rng = generator(self._seed, self._epoch, WINDOW_ORDER, lane * blocks_per_lane + number)
            positions = lane_start + low + rng.permutation(size)
            # The last run that starts at or before the position; empty shards start where the next one does.
            run = np.searchsorted(self._first_position, positions, side="right") - 1
            samples = (self._first_index[run] + positions - self._first_position[run]) % self.num_samples
            self._blocks[lane] = (number, samples)
        return self._blocks[lane][1]


class Passes:
    """One source's endless stream: epoch after epoch, each in its own order. Arguments as for ``EpochOrder``.

    Args:
        length: places per epoch, the number of samples or more; places beyond it repeat the order from its start.
    """

    def __init__(
        self,
        counts: Sequence[int] | Indices,
        *,
        seed: int,
        shuffle_window: int,
        max_lanes: int = MAX_LANES,
        replacement: bool = False,
        length: int | None = None,
    ) -> None:
        self._counts, self._seed, self._window, self._lanes = counts, seed, shuffle_window, max_lanes
        self._replacement = replacement
        self._order = self._epoch_order(0)
        self._epoch = 0
        self.num_samples = self._order.num_samples
        self.length = length or self.num_samples

    def take(self, start: int, stop: int, columns: tuple[int, int] | None = None) -> tuple[Indices, Indices]:
        """Epochs and samples of places ``start .. stop - 1`` of the stream; ``columns`` as in ``EpochOrder.take``."""
        low, high = columns or (0, stop - start)
        epochs, samples, offset = [], [], 0
        while start < stop and offset < high:
            epoch, place = divmod(start, self.length)
            place %= self.num_samples
            size = min(stop - start, self.num_samples - place, self.length - start % self.length)
            if low < offset + size:
                wanted = (max(0, low - offset), min(size, high - offset))
                part = self._at(epoch).take(place, place + size, wanted)
                samples.append(part)
                epochs.append(np.full(part.size, epoch, np.int64))
            start, offset = start + size, offset + size
        if not samples:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        return np.concatenate(epochs), np.concatenate(samples)

    def _at(self, epoch: int) -> EpochOrder:
        if epoch != self._epoch:
            self._order, self._epoch = self._epoch_order(epoch), epoch
        return self._order

    def _epoch_order(self, epoch: int) -> EpochOrder:
        return EpochOrder(
            self._counts,
            seed=self._seed,
            epoch=epoch,
            shuffle_window=self._window,
            max_lanes=self._lanes,
            replacement=self._replacement,
        )


def plan_epoch(
    counts: Sequence[int] | Indices,
    *,
    seed: int,
    epoch: int,
    global_batch_size: int,
    shuffle_window: int,
    max_lanes: int = MAX_LANES,
) -> Indices:
    """The whole epoch of a single source as int64 ``[steps, global_batch_size]`` of sample indices.

    Every sample occurs; the last batch is completed from the start of the same order, so that fewer than
    ``global_batch_size`` entries are repeats. Arguments and errors as in ``EpochOrder``.
    """
    steps = num_steps_per_epoch(int(np.sum(counts)), global_batch_size)
    length = max(1, steps) * global_batch_size
    passes = Passes(counts, seed=seed, shuffle_window=shuffle_window, max_lanes=max_lanes, length=length)
    first = epoch * steps
    rows = [passes.take(step * global_batch_size, (step + 1) * global_batch_size)[1] for step in range(first, first + steps)]
    return np.stack(rows)


def rank_columns(global_batch_size: int, rank: int, size: int) -> tuple[int, int]:
    """The columns of a global batch that ``rank`` of ``size`` reads: contiguous, and equally many for every rank."""
    assert global_batch_size % size == 0, f"global batch {global_batch_size} does not divide over {size} ranks"
    per_rank = global_batch_size // size
    return rank * per_rank, (rank + 1) * per_rank


def stand_ins(rng: np.random.Generator, index: int, first: int, stop: int, most: int) -> Iterator[int]:
    """Distinct samples of ``[first, stop)`` other than ``index``, at most ``most``, to be tried in its place."""
    num_others = stop - first - 1
    for other in rng.choice(num_others, min(most, num_others), replace=False).tolist() if num_others else ():
        yield first + other + (first + other >= index)
