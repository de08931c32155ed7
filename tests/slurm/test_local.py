"""Jobs on this machine: real processes, one exit code, nothing left behind. The ranks run small programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pipeline.errors import LaunchError
from slurm.job import Job
from slurm.local import Follower, _visible_gpus, run_local

REPOSITORY = Path(__file__).parents[2]
KEYS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def _job(folder: Path, program: str, processes: int) -> Job:
    """A job whose ranks run ``program``; its working folder is ``folder``."""
    script = folder / "program.py"
    script.write_text("import os, sys, time, pathlib\nrank = int(os.environ['RANK'])\n" + textwrap.dedent(program))
    return Job("demo", (sys.executable, str(script), str(folder)), (), folder / "launch", tasks_per_node=processes)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


def test_every_rank_runs_once_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "77")
    monkeypatch.setenv("SLURM_PROCID", "3")
    program = """
        import json
        pathlib.Path(sys.argv[1], f"rank{rank}.json").write_text(json.dumps(dict(os.environ)))
        print("hello from rank", rank)
    """
    assert run_local(_job(tmp_path, program, processes=3)) == 0
    envs = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(3)]
    places = [tuple(env[key] for key in KEYS[:4]) for env in envs]
    assert places == [("0", "3", "0", "3"), ("1", "3", "1", "3"), ("2", "3", "2", "3")]
    assert {env["MASTER_ADDR"] for env in envs} == {"127.0.0.1"}
    assert len({env["MASTER_PORT"] for env in envs}) == 1
    assert not [key for env in envs for key in env if key.startswith("SLURM_")]
    shown = capsys.readouterr().out
    assert "started 3 processes · logs: " in shown
    assert "hello from rank 0" in shown
    assert "hello from rank 1" not in shown


def test_the_first_failing_rank_decides_and_ends_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = """
        pathlib.Path(sys.argv[1], f"pid{rank}").write_text(str(os.getpid()))
        while rank == 1 and not pathlib.Path(sys.argv[1], "pid0").exists():
            time.sleep(0.05)
        if rank == 1:
            sys.exit("error: the reason, on rank 1")
        time.sleep(600)
    """
    assert run_local(_job(tmp_path, program, processes=2)) == 1
    message = capsys.readouterr().err
    assert "error: rank 1 exited with 1, rank 0 was stopped" in message
    assert "error: the reason, on rank 1" in message
    _assert_gone(int((tmp_path / "pid0").read_text()))


def test_a_rank_killed_by_a_signal_is_a_failure_with_the_shells_code(tmp_path: Path) -> None:
    assert run_local(_job(tmp_path, "os.kill(os.getpid(), 9)", processes=1)) == 128 + 9


def test_a_command_that_does_not_exist_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_local(Job("demo", ("/no/such/program",), (), tmp_path / "launch")) == 1
    assert "/no/such/program" in capsys.readouterr().err


def test_stopping_the_launcher_stops_every_rank(tmp_path: Path) -> None:
    program = """
        partial = pathlib.Path(sys.argv[1], f"part{rank}")
        partial.write_text(str(os.getpid()))
        partial.rename(pathlib.Path(sys.argv[1], f"pid{rank}"))
        time.sleep(600)
    """
    job = _job(tmp_path, program, processes=2)
    starter = (
        "import sys; from pathlib import Path; from slurm.job import Job; from slurm.local import run_local; "
        f"sys.exit(run_local(Job('demo', {job.command!r}, (), Path({str(job.folder)!r}), tasks_per_node=2)))"
    )
    launcher = subprocess.Popen([sys.executable, "-c", starter], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    files = [tmp_path / "pid0", tmp_path / "pid1"]
    while not all(file.exists() for file in files):
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait() == 128 + signal.SIGTERM
    for file in files:
        _assert_gone(int(file.read_text()))


def _assert_gone(pid: int) -> None:
    """A process has ended, or is a zombie that its parent's parent will collect."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return
    assert state == "Z", f"process {pid} still runs (state {state})"


def test_a_narrower_choice_of_gpus_stays() -> None:
    assert _visible_gpus(2, None) == ()
    assert _visible_gpus(0, "3") == ()
    assert _visible_gpus(2, "5, 3,1") == (5, 3, 1)
    with pytest.raises(LaunchError, match="--gpus-per-node 2, but CUDA_VISIBLE_DEVICES = 3 shows 1"):
        _visible_gpus(2, "3")
    with pytest.raises(LaunchError, match="give GPU numbers such as 2,3, or unset it"):
        _visible_gpus(1, "GPU-8a21")


def test_a_follower_copies_each_byte_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    follower = Follower(log, sys.stdout)
    follower.copy_new()
    for added in ("one\n", "", "two\nthr", "ee\n"):
        with log.open("a") as file:
            file.write(added)
        follower.copy_new()
    assert capsys.readouterr().out == "one\ntwo\nthree\n"
