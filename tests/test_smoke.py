"""The smoke run's own parts that can be wrong without it noticing: what it kills, what it compares, what README promises."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline import config, smoke
from pipeline.errors import PipelineError
from tests.runs import run_config

README = Path(__file__).parent.parent / "README.md"


def test_the_whole_family_dies_sessions_of_their_own_included() -> None:
    """Ranks of torchrun live in sessions of their own, where a signal to the process group does not reach them."""
    sleep = "import time; time.sleep(60)"
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleep!r}], start_new_session=True); {sleep}"
    process = subprocess.Popen([sys.executable, "-c", child])
    deadline = time.monotonic() + 20
    while not (family := psutil.Process(process.pid).children(recursive=True)) and time.monotonic() < deadline:
        time.sleep(0.05)
    smoke._kill_tree(process)
    assert len(family) == 1 and not family[0].is_running()
    assert process.poll() is not None


def write_losses(cfg: Any, losses: dict[int, float]) -> None:
    cfg.run_dir.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": step, "loss": loss}) for step, loss in losses.items()]
    (cfg.run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def test_replayed_losses_must_be_equal(tmp_path: Path) -> None:
    cfg = run_config(tmp_path)
    write_losses(cfg, {5: 1.5, 10: 1.0})
    assert smoke._check_replay(cfg, {5: 1.5}) == 1
    with pytest.raises(PipelineError, match=r"other losses than before the kill: \{5: \(1.25, 1.5\)\}"):
        smoke._check_replay(cfg, {5: 1.25})
    with pytest.raises(PipelineError, match="none to compare"):
        smoke._check_replay(cfg, {})


def test_a_training_that_did_not_finish_is_noticed(tmp_path: Path) -> None:
    cfg = run_config(tmp_path)
    write_losses(cfg, {5: 1.5})
    with pytest.raises(PipelineError, match="ended at step 5 of 10"):
        smoke._check_replay(cfg, {5: 1.5})


def result(value: float) -> dict[str, Any]:
    recall = {f"recall@{k}": value for k in (1, 5)}
    retrieval = {"text_to_image": recall, "image_to_text": recall}
    return {"samples": 100, "zero_shot": {"accuracy@1": value, "classes": 10}, "retrieval": retrieval}


def test_a_figure_below_its_promise_fails_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = run_config(tmp_path)
    write_losses(cfg, {10: 1.0})
    assert smoke._report(cfg, result(0.5), 1, 0.0, 1.0)
    assert "MISSED" not in capsys.readouterr().out
    assert not smoke._report(cfg, result(0.05), 1, 0.0, 1.0)
    assert "MISSED" in capsys.readouterr().out


def test_the_readme_promises_what_the_smoke_run_checks() -> None:
    promised = {name: f"{low:.0%}".replace("%", " %") for name, (low, _) in smoke.PROMISED.items()}
    rows = dict(re.findall(r"^\| ([\w ]+@\d)[^|]*\|[^|]*\|[^|]*\| >= (\d+ %) \|$", README.read_text(), flags=re.M))
    assert rows == promised


def test_the_promises_are_far_above_chance() -> None:
    cfg = config.load(smoke.CONFIG)
    assert cfg.engine.zero_stage == 1
    chance = {name: 1 / 95 if "zero" in name else int(name[-1]) / 1595 for name in smoke.PROMISED}
    assert len(chance) == 5
    assert all(low >= 4 * chance[name] for name, (low, _) in smoke.PROMISED.items())
