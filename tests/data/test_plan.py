"""The order of samples: complete, shuffled, independent of the world, and resumable by arithmetic."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import plan
from pipeline.errors import ConfigError, DataError

COUNTS = [7, 0, 12, 1, 30]


def epoch_plan(counts=COUNTS, *, seed=3, epoch=0, global_batch_size=8, shuffle_window=10):
    return plan.plan_epoch(counts, seed=seed, epoch=epoch, global_batch_size=global_batch_size, shuffle_window=shuffle_window)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 5),
    global_batch_size=st.integers(1, 50),
    shuffle_window=st.integers(1, 100),
)
def test_every_sample_once_and_repeats_fewer_than_a_batch(counts, seed, epoch, global_batch_size, shuffle_window):
    rows = epoch_plan(counts, seed=seed, epoch=epoch, global_batch_size=global_batch_size, shuffle_window=shuffle_window)
    total = sum(counts)
    flat = rows.reshape(-1)
    assert rows.dtype == np.int64
    assert sorted(flat[:total]) == list(range(total))
    assert 0 <= flat.size - total < global_batch_size
    assert np.array_equal(flat[total:], np.resize(flat[:total], flat.size)[total:])


def test_a_golden_plan():
    """Changes only on purpose: it would change the data order of every run that resumes."""
    assert epoch_plan([3, 4], seed=1, epoch=2, global_batch_size=4, shuffle_window=3).tolist() == GOLDEN


GOLDEN = [[5, 4, 3, 6], [0, 1, 2, 5]]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_ranks_concatenate_to_the_global_batch(size):
    rows = epoch_plan()
    parts = [plan.rank_rows(rows, rank, size) for rank in range(size)]
    assert all(part.shape == (rows.shape[0], 8 // size) for part in parts)
    assert np.array_equal(np.concatenate(parts, axis=1), rows)


def test_a_world_that_does_not_divide_the_batch_is_refused():
    with pytest.raises(AssertionError, match="global batch 8 does not divide over 3 ranks"):
        plan.rank_rows(epoch_plan(), 0, 3)


def test_a_run_is_the_epochs_in_turn():
    steps = list(plan.run_rows(COUNTS, seed=3, global_batch_size=8, shuffle_window=10, start_step=0, total_steps=2 * 7 + 3))
    assert [epoch for epoch, _ in steps] == [0] * 7 + [1] * 7 + [2] * 3
    whole = np.concatenate([epoch_plan(epoch=epoch) for epoch in range(3)])
    assert np.array_equal(np.stack([rows for _, rows in steps]), whole[: len(steps)])


@pytest.mark.parametrize("start", [0, 1, 6, 7, 8, 13, 20])
def test_resuming_at_any_step_reads_on(start):
    def run(first):
        rows = plan.run_rows(COUNTS, seed=3, global_batch_size=8, shuffle_window=10, start_step=first, total_steps=20)
        return [(epoch, batch.tolist()) for epoch, batch in rows]

    assert run(start) == run(0)[start:]


def test_an_epoch_is_reshuffled_and_depends_on_the_seed():
    plans = [epoch_plan(seed=seed, epoch=epoch) for seed, epoch in itertools.product((3, 4), (0, 1))]
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(plans, 2))


def test_a_window_touches_few_shards():
    rows = epoch_plan([100] * 50, global_batch_size=100, shuffle_window=200)
    shards_per_batch = [len(set(batch // 100)) for batch in rows.tolist() for batch in [np.array(batch)]]
    assert max(shards_per_batch) <= 2
    flat = rows.reshape(-1) // 100
    assert list(dict.fromkeys(flat.tolist())) != list(range(50)), "shards must be shuffled as well"


def test_a_window_larger_than_the_set_mixes_everything():
    first = epoch_plan([100] * 50, global_batch_size=500, shuffle_window=10**9)[0]
    assert len(set((first // 100).tolist())) > 40


def test_per_sample_randomness_is_named_by_seed_epoch_and_key():
    draws = {
        (seed, epoch, key): plan.sample_rng(seed, epoch, key).random()
        for seed, epoch, key in itertools.product((0, 1), (0, 1), ("a", "b", "\udcff"))
    }
    assert len(set(draws.values())) == len(draws)
    assert draws[0, 1, "a"] == plan.sample_rng(0, 1, "a").random() == GOLDEN_DRAW


GOLDEN_DRAW = 0.1781446318348412


@pytest.mark.parametrize("counts", [[], [0, 0], [3, -1]])
def test_nothing_to_read_is_an_error(counts):
    with pytest.raises(DataError, match=rf"{len(counts)} shards with {sum(counts)} samples cannot fill an epoch"):
        epoch_plan(counts)


def test_settings_out_of_range_are_errors():
    with pytest.raises(ConfigError, match="must be >= 0; use a seed that is not negative"):
        epoch_plan(seed=-1)
    with pytest.raises(ConfigError, match="data.shuffle_window = 0: must be at least 1"):
        epoch_plan(shuffle_window=0)
