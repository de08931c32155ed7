"""``pretrain.sh`` under stand-ins for scontrol and srun, which write down what they were given."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from slurm.job import job_port

SCRIPT = Path(__file__).parents[2] / "slurm" / "pretrain.sh"
JOB = {"SLURM_JOB_ID": "41234567", "SLURM_JOB_NODELIST": "n[003-004]", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "16"}


@pytest.fixture
def submit_folder(tmp_path: Path) -> Path:
    """A folder to submit from, with ``bin/scontrol`` and ``bin/srun``."""
    seen = "{'argv': sys.argv[1:], 'env': dict(os.environ), 'cwd': os.getcwd()}"
    record = f"import json, os, sys; json.dump({seen}, open('{tmp_path}/srun.json', 'w'))"
    programs = {
        "scontrol": 'test "$*" = "show hostnames n[003-004]" || exit 9\nprintf "n003\\nn004\\n"',
        "srun": f'exec {sys.executable} -c "{record}" "$@"',
    }
    (tmp_path / "bin").mkdir()
    for name, body in programs.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def _run(folder: Path, arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(folder), **variables}
    return subprocess.run(["bash", str(SCRIPT), *arguments], env=env, cwd="/", capture_output=True, text=True, check=False)


def test_srun_gets_the_arguments_untouched_and_a_clean_rendezvous(submit_folder: Path) -> None:
    arguments = ["configs/a file.yaml", "name=it's $HOME", "train.steps=10"]
    stale = {"RANK": "3", "WORLD_SIZE": "64", "LOCAL_RANK": "3", "TORCHELASTIC_RUN_ID": "x", "MASTER_PORT": "1"}
    done = _run(submit_folder, arguments, SLURM_CPUS_PER_TASK="12", **JOB, **stale)
    assert done.returncode == 0, done.stderr
    seen = json.loads((submit_folder / "srun.json").read_text())
    assert seen["argv"][-3:] == arguments
    assert seen["argv"][:2] == ["--kill-on-bad-exit=1", "--cpus-per-task=12"]
    assert seen["argv"][2:5] == ["python3", "-m", "pipeline.train"]
    assert seen["cwd"] == str(submit_folder)
    assert seen["env"]["MASTER_ADDR"] == "n003"
    assert seen["env"]["MASTER_PORT"] == str(job_port(JOB["SLURM_JOB_ID"]))
    assert seen["env"]["SLURM_EXPORT_ENV"] == "ALL"
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"} & set(seen["env"])


def test_the_repositorys_own_environment_is_preferred(submit_folder: Path) -> None:
    own = submit_folder / ".venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.symlink_to(sys.executable)
    assert _run(submit_folder, ["x.yaml"], **JOB).returncode == 0
    assert json.loads((submit_folder / "srun.json").read_text())["argv"][2] == ".venv/bin/python"


def test_misuse_is_explained(submit_folder: Path) -> None:
    without_config = _run(submit_folder, [], **JOB)
    assert without_config.returncode == 2
    assert "usage: sbatch [OPTION ...] slurm/pretrain.sh CONFIG" in without_config.stderr
    outside_a_job = _run(submit_folder, ["x.yaml"])
    assert outside_a_job.returncode == 2
    assert "sbatch slurm/pretrain.sh x.yaml" in outside_a_job.stderr
    assert "unisphere launch x.yaml" in outside_a_job.stderr


def test_a_failing_lookup_of_the_hosts_ends_the_job(submit_folder: Path) -> None:
    done = _run(submit_folder, ["x.yaml"], **{**JOB, "SLURM_JOB_NODELIST": "unknown"})
    assert done.returncode == 9
    assert not (submit_folder / "srun.json").exists()


def test_one_process_per_gpu() -> None:
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", SCRIPT.read_text(), flags=re.MULTILINE))
    assert options["ntasks-per-node"] == options["gpus-per-node"]
