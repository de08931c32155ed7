from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.dist import World
from pipeline.errors import CheckpointError, ConfigError, DataError
from pipeline.eval.evaluate import evaluate_checkpoint
from pipeline.eval.run import main
from pipeline.export import export
from tests.distributed import run_ranks
from tests.eval.helpers import write_noise
from tests.eval.trained import TINY, write_run


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    return write_noise(tmp_path / "noise", 70)


def measured(file: Path) -> list[dict[str, Any]]:
    """Results without what differs from launch to launch."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "world_size", "weights_sha256")} for line in lines]


def test_a_run_a_checkpoint_and_an_export_give_the_same_numbers(
    tmp_path: Path, noise: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY}, sets=(str(noise),))
    assert main([str(cfg.run_dir)]) == 0
    (result,) = measured(cfg.run_dir / "eval.jsonl")
    assert result["run"] == "tiny"
    assert result["step"] == 40
    assert result["set"] == "noise"
    assert result["samples"] == 70
    assert 0 < result["zero_shot"]["correct@1"] < 70
    assert "zero-shot top-1" in capsys.readouterr().out

    out = tmp_path / "from_checkpoint.jsonl"
    checkpoint = cfg.run_dir / "checkpoints" / "step-00000040"
    assert main([str(checkpoint), "--batch-size", "1", "--out", str(out)]) == 0
    assert measured(out) == [result]

    export(cfg.run_dir, tmp_path / "export")
    assert main([str(tmp_path / "export"), "--sets", str(noise)]) == 0
    assert measured(tmp_path / "export" / "eval.jsonl") == [result]


def test_training_evaluates_as_the_command_does(tmp_path: Path, noise: Path) -> None:
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY}, sets=(str(noise),))
    folder = cfg.run_dir / "checkpoints" / "step-00000040"
    (during,) = evaluate_checkpoint(folder, cfg.eval, World(), torch.device("cpu"))
    assert main([str(cfg.run_dir)]) == 0
    assert len(measured(cfg.run_dir / "eval.jsonl")) == 1, "what is known is not measured again"
    assert main([str(cfg.run_dir), "--force"]) == 0
    first, second = measured(cfg.run_dir / "eval.jsonl")
    assert first == second
    (noise / "classnames.txt").write_text((noise / "classnames.txt").read_text().replace("a", "b"))
    assert main([str(cfg.run_dir)]) == 0
    assert len(measured(cfg.run_dir / "eval.jsonl")) == 3, "another set, although at the same place"
    assert during["zero_shot"] == first["zero_shot"]


def test_training_evaluates_averaged_weights_if_there_are_any_and_as_many_samples_as_it_may(
    tmp_path: Path, noise: Path
) -> None:
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY}, sets=(str(noise),), averaged=True)
    bounded = dataclasses.replace(cfg.eval, max_samples=20)
    (during,) = evaluate_checkpoint(cfg.run_dir / "checkpoints" / "step-00000040", bounded, World(), torch.device("cpu"))
    assert (during["weights"], during["samples"], during["options"]) == ("averaged", 20, {"max_samples": 20})
    assert main([str(cfg.run_dir), "--averaged", "--max-samples", "20"]) == 0
    assert len(measured(cfg.run_dir / "eval.jsonl")) == 1, "known: the command measures the same"
    assert main([str(cfg.run_dir)]) == 0
    _, plain = measured(cfg.run_dir / "eval.jsonl")
    assert plain["samples"] == 70 and "weights" not in plain


def main_on_ranks(world: World, argv: list[str]) -> int:
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="1")  # not used: the ranks are in a group already
    return main(argv)


def test_two_ranks_give_the_numbers_of_one(tmp_path: Path, noise: Path) -> None:
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY}, sets=(str(noise),))
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert main([str(cfg.run_dir), "--out", str(one)]) == 0
    assert run_ranks(main_on_ranks, 2, [str(cfg.run_dir), "--out", str(two)]) == [0, 0]
    assert measured(one) == measured(two)
    assert json.loads(two.read_text())["world_size"] == 2


def test_a_broken_set_fails_the_command_on_every_rank(tmp_path: Path, noise: Path) -> None:
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY})
    argv = [str(cfg.run_dir), "--sets", str(tmp_path / "missing"), str(noise)]
    assert run_ranks(main_on_ranks, 2, argv) == [DataError.exit_code] * 2
    first, second = measured(cfg.run_dir / "eval.jsonl")
    assert "error" in first
    assert second["set"] == "noise"
    assert "error" not in second


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{tmp}/nowhere"], CheckpointError.exit_code, "is not a folder"),
        (["{tmp}"], CheckpointError.exit_code, "neither a run .* nor a checkpoint"),
        (["{run}"], ConfigError.exit_code, "nothing to evaluate: .* give --sets DIR"),
        (["{run}", "--batch-size", "0"], ConfigError.exit_code, "--batch-size 0: must be at least 1"),
        (["{run}", "--max-samples", "0"], ConfigError.exit_code, "--max-samples 0: must be at least 1"),
        (["{run}", "--sets", "datacomp"], ConfigError.exit_code, "name of a set; say where named sets lie: --root"),
        (["{run}", "--table", "--group", "a=b"], DataError.exit_code, "holds no results yet"),
    ],
)
def test_what_cannot_work_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY})
    assert main([argument.format(tmp=tmp_path, run=cfg.run_dir) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert len(captured.err.splitlines()) == 1
    assert re.search(words, captured.err)


def test_an_export_that_needs_another_preprocessing_is_refused(
    tmp_path: Path, noise: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY})
    export(cfg.run_dir, tmp_path / "export")
    path = tmp_path / "export" / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["preprocess_cfg"]["resize_mode"] = "squash"
    path.write_text(json.dumps(config))
    assert main([str(tmp_path / "export"), "--sets", str(noise)]) == CheckpointError.exit_code
    assert "resize_mode = 'squash'; only 'shortest' is supported" in capsys.readouterr().err
    path.write_text("{")
    assert main([str(tmp_path / "export"), "--sets", str(noise)]) == CheckpointError.exit_code
    assert "open_clip_config.json cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["pipeline.eval.run", "pipeline.export"])
def test_help_needs_no_torch(module: str) -> None:
    code = f"import sys, runpy; sys.argv = ['x', '--help']\ntry: runpy.run_module('{module}', run_name='__main__')\n"
    code += "finally: assert 'torch' not in sys.modules, 'torch was imported'"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: unisphere ")
