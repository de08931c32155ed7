"""A job's own copy of code and settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from pipeline import config
from slurm.frozen import REPOSITORY, freeze


def settings(tmp_path: Path, steps: int = 10) -> config.RunConfig:
    return config.from_tree(
        {
            "name": "demo",
            "runs_dir": str(tmp_path / "runs"),
            "data": {"train": "nowhere"},
            "model": {"architecture": "ViT-B-32"},
            "train": {"steps": steps, "global_batch_size": 8},
            "optim": {"warmup_steps": 1},
        }
    )


def test_a_later_start_uses_the_first_ones_copy(tmp_path: Path) -> None:
    first = freeze(settings(tmp_path), "77", {"tasks": 4})
    again = freeze(settings(tmp_path, steps=99), "77", {"tasks": 4})
    assert first == again
    assert config.load(again.config).train.steps == 10
    assert json.loads((first.folder / "job.json").read_text())["tasks"] == 4
    assert config.load(freeze(settings(tmp_path, steps=99), "78", {}).config).train.steps == 99
    assert not [path for path in first.folder.parent.iterdir() if path.name.startswith(".")], "nothing half-made stays"


def test_ranks_import_the_copy_whatever_happens_to_the_repository(tmp_path: Path) -> None:
    frozen = freeze(settings(tmp_path), "77", {})
    code = "import pipeline.schedule, slurm.job; print(pipeline.schedule.__file__); print(slurm.job.__file__)"
    env = {**os.environ, **frozen.environment()}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=env, cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert [Path(line).is_relative_to(frozen.code) for line in done.stdout.splitlines()] == [True, True]
