"""Every checkpoint of a run, evaluated as it appears."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.eval.follow import next_checkpoint, seen_steps
from pipeline.eval.run import main
from tests.eval.helpers import write_noise
from tests.eval.trained import TINY, write_run


def results(run: Path) -> list[tuple[str, int]]:
    lines = (run / "eval.jsonl").read_text().splitlines()
    return [(result["set"], result["step"]) for result in map(json.loads, lines)]


def test_a_complete_run_is_evaluated_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = (str(write_noise(tmp_path / "noise", 30)), str(write_noise(tmp_path / "more", 20)))
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY}, sets=sets)
    assert main([str(cfg.run_dir), "--follow"]) == 0
    assert results(cfg.run_dir) == [("noise", 40), ("more", 40)]
    assert main([str(cfg.run_dir), "--follow"]) == 0
    assert results(cfg.run_dir) == [("noise", 40), ("more", 40)]
    capsys.readouterr()
    assert main([str(cfg.run_dir), "--table"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["set", "step", "top-1"]
    assert [line.split()[:2] for line in lines] == [["more", "40"], ["noise", "40"]]


def test_it_waits_for_the_last_step(tmp_path: Path) -> None:
    """The run's only checkpoint comes while its follower already waits."""
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY}, sets=(str(write_noise(tmp_path / "noise", 30)),))
    away = cfg.run_dir / "checkpoints" / ".step-00000040"
    here = away.with_name("step-00000040")
    here.rename(away)
    follower = threading.Thread(target=main, args=([str(cfg.run_dir), "--follow"],), daemon=True)
    follower.start()
    time.sleep(1)
    assert not (cfg.run_dir / "eval.jsonl").exists()
    away.rename(here)
    follower.join(timeout=60)
    assert not follower.is_alive()
    assert results(cfg.run_dir) == [("noise", 40)]


def test_what_is_missing_comes_next_and_half_a_set_is_missing(tmp_path: Path) -> None:
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY})
    out = cfg.run_dir / "eval.jsonl"
    assert next_checkpoint(cfg.run_dir, out, ["a"], set())[0] == 40
    out.write_text('{"set": "a", "step": 40}\n{"set": "b", "st')
    assert next_checkpoint(cfg.run_dir, out, ["a"], set()) == (0, None)
    assert seen_steps(out, ["x/a", "x/b"]) == set(), "a line that is being written does not count"
    assert next_checkpoint(cfg.run_dir, out, ["a", "b"], set())[0] == 40
    assert next_checkpoint(cfg.run_dir, out, ["a", "b"], {40}) == (0, None)
    shutil.rmtree(cfg.run_dir / "checkpoints")
    assert next_checkpoint(cfg.run_dir, out, ["b"], set()) == (0, None)


def test_no_results_is_an_error(tmp_path: Path) -> None:
    assert main([str(tmp_path), "--table"]) == DataError.exit_code
