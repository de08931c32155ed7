"""The profile: every phase of a step has a row, the rows explain the step, and a trace of undisturbed steps is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config import RunConfig
from pipeline.dist import World
from pipeline.train import train
from pipeline.watching import profile
from pipeline.watching.profile import ROWS, Profile
from tests.distributed import run_ranks
from tests.runs import run_config, write_shards


def profiled(world: World, cfg: RunConfig) -> Profile:
    return profile.run(cfg, world, train)


def test_the_shares_explain_the_step_within_two_percent(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards")
    cfg = run_config(tmp_path, train__steps=1000, checkpoint__every_steps=100)
    for found in run_ranks(profiled, 2, cfg):
        assert set(found.seconds) == set(ROWS)
        assert found.explained == pytest.approx(1.0, abs=0.02)
        assert all(found.seconds[row] > 0 for row in ROWS)
        assert f"sum {'':8}" in found.table() and "undisturbed" in found.table()
    folder = tmp_path / "runs" / "run-profile"
    assert json.loads((folder / "profile.json").read_text())["step_seconds"] > 0
    assert any("Adam" in event.get("name", "") for event in json.loads((folder / "trace.json").read_text())["traceEvents"])
    assert not (tmp_path / "runs" / "run").exists()


def test_a_save_is_spread_over_the_steps_between_saves() -> None:
    seconds = dict.fromkeys(ROWS, 0.1)
    assert Profile(seconds, 0.9, 0.8).explained == pytest.approx(1.0)
    assert Profile(seconds, 0.9, 0.8).table().splitlines()[1].endswith("11.1%")
