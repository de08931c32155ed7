"""The batch scripts themselves: how they hand over, and what they say when they are misused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "slurm"
JOB = {"SLURM_JOB_ID": "41234567"}
KINDS = ("pretrain", "evaluate")


def _run(kind: str, folder: Path, arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(folder), **variables}
    script = ["bash", str(SCRIPTS / f"{kind}.sh"), *arguments]
    return subprocess.run(script, env=env, cwd="/", capture_output=True, text=True, check=False)


@pytest.fixture
def submit_folder(tmp_path: Path) -> Path:
    """A folder to submit from, whose own Python environment writes down how it is called."""
    own = tmp_path / ".venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    seen = "{'argv': sys.argv[1:], 'cwd': os.getcwd()}"
    own.write_text(f"#!{sys.executable}\nimport json, os, sys\njson.dump({seen}, open('seen.json', 'w'))\n")
    own.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_the_arguments_are_handed_over_untouched(kind: str, submit_folder: Path) -> None:
    arguments = ["configs/a file.yaml", "name=it's $HOME", "train.steps=10"]
    done = _run(kind, submit_folder, arguments, **JOB)
    assert done.returncode == 0, done.stderr
    seen = json.loads((submit_folder / "seen.json").read_text())
    assert seen["argv"] == ["-u", "-m", "slurm.batch", kind, *arguments]
    assert seen["cwd"] == str(submit_folder)


@pytest.mark.parametrize("kind", KINDS)
def test_misuse_is_explained(kind: str, submit_folder: Path) -> None:
    without_arguments = _run(kind, submit_folder, [], **JOB)
    outside_a_job = _run(kind, submit_folder, ["x"])
    for done in (without_arguments, outside_a_job):
        assert done.returncode == 2
        assert f"slurm/{kind}.sh" in done.stderr
    assert re.search(r"on one machine: unisphere (launch pretrain|eval)", outside_a_job.stderr)


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_per_gpu(kind: str) -> None:
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", (SCRIPTS / f"{kind}.sh").read_text(), flags=re.MULTILINE))
    assert options["ntasks-per-node"] == options["gpus-per-node"]


def test_a_training_is_warned_ahead_of_its_limit_and_may_come_back() -> None:
    text = (SCRIPTS / "pretrain.sh").read_text()
    for line in ("#SBATCH --signal=USR1@300", "#SBATCH --requeue", "#SBATCH --open-mode=append"):
        assert line in text.splitlines()
