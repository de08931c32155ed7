"""Several sources in one order: exact shares at every sample, no repeats, and the same for every number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import DataConfig, FilterConfig, SourceConfig, data_sources
from pipeline.data import sources
from pipeline.data.drops import BadSample
from pipeline.data.mixture import Rows, RunPlan, Shares
from pipeline.data.plan import Passes
from pipeline.errors import ConfigError, DataError
from pipeline.strict import build, parse_yaml, to_yaml
from tests.architecture.guards import REPOSITORY
from tests.data.on_disk import json_pair, write_set

WEIGHTS = st.lists(st.floats(0, 10, allow_subnormal=False), min_size=1, max_size=6).filter(lambda w: sum(w) > 0.01)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(weights=WEIGHTS, start=st.integers(0, 10**12))
def test_shares_are_exact_at_every_sample(weights, start):
    shares = Shares([weights], ends=[1])
    before = shares.taken(start)
    for n in range(start, start + 200):
        taken = shares.taken(n)
        assert sum(taken) == n
        assert all(0 <= now - then <= 1 for now, then in zip(taken, before, strict=True)), "one more sample, of one source"
        ideal = [n * weight / sum(weights) for weight in weights]
        rounding = n * len(weights) / 2**40  # of the weights themselves
        assert max(abs(a - b) for a, b in zip(taken, ideal, strict=True)) <= len(weights) / 2 + 1 + rounding
        before = taken


def test_pieces_follow_each_other_without_a_jump():
    shares = Shares([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], ends=[100, 300, 310])
    assert [shares.taken(n) for n in (0, 100, 300, 310, 1000)] == [(0, 0), (100, 0), (200, 100), (200, 110), (200, 800)]
    steps = np.diff([shares.taken(n) for n in range(1001)], axis=0)
    assert (steps.sum(axis=1) == 1).all()
    assert steps.min() == 0


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [float("inf"), 1.0], [float("nan"), 1.0]])
def test_weights_that_make_no_sense(weights):
    with pytest.raises(ConfigError, match="need some above 0 and none below"):
        Shares([weights], ends=[1])


SIZES = ([50] * 10, [20, 30], [7])


def mixed(weights=(3.0, 1.0, 0.05), *, batch=64, sizes=SIZES):
    passes = [Passes(counts, seed=number, shuffle_window=100) for number, counts in enumerate(sizes)]
    return RunPlan(passes, Shares([list(weights)], ends=[1]), batch)


def joined(parts, field):
    return np.concatenate([getattr(part, field) for part in parts])


@pytest.mark.parametrize("size", [2, 4, 8, 64])
def test_ranks_share_the_same_batches_and_the_same_mix(size):
    run = mixed()
    for step in (0, 1, 17):
        whole = run.rows(step)
        parts = [run.rows(step, rank, size) for rank in range(size)]
        for field in ("index_B", "epoch_B", "source_B"):
            assert np.array_equal(joined(parts, field), getattr(whole, field))
        counts = np.array([np.bincount(part.source_B, minlength=3) for part in parts])
        assert (counts.max(axis=0) - counts.min(axis=0)).max() <= 2, "every rank gets every source"


def test_each_source_is_read_once_per_epoch_of_its_own():
    rows = [mixed().rows(step) for step in range(40)]
    index, epoch, source = (joined(rows, field) for field in ("index_B", "epoch_B", "source_B"))
    for number, (first, size) in enumerate([(0, 500), (500, 50), (550, 7)]):
        mine = source == number
        assert set(index[mine].tolist()) <= set(range(first, first + size))
        assert len(set(zip(epoch[mine].tolist(), index[mine].tolist(), strict=True))) == mine.sum()
        assert (np.bincount(epoch[mine])[:-1] == size).all()
    assert [row.epoch for row in rows] == [step * 64 // 557 for step in range(40)]


def test_any_step_is_found_without_the_others():
    alone = {step: mixed().rows(step).index_B.tolist() for step in (31, 5, 0)}
    run = mixed()
    assert all(run.rows(step).index_B.tolist() == expected for step, expected in sorted(alone.items()))


def test_the_mix_of_100k_samples_is_within_one_percent():
    run = mixed((0.7, 0.25, 0.05), batch=250)
    counts = sum(np.bincount(run.rows(step, rank, 2).source_B, minlength=3) for step in range(400) for rank in range(2))
    assert counts.sum() == 100_000
    assert np.abs(counts / 100_000 - [0.7, 0.25, 0.05]).max() < 1e-4


def test_what_a_run_reads_of_each_source_is_known_beforehand():
    found = mixed().epochs(100)
    rows = [mixed().rows(step) for step in range(100)]
    shares = np.bincount(joined(rows, "source_B"), minlength=3) / 6400
    assert np.allclose([share for share, _ in found], shares)
    assert np.allclose([epochs for _, epochs in found], shares * 6400 / [500, 50, 7])


def test_rows_of_a_single_source_are_whole_epochs():
    passes = Passes([10, 3], seed=1, shuffle_window=100, length=16)
    run = RunPlan([passes], Shares([[1.0]], ends=[1]), 8)
    assert [run.rows(step).epoch for step in range(5)] == [0, 0, 1, 1, 2]
    assert set(joined([run.rows(0), run.rows(1)], "index_B").tolist()) == set(range(13))
    assert joined([run.rows(2), run.rows(3)], "epoch_B").tolist() == [1] * 16
    made = Rows.of(3, np.array([4, 5]))
    assert (made.epoch, made.epoch_B.tolist(), made.source_B.tolist()) == (3, [3, 3], [0, 0])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    scores = {n: json_pair(n, {"llava": f"rich {n}", "score": n / 10, "more": [f"a {n}", f"b {n}"]}) for n in range(10)}
    return write_set(root / "plain", [6, 4]), write_set(root / "rich", [10], replace=scores)


def config(folders, *, rich=None, **changes) -> DataConfig:
    plain = SourceConfig(str(folders[0]), weight=3)
    return DataConfig(mixture=(plain, SourceConfig(str(folders[1]), **(rich or {}))), **changes)


def test_sources_read_their_own_caption_fields(folders):
    found = sources.open_sources(config(folders, rich={"captions": ("json.llava", "json.more", "txt")}))
    assert len(found) == 20
    assert found.names == ("plain", "rich")
    assert found.read(3).captions == ("caption 3",)
    assert found.read(13).captions == ("rich 3", "a 3", "b 3", "caption 3")
    assert found.locate(13)[1] == "000003"
    assert (found.span(3), found.span(13)) == ((0, 10), (10, 20))
    with pytest.raises(IndexError, match="sample 20 of 20"):
        found.read(20)


def test_filters_pass_over_samples_and_are_counted_apart(folders):
    rules = (FilterConfig("score", at_least=0.25, at_most=0.8),)
    found = sources.open_sources(config(folders, rich={"filters": rules}))
    assert [found.read(i).key for i in range(13, 19)] == [f"{n:06d}" for n in range(3, 9)]
    for i in (10, 11, 12, 19):
        with pytest.raises(BadSample, match=r"score = .* is not within \[0.25, 0.8\]") as caught:
            found.read(i)
        assert caught.value.drop.cause == "filtered"
    missing = sources.open_sources(config(folders, rich={"filters": (FilterConfig("width", at_least=1),)}))
    with pytest.raises(DataError, match="source rich: none of the first 8 .* the filter on 'width' needs a number, got 'None'"):
        missing.preflight()


def test_preflight_prints_what_each_source_is(folders):
    lines = sources.open_sources(config(folders)).preflight().splitlines()
    assert [line.split() for line in lines] == [
        ["source", "shards", "samples", "members"],
        ["plain", "2", "10", ".png", ".txt"],
        ["rich", "1", "10", ".png", ".txt", ".json"],
    ]


def test_a_source_that_does_not_answer_is_named_in_time():
    with pytest.raises(DataError, match="source x: reading its first sample took longer than 0 s; check the path"):
        sources.within(0.05, "source x: reading its first sample", lambda: __import__("time").sleep(5))
    with pytest.raises(ValueError, match="as it was"):
        sources.within(5, "x", lambda: int("as it was"))


def taken(data, total_steps=100, steps=100, batch=20):
    found = sources.open_sources(data)
    run = sources.run_plan(data, found, seed=0, global_batch_size=batch, total_steps=total_steps)
    return np.array([np.bincount(run.rows(step).source_B, minlength=2) for step in range(steps)])


def test_weights_temperature_and_schedule_decide_the_mix(folders, tmp_path):
    assert taken(config(folders)).sum(axis=0).tolist() == [1500, 500]
    large = write_set(tmp_path / "large", [90])
    sized = DataConfig(mixture=(SourceConfig(str(large)), SourceConfig(str(folders[1]))), mixture_temperature=1.0)
    assert taken(sized).sum(axis=0).tolist() == [1800, 200]
    upsampled = DataConfig(mixture=(SourceConfig(str(large)), SourceConfig(str(folders[1]), weight=9)), mixture_temperature=1.0)
    assert taken(upsampled).sum(axis=0).tolist() == [1000, 1000], "as open_clip's --train-data-upsampling-factors 1::9"
    even = DataConfig(mixture=(SourceConfig(str(large)), SourceConfig(str(folders[1]))), mixture_temperature=2.0)
    assert taken(even).sum(axis=0).tolist() == [1500, 500]
    rising = {"weight": 0.0, "schedule": "linear", "final_weight": 3.0}
    ramp = taken(config(folders, rich=rising))
    assert ramp[0].tolist() == [20, 0]
    assert ramp[-1].tolist() == [10, 10]
    share = ramp[:, 1] / 20
    assert abs(share.sum() - sum(3 * t / 99 / (3 + 3 * t / 99) for t in range(100))) < 1
    assert (share[50:].mean() - share[:50].mean()) > 0.15


def test_a_mixture_is_written_in_the_file_of_the_run():
    """As docs/streaming.md shows it; what is wrong in it is named with its place."""
    guide = (REPOSITORY / "docs" / "streaming.md").read_text(encoding="utf-8")
    text = guide[guide.index("data:\n  mixture:") : guide.index("```\n\nEvery batch holds")]
    tree = parse_yaml(text)
    data = build(DataConfig, tree["data"], "data")
    assert [(source.name, source.weight) for source in data_sources(data)] == [("laion", 3), ("cc12m", 1), ("small", 0.1)]
    assert data.mixture[1].filters == (FilterConfig("similarity", at_least=0.28),)
    assert data.mixture[2].replacement
    assert build(DataConfig, parse_yaml(to_yaml(data)), "data") == data
    tree["data"]["mixture"][1]["wieght"] = 2
    with pytest.raises(ConfigError, match=r"data.mixture\[1\].wieght: unknown key 'wieght'; did you mean 'weight'"):
        build(DataConfig, tree["data"], "data")


def test_names_must_differ_and_one_of_two_settings_is_set(folders):
    from pipeline.config.data import rules
    from pipeline.config.limits import check_rules

    same = DataConfig(mixture=(SourceConfig("a/x"), SourceConfig("b/x")))
    with pytest.raises(ConfigError, match="sources are named x, x; give each a name of its own"):
        check_rules(rules(same))
    for wrong in (DataConfig(), DataConfig("a", mixture=(SourceConfig("b"),))):
        with pytest.raises(ConfigError, match="set one of the two"):
            check_rules(rules(wrong))
    for wrong, text in [
        (SourceConfig("a", weight=-1), "must not be negative"),
        (SourceConfig("a", captions=("json",)), "use txt, or json.FIELD"),
        (SourceConfig("a", filters=(FilterConfig("x"),)), "neither at_least nor at_most"),
    ]:
        with pytest.raises(ConfigError, match=text):
            check_rules(rules(DataConfig(mixture=(wrong,))))
