"""Which sample is read at which step by which rank: pure functions of integers. Layer 1; numpy only.

Samples are numbered over the shards in order: shard 0 has ``0 .. counts[0] - 1``, and so on. In each epoch the shards
are shuffled, laid end to end, and the samples are shuffled inside windows of ``shuffle_window``: a window touches few
shards, so that reads stay close together, and its permutation is found without computing the ones before it.

    plan = plan_epoch([1000, 800], seed=0, epoch=0, global_batch_size=64, shuffle_window=500)
    plan.shape                              # (29, 64): 1800 samples, the last batch completed from the start
    rank_rows(plan, rank=1, size=4).shape   # (29, 16): columns 16 .. 31 of the same global batches

A run is epoch after epoch; step ``s`` is row ``s % steps`` of epoch ``s // steps``. ``run_rows`` walks it from any step
without visiting the earlier ones and holds one window in memory, not the epoch.

Randomness comes only from ``numpy.random.SeedSequence`` of explicit integers (seed, epoch, tag, ...).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError, DataError

Indices = npt.NDArray[np.int64]

SHARD_ORDER, WINDOW_ORDER, SAMPLE, REPLACEMENT = range(4)
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


def num_steps_per_epoch(num_samples: int, global_batch_size: int) -> int:
    """Batches that cover all samples once; the last one may hold repeats, always fewer than one batch of them."""
    return -(-num_samples // global_batch_size)


class EpochOrder:
    """The order of one epoch, computed window by window.

    Args:
        counts: samples per shard; zeros are allowed.
        seed: of the run.
        epoch: from 0.
        shuffle_window: samples shuffled together.

    Raises:
        DataError: there is no sample at all, or a count is negative.
        ConfigError: the seed is negative or the window is empty.
    """

    def __init__(self, counts: Sequence[int] | Indices, *, seed: int, epoch: int, shuffle_window: int) -> None:
        sizes = np.asarray(counts, dtype=np.int64)
        if sizes.ndim != 1 or sizes.size == 0 or sizes.min() < 0 or sizes.sum() == 0:
            raise DataError(f"{sizes.size} shards with {sizes.sum()} samples cannot fill an epoch; check the data path")
        if shuffle_window < 1:
            raise ConfigError(f"data.shuffle_window = {shuffle_window}: must be at least 1")
        self.num_samples = int(sizes.sum())
        self._seed, self._epoch, self._window_size = seed, epoch, shuffle_window
        shards = generator(seed, epoch, SHARD_ORDER).permutation(sizes.size)
        self._first_index = (np.cumsum(sizes) - sizes)[shards]
        self._first_position = np.cumsum(sizes[shards]) - sizes[shards]
        self._cached: tuple[int, Indices] = (-1, np.empty(0, np.int64))

    def take(self, start: int, stop: int) -> Indices:
        """Samples at positions ``start .. stop - 1`` of the endlessly repeated order, int64 ``[stop - start]``."""
        parts = []
        while start < stop:
            position = start % self.num_samples
            number, offset = divmod(position, self._window_size)
            part = self._window(number)[offset : offset + stop - start]
            parts.append(part)
            start += part.size
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _window(self, number: int) -> Indices:
        if self._cached[0] != number:
            low = number * self._window_size
            high = min(low + self._window_size, self.num_samples)
            rng = generator(self._seed, self._epoch, WINDOW_ORDER, number)
            positions = low + rng.permutation(high - low)
            # The last shard that starts at or before the position; empty shards start where the next one does.
            shard = np.searchsorted(self._first_position, positions, side="right") - 1
            self._cached = (number, self._first_index[shard] + positions - self._first_position[shard])
        return self._cached[1]


def plan_epoch(
    counts: Sequence[int] | Indices, *, seed: int, epoch: int, global_batch_size: int, shuffle_window: int
) -> Indices:
    """The whole epoch as int64 ``[steps, global_batch_size]`` of sample indices.

    Every sample occurs; the last batch is completed from the start of the same order, so that fewer than
    ``global_batch_size`` entries are repeats. Arguments and errors as in ``EpochOrder``.
    """
    order = EpochOrder(counts, seed=seed, epoch=epoch, shuffle_window=shuffle_window)
    steps = num_steps_per_epoch(order.num_samples, global_batch_size)
    return order.take(0, steps * global_batch_size).reshape(steps, global_batch_size)


def rank_rows(plan: Indices, rank: int, size: int) -> Indices:
    """The contiguous columns of ``rank``: ``[..., global_batch_size]`` -> ``[..., global_batch_size / size]``."""
    assert plan.shape[-1] % size == 0, f"global batch {plan.shape[-1]} does not divide over {size} ranks"
    micro = plan.shape[-1] // size
    return plan[..., rank * micro : (rank + 1) * micro]


def run_rows(
    counts: Sequence[int] | Indices,
    *,
    seed: int,
    global_batch_size: int,
    shuffle_window: int,
    start_step: int,
    total_steps: int,
) -> Iterator[tuple[int, Indices]]:
    """Yield ``(epoch, global batch [global_batch_size])`` for steps ``start_step .. total_steps - 1`` of a run."""
    order, current = None, -1
    for step in range(start_step, total_steps):
        epoch, row = divmod(step, num_steps_per_epoch(int(np.sum(counts)), global_batch_size))
        if order is None or epoch != current:
            order, current = EpochOrder(counts, seed=seed, epoch=epoch, shuffle_window=shuffle_window), epoch
        yield epoch, order.take(row * global_batch_size, (row + 1) * global_batch_size)
