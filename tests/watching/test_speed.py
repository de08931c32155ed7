"""Where time goes, how much arithmetic a model is, and what share of a device that uses."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.dist import World
from pipeline.watching import flops
from pipeline.watching.pace import Pace
from pipeline.watching.speed import Speedometer, flops_per_sample
from tests import tiny
from tests.runs import run_config


def test_flops_are_two_per_multiply_add_and_nothing_is_computed() -> None:
    layer = nn.Linear(64, 32, bias=False)
    assert flops.count(layer, torch.zeros(10, 64)) == 2 * 10 * 64 * 32
    assert flops.count(nn.Linear(10**6, 10**6, device="meta"), torch.zeros(1, 10**6, device="meta")) == 2 * 10**12


def test_a_view_more_is_an_image_pass_more() -> None:
    model = tiny.model()
    one, two, three = (flops_per_sample(model, views, 0) for views in (1, 2, 3))
    assert three - two == two - one > 0


def test_utilisation_of_known_devices() -> None:
    assert flops.peak_tflops("NVIDIA H200") == 989 and flops.peak_tflops("NVIDIA A100-SXM4-80GB") == 312
    assert flops.peak_tflops("NVIDIA L40S") == 362 and flops.peak_tflops("NVIDIA L4") == 121
    assert flops.peak_tflops("a CPU") is None
    # 989e12 operations a second in all, over three passes of 1e9 operations a sample.
    assert flops.utilisation(1e9, 989e12 / 3e9, 1, 989.0) == pytest.approx(1.0)


def test_pace_counts_what_happened_since_the_last_lap() -> None:
    pace = Pace()
    assert list(pace.waiting_for(iter("abc"))) == ["a", "b", "c"]
    lap = pace.lap(samples_per_step=10)
    assert lap["samples_per_second"] > 0 and 0 <= lap["data_wait_share"] <= 1
    assert pace.lap(samples_per_step=10)["samples_per_second"] == 0


def test_saving_and_evaluating_are_left_out_of_throughput_and_may_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    pace = Pace()
    for _ in pace.waiting_for(iter("ab")):
        now[0] += 1
        pace.enter("forward", 4)
        assert pace.where().may_stall and pace.where().step == 4
        now[0] += 3
        pace.enter("save", 5)
        now[0] += 100
        assert not pace.where().may_stall and pace.where().seconds == 100
    assert pace.lap(8) == {"samples_per_second": 2 * 8 / 8, "data_wait_share": 0.25}


def test_a_record_has_utilisation_and_time_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 samples a second in batches of 12: 1,000 steps take 120 s, of which 40 steps are done."""
    now = [0.0]
    for clock in ("perf_counter", "monotonic"):
        monkeypatch.setattr(time, clock, lambda: now[0])
    cfg = run_config(tmp_path, train__steps=1000, log__peak_tflops=1e-3)
    model, pace = tiny.model(), Pace()
    speed = Speedometer(cfg, World(), torch.device("cpu"), model, tiny.VIEW_PARAMS)
    laps = []
    for step, _ in enumerate(pace.waiting_for(iter(range(41)))):
        if step in (20, 40):
            laps.append(speed.lap(pace, step))
        now[0] += 0.12
    assert "eta_seconds" not in laps[0] and laps[1]["eta_seconds"] == pytest.approx(960 * 0.12)
    operations = 3 * flops_per_sample(model, 1, tiny.VIEW_PARAMS) * 100
    assert laps[1]["tflops_per_device"] == pytest.approx(operations / 1e12)
    assert laps[1]["mfu"] == pytest.approx(operations / 1e9)
