"""The order of one source: complete, shuffled, local, the same for every number of ranks, and resumable by arithmetic."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data import plan
from pipeline.errors import ConfigError, DataError

COUNTS = [7, 0, 12, 1, 30]


def epoch_plan(counts=COUNTS, *, seed=3, epoch=0, global_batch_size=8, shuffle_window=10, max_lanes=64):
    return plan.plan_epoch(
        counts,
        seed=seed,
        epoch=epoch,
        global_batch_size=global_batch_size,
        shuffle_window=shuffle_window,
        max_lanes=max_lanes,
    )


def order(counts=COUNTS, *, seed=3, epoch=0, shuffle_window=10, **options):
    return plan.EpochOrder(counts, seed=seed, epoch=epoch, shuffle_window=shuffle_window, **options)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 5),
    global_batch_size=st.integers(1, 50),
    shuffle_window=st.integers(1, 300),
    max_lanes=st.integers(1, 9),
)
def test_every_sample_once_and_repeats_fewer_than_a_batch(counts, seed, epoch, global_batch_size, shuffle_window, max_lanes):
    rows = epoch_plan(
        counts,
        seed=seed,
        epoch=epoch,
        global_batch_size=global_batch_size,
        shuffle_window=shuffle_window,
        max_lanes=max_lanes,
    )
    total = sum(counts)
    assert rows.dtype == np.int64
    seen = np.bincount(rows.reshape(-1), minlength=total)
    assert seen.size == total
    assert seen.min() >= 1
    assert rows.size - total < global_batch_size
    if total >= global_batch_size:
        assert all(len(set(row.tolist())) == global_batch_size for row in rows), "no batch holds a sample twice"


@pytest.mark.parametrize("size", [1, 2, 3, 8, 64, 1024])
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(1, 1000), min_size=1, max_size=12),
    per_rank=st.integers(1, 3),
    shuffle_window=st.integers(50, 3000),
    seed=st.integers(0, 99),
)
@example(counts=[1], per_rank=1, shuffle_window=50, seed=0)
@example(counts=[1000, 1, 1, 999], per_rank=2, shuffle_window=60, seed=1)
def test_any_number_of_ranks_reads_the_same_batches(size, counts, per_rank, shuffle_window, seed):
    """Disjoint and complete, equally many steps and samples for each rank; fewer shards than ranks change nothing."""
    batch = size * per_rank
    whole = epoch_plan(counts, seed=seed, global_batch_size=batch, shuffle_window=shuffle_window)
    assert whole.shape[0] == plan.num_steps_per_epoch(sum(counts), batch)
    stream = plan.Passes(counts, seed=seed, shuffle_window=shuffle_window, length=whole.size)
    for step in {0, whole.shape[0] // 2, whole.shape[0] - 1}:
        place = (step * batch, (step + 1) * batch)
        parts = [stream.take(*place, plan.rank_columns(batch, rank, size))[1] for rank in range(size)]
        assert {part.size for part in parts} == {per_rank}
        assert np.array_equal(np.concatenate(parts), whole[step])


def test_a_golden_plan():
    """Changes only on purpose: it would change the data order of every run that resumes."""
    assert epoch_plan([3, 4], seed=1, epoch=2, global_batch_size=4, shuffle_window=3).tolist() == GOLDEN
    replaced = order([3, 4], seed=1, epoch=2, replacement=True).take(0, 7)
    assert replaced.tolist() == GOLDEN_WITH_REPLACEMENT


GOLDEN = [[5, 4, 3, 6], [0, 1, 2, 5]]
GOLDEN_WITH_REPLACEMENT = [5, 4, 6, 5, 0, 4, 3]


def test_a_world_that_does_not_divide_the_batch_is_refused():
    with pytest.raises(AssertionError, match="global batch 8 does not divide over 3 ranks"):
        plan.rank_columns(8, 0, 3)


@pytest.mark.parametrize("length", [None, 56])
def test_a_stream_is_its_epochs_in_turn(length):
    stream = plan.Passes(COUNTS, seed=3, shuffle_window=10, length=length)
    places = length or 50
    expected = []
    for epoch in range(3):
        one = order(epoch=epoch)
        expected += [(epoch, i) for i in one.take(0, 50).tolist()]
        expected += [(epoch, i) for i in one.take(0, places - 50).tolist()]
    epochs, samples = stream.take(0, 3 * places)
    assert list(zip(epochs.tolist(), samples.tolist(), strict=True)) == expected
    for start, stop in [(0, 0), (7, 19), (45, 61), (3, 3 * places)]:  # any piece is the same set, found without the rest
        piece = stream.take(start, stop)
        whole = [pair for start_, stop_ in _pieces(start, stop, places) for pair in _pairs(stream, start_, stop_)]
        assert list(zip(*(part.tolist() for part in piece), strict=True)) == whole


def _pieces(start, stop, places):
    """The parts of ``[start, stop)`` that lie in one pass over the order each."""
    cuts = sorted({start, stop, *(e * places + o for e in range(4) for o in (0, 50) if start < e * places + o < stop)})
    return list(itertools.pairwise(cuts))


def _pairs(stream, start, stop):
    return list(zip(*(part.tolist() for part in stream.take(start, stop)), strict=True))


def test_columns_are_parts_of_the_whole():
    one = order([100] * 9, shuffle_window=130)
    assert one.lanes == 2
    whole = one.take(13, 213)
    for low, high in [(0, 200), (0, 1), (199, 200), (50, 50), (17, 140)]:
        assert np.array_equal(one.take(13, 213, (low, high)), whole[low:high])


def test_an_epoch_is_reshuffled_and_depends_on_the_seed():
    plans = [epoch_plan(seed=seed, epoch=epoch) for seed, epoch in itertools.product((3, 4), (0, 1))]
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(plans, 2))
    assert plan.source_seed(3, 0) == 3
    assert len({plan.source_seed(seed, number) for seed in range(3) for number in range(3)}) == 9


def test_lanes_mix_many_shards_and_keep_each_with_few_ranks():
    counts, batch, ranks = [100] * 660, 256, 16
    rows = epoch_plan(counts, global_batch_size=batch, shuffle_window=2048, max_lanes=32)
    assert order(counts, shuffle_window=2048, max_lanes=32).lanes == 32
    shard = rows // 100
    assert min(len(set(row.tolist())) for row in shard[:-1]) >= 32, "each batch comes from at least as many shards as lanes"
    touched = [set(shard[:, rank * 16 : (rank + 1) * 16].reshape(-1).tolist()) for rank in range(ranks)]
    readers = np.bincount([number for found in touched for number in found], minlength=660)
    assert readers.mean() < 1.2, "a shard is read by one rank, or by two at the border of their lanes"
    at_once = [len(set(shard[step, :16].tolist())) for step in range(rows.shape[0])]
    assert max(at_once) <= 6, "and at each step a rank reads from few"
    one_lane = epoch_plan(counts, global_batch_size=batch, shuffle_window=2048, max_lanes=1) // 100
    everywhere = np.mean(
        [
            len({rank for rank in range(ranks) if shard in one_lane[:, rank * 16 : (rank + 1) * 16]})
            for shard in range(0, 660, 60)
        ]
    )
    assert everywhere > 12, "without lanes, nearly every rank reads every shard"


def test_a_block_is_long_enough_to_shuffle():
    assert order([100] * 50, shuffle_window=300).lanes == 4
    assert order([100] * 50, shuffle_window=60).lanes == 1


def test_small_sets_are_shuffled_whole():
    assert order([100] * 50, shuffle_window=5000).lanes == 1
    first = epoch_plan([100] * 50, global_batch_size=500, shuffle_window=10**9)[0]
    assert len(set((first // 100).tolist())) > 40


def test_a_shuffle_holds_blocks_in_memory_and_no_epoch():
    huge = order([10_000] * 100_000, shuffle_window=100_000)  # a billion samples
    piece = huge.take(500_000_000, 500_032_768)
    assert len(set(piece.tolist())) == 32_768
    held = sum(part.nbytes for part in (huge._first_index, huge._first_position))
    held += sum(block.nbytes for _, block in huge._blocks.values())
    assert held < 4_000_000


def test_replacement_draws_every_sample_equally_often_but_not_once():
    counts = [50, 10, 40]
    seen = np.zeros(100, np.int64)
    for epoch in range(400):
        one = order(counts, epoch=epoch, shuffle_window=1000, replacement=True).take(0, 100)
        assert len(set(one.tolist())) < 100 or epoch == 0
        seen += np.bincount(one, minlength=100)
    assert seen.sum() == 40_000
    assert 300 < seen.min() <= seen.max() < 500, "400 expected each; runs of samples are drawn, so they vary together"


def test_stand_ins_are_distinct_others_of_the_span():
    for index in range(10, 15):
        found = list(plan.stand_ins(plan.replacement_rng(0, 0, index), index, 10, 15, most=99))
        assert sorted([*found, index]) == list(range(10, 15))
    assert list(plan.stand_ins(plan.replacement_rng(0, 0, 3), 3, 3, 4, most=99)) == []
    assert len(list(plan.stand_ins(plan.replacement_rng(0, 0, 3), 3, 0, 10**9, most=16))) == 16


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
    with pytest.raises(ConfigError, match="data.shuffle_lanes = 0: must be at least 1"):
        epoch_plan(max_lanes=0)
