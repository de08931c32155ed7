"""Looking after jobs by the run's folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline import config
from pipeline.errors import LaunchError
from slurm import watch
from slurm.launch import main
from slurm.records import Record, read_all, write
from tests import runs
from tests.slurm.stand_ins import StandIns


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run at step 7 of 10 with one running training and one waiting evaluation."""
    cfg = runs.run_config(tmp_path)
    (cfg.run_dir / "checkpoints").mkdir(parents=True)
    (cfg.run_dir / "config.yaml").write_text(config.dump(cfg))
    (cfg.run_dir / "metrics.jsonl").write_text('{"step": 6, "loss": 1}\n{"step": 7, "loss": 1}\n')
    (cfg.run_dir / "checkpoints" / "latest").write_text("step-00000006\n")
    output = tmp_path / "a b.out"
    output.write_text("".join(f"line {number}\n" for number in range(50)))
    write(cfg.run_dir, Record("11", "pretrain", str(output)))
    write(cfg.run_dir, Record("12", "evaluate", "/nowhere"))
    os.utime(cfg.run_dir / "jobs" / "11.json", (1, 1))
    programs = StandIns(tmp_path / "slurm")
    programs.answer("scontrol", "11", prints="JobId=11 JobState=RUNNING Restarts=1 NodeList=n[1-2] StdOut=/a b/c.out")
    programs.answer("scontrol", "12", prints="JobId=12 JobState=PENDING Reason=Dependency NodeList=(null) Restarts=0")
    monkeypatch.setenv("PATH", f"{programs.folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return cfg.run_dir


def test_status(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(run)]) == 0
    first, training, evaluation = capsys.readouterr().out.splitlines()
    assert first == f"{run}: 7 of 10 steps, newest checkpoint step-00000006"
    assert training.split() == ["11", "pretrain", "RUNNING", "n[1-2]", "restarts", "1"]
    assert evaluation.split() == ["12", "evaluate", "PENDING", "(Dependency)"]


def test_values_with_spaces_are_read_whole(run: Path) -> None:
    assert watch.describe("11")["StdOut"] == "/a b/c.out"


def test_a_job_that_slurm_has_forgotten(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "unknown" in watch.status(run)


def test_the_end_of_the_log(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", str(run), "-n", "2"]) == 0
    assert capsys.readouterr().out == "line 48\nline 49\n"


def test_following_ends_with_the_job(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs = StandIns(tmp_path / "ended")
    programs.answer("scontrol", "11", prints="JobId=11 JobState=COMPLETED")
    monkeypatch.setenv("PATH", f"{programs.folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert main(["logs", str(run), "-f", "-n", "1"]) == 0
    assert capsys.readouterr().out == "line 49\n"


def test_cancelling_asks_for_what_is_alive(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cancel", str(run)]) == 0
    assert capsys.readouterr().out == f"{run}: cancelled 11, 12\n"


def test_a_folder_without_jobs_is_explained(tmp_path: Path) -> None:
    assert read_all(tmp_path) == []
    assert watch.status(tmp_path).endswith(": not started")
    with pytest.raises(LaunchError, match=r"no training job was started for it"):
        main(["logs", str(tmp_path)])
    with pytest.raises(LaunchError, match=r"is not a folder; give the folder of a run"):
        main(["status", str(tmp_path / "x")])
