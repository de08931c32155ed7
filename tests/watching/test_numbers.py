"""The policy about numbers that are not finite, on beats made by hand."""

from __future__ import annotations

import json
import math

import pytest

from pipeline.config import NumbersConfig
from pipeline.errors import NumericsError
from pipeline.watching.numbers import NumbersWatch
from pipeline.watching.pulse import Beat


def beat(step: int, *, skipped: bool = False, searching: bool = False, norm: float = 1.0, loss: float = 2.0) -> Beat:
    return Beat(step, loss, norm, skipped, searching, stop=0, save=0)


def test_single_skips_are_counted_and_a_good_step_ends_a_row() -> None:
    watch = NumbersWatch(NumbersConfig(max_skips_in_a_row=2))
    for step in range(10):
        assert not watch.must_go_back([beat(step, skipped=step % 2 == 0, norm=math.inf if step % 2 == 0 else 1.0)])
    assert watch.figures() == {"skipped": 5, "grad_spikes": 0, "rollbacks": 0}


def test_a_row_of_skips_leads_back_so_often_and_then_ends_the_run() -> None:
    watch = NumbersWatch(NumbersConfig(max_skips_in_a_row=2, max_rollbacks=1))
    bad = [beat(step, skipped=True, norm=math.inf) for step in (4, 5)]
    assert watch.must_go_back(bad)
    assert not watch.must_go_back(bad[:1])
    with pytest.raises(NumericsError, match=r"the gradient norm is inf at step 5, the last of 2 skipped in a row.*optim\.lr"):
        watch.must_go_back(bad[1:])


def test_fp16_looking_for_its_scale_is_no_bad_step() -> None:
    watch = NumbersWatch(NumbersConfig(max_skips_in_a_row=2))
    assert not watch.must_go_back([beat(step, skipped=True, searching=True, norm=math.inf) for step in range(20)])
    assert watch.counts.skipped == 20


def test_a_spike_stands_out_of_the_steps_before_and_does_not_become_usual() -> None:
    watch = NumbersWatch(NumbersConfig(spike_factor=5))
    watch.must_go_back([beat(0, norm=100.0)])  # the first steps say nothing yet
    watch.must_go_back([beat(step, norm=1.0 + 0.1 * (step % 3)) for step in range(1, 60)])
    assert watch.counts.spikes == 0
    watch.must_go_back([beat(60, norm=40.0), beat(61, norm=40.0), beat(62, norm=1.0)])
    assert watch.counts.spikes == 2


def test_counts_go_on_in_the_next_start() -> None:
    """A batch that always fails ends the run even if the run is stopped before each time that would be too often."""
    cfg, notes = NumbersConfig(max_skips_in_a_row=3, max_rollbacks=0), {"passed_over": 4}
    for step in (4, 5):
        watch = NumbersWatch(cfg, notes)
        assert not watch.must_go_back([beat(step, skipped=True, norm=math.inf)])
        notes = json.loads(json.dumps({**notes, **watch.notes()}))
    with pytest.raises(NumericsError, match="the last of 3 skipped in a row"):
        NumbersWatch(cfg, notes).must_go_back([beat(6, skipped=True, norm=math.inf)])


def test_a_spike_is_one_in_the_next_start_too() -> None:
    watch = NumbersWatch(NumbersConfig(spike_factor=5))
    watch.must_go_back([beat(step) for step in range(20)])
    resumed = NumbersWatch(NumbersConfig(spike_factor=5), watch.notes())
    resumed.must_go_back([beat(21, norm=40.0)])
    assert resumed.figures() == {"skipped": 0, "grad_spikes": 1, "rollbacks": 0}
