"""The command line: what it refuses before anything starts, what it prints, and what it hands to sbatch."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import config
from pipeline.errors import ConfigError, LaunchError
from slurm.job import sbatch_text
from slurm.launch import build_parser, main, plan
from slurm.records import read_all

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"name: demo\nruns_dir: {tmp_path}/runs\ndata: {{train: nowhere}}\nmodel: {{architecture: ViT-B-32}}\n"
        "train: {steps: 3000, global_batch_size: 8}\n"
    )
    return path


def test_settings_and_options_may_be_mixed_in_any_order(config_file: Path) -> None:
    arguments = ["--nodes", "2", "pretrain", str(config_file), "optim.lr=1e-3", "--cluster", "slurm", "train.steps=4000"]
    (job,) = plan(build_parser().parse_intermixed_args([*arguments, "--gpus-per-node", "4"]))
    assert job.command == (
        sys.executable,
        "-m",
        "pipeline.train",
        str(config_file),
        "optim.lr=1e-3",
        "train.steps=4000",
    )
    assert (job.nodes, job.tasks_per_node, job.gpus_per_node, job.world_size) == (2, 4, 4, 8)
    assert job.folder == config_file.parent / "runs" / "demo" / "jobs"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["optim.lrr=1"], ConfigError, r"optim\.lrr: unknown key 'lrr'; did you mean 'lr'\?"),
        (["--tasks-per-node", "3"], ConfigError, r"does not divide over 3 ranks .* use one of: 6, 9"),
        (["--nodes", "2"], LaunchError, r"--cluster local is this machine alone, but --nodes is 2; use slurm"),
        (["--nodes", "0", "--cluster", "slurm"], LaunchError, r"--nodes is 0: must be at least 1"),
        (["--tasks-per-node", "-2"], LaunchError, r"--tasks-per-node is -2: must be at least 1"),
        (
            ["--cluster", "debug", "--tasks-per-node", "2"],
            LaunchError,
            r"one process in this terminal, not 2; use local",
        ),
        (["--time", "90"], ConfigError, r"--time 90: expected HH:MM:SS"),
        (["--sweep", "seed=0,1"], LaunchError, r"--sweep makes a job array, but --cluster is local"),
        (["--sbatch", "exclusive"], LaunchError, r"--sbatch exclusive: expected KEY=VALUE"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    config_file: Path, arguments: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        main(["pretrain", str(config_file), *arguments])
    assert not (config_file.parent / "runs").exists()


def test_without_slurm_the_error_names_the_way_out(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(config_file.parent))
    with pytest.raises(LaunchError, match=r"no srun in PATH; .* --dry-run"):
        main(["pretrain", str(config_file), "--cluster", "slurm"])


def test_a_dry_run_prints_commands_that_a_shell_reads_back(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", str(config_file), "name=it's", "--tasks-per-node", "2", "--dry-run"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[-1] for line in lines] == ["name=it's", "name=it's"]
    assert not (config_file.parent / "runs").exists()


def _fake_cluster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An sbatch that keeps its script and answers as the real one, and an srun that only exists."""
    received = folder / "received.sh"
    programs = {"sbatch": f'cp "$1" {shlex.quote(str(received))}; echo Submitted batch job 4242', "srun": "exit 1"}
    for name, body in programs.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return received


def test_what_is_submitted_is_what_the_dry_run_shows(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    received = _fake_cluster(tmp_path, monkeypatch)
    arguments = [
        "pretrain",
        str(config_file),
        "--cluster",
        "slurm",
        "--nodes",
        "2",
        "--gpus-per-node",
        "4",
        "--cpus-per-task",
        "6",
    ]
    assert main([*arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert not received.exists()
    assert main(arguments) == 0
    assert received.read_text().strip() == shown.strip()
    assert shown.strip() == sbatch_text(*plan(build_parser().parse_intermixed_args(arguments))).strip()
    said = capsys.readouterr().out
    assert "submitted job 4242: demo, 8 processes on 2 nodes" in said
    assert re.search(r"log: \S+/runs/demo/jobs/4242/4242_0_log\.out", said)
    (record,) = read_all(config_file.parent / "runs" / "demo")
    assert (record.job, record.kind) == ("4242", "pretrain")
    (frozen,) = (config_file.parent / "runs" / "demo" / "jobs").glob("submitted-*")
    assert config.load(frozen / "config.yaml").eval.at_end, "the copy is the run's; the job's own changes are made in the job"


def test_a_sweep_is_one_array_with_a_run_each(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    received = _fake_cluster(tmp_path, monkeypatch)
    assert main(["pretrain", str(config_file), "--cluster", "slurm", "--sweep", "seed=0,1,2"]) == 0
    assert "#SBATCH --array=0-2%" in received.read_text()
    said = capsys.readouterr().out
    for number in range(3):
        run = config_file.parent / "runs" / f"demo-seed{number}"
        assert f"submitted job 4242_{number}: {run.name}" in said
        (copy,) = run.glob("jobs/submitted-*/config.yaml")
        assert config.load(copy).seed == number


def test_debug_runs_the_training_in_this_terminal(config_file: Path) -> None:
    command = [sys.executable, "-m", "slurm.launch", "pretrain", str(config_file), "--cluster", "debug", "train.steps=10"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 2
    assert "error: optim.warmup_steps = 2000" in done.stderr
