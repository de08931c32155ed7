"""The inside of a batch job, with stand-ins for Slurm's programs: what it starts, and what it makes of the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline.errors import EXIT_REQUEUE, NoProgress
from slurm.job import job_port
from slurm.records import read_all
from tests import runs
from tests.slurm.stand_ins import StandIns

REPOSITORY = Path(__file__).parents[2]
JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "demo",
    "SLURM_JOB_NODELIST": "n[003-004]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NTASKS": "4",
    "SLURM_CPUS_PER_TASK": "6",
    "SLURM_JOB_PARTITION": "gpu",
    "SLURM_JOB_ACCOUNT": "lab",
}
HEALTHY = "[(Path(sys.argv[-1]) / f'{host}.json').write_text('[]') for host in ('n003', 'n004')]"


@pytest.fixture
def slurm(tmp_path: Path) -> StandIns:
    programs = StandIns(tmp_path / "slurm")
    programs.answer("scontrol", "show", prints="JobId=4711 StdOut=/out/demo-4711.out")
    programs.answer("scontrol", "hostnames", prints="n003\nn004\n")
    programs.answer("srun", "pipeline.doctor", do=HEALTHY)
    programs.answer("sbatch", prints="4712\n")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(runs.run_tree(tmp_path, eval__sets=["sets/a"])))
    return programs


def command(slurm: StandIns, *words: str) -> list[str]:
    return [sys.executable, "-m", "slurm.batch", *words]


def environment(slurm: StandIns, **changes: str) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    path = f"{slurm.folder / 'bin'}:{os.environ['PATH']}"
    return {**inherited, "PATH": path, "PYTHONPATH": str(REPOSITORY), **JOB, **changes}


def run(slurm: StandIns, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
    cwd = slurm.folder.parent
    return subprocess.run(
        command(slurm, *words), env=environment(slurm, **changes), cwd=cwd, capture_output=True, text=True, timeout=60
    )


def finish(slurm: StandIns, step: int = 10) -> None:
    """Leave what a training leaves."""
    folder = slurm.folder.parent / "runs" / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "latest").write_text(f"step-{step:08d}\n")


def test_a_training_runs_on_every_rank_and_hands_over_to_the_evaluation(slurm: StandIns) -> None:
    finish(slurm)
    stale = {"WORLD_SIZE": "99", "MASTER_ADDR": "nowhere", "TORCHELASTIC_RUN_ID": "x"}
    done = run(slurm, "pretrain", "run.yaml", "train.steps=8", **stale)
    assert done.returncode == 0, done.stderr
    assert "4 ranks on 2 hosts, they meet at n003:" in done.stdout
    doctor, training = slurm.calls("srun")
    assert {"--ntasks=2", "--ntasks-per-node=1"} <= set(doctor["argv"])
    assert {"--ntasks=4", "--wait=60", "--cpus-per-task=6"} <= set(training["argv"])
    assert training["argv"][-4:-2] == ["-m", "pipeline.train"]
    assert "-P" in training["argv"], "the current folder must not hide the frozen code"
    frozen = slurm.folder.parent / "runs" / "run" / "jobs" / "4711"
    assert training["argv"][-2:] == [str(frozen / "config.yaml"), "eval.at_end=false"]
    assert yaml.safe_load((frozen / "config.yaml").read_text())["train"]["steps"] == 8
    env = training["env"]
    assert env["PYTHONPATH"] == str(frozen / "code")
    assert (env["MASTER_ADDR"], env["SLURM_EXPORT_ENV"]) == ("n003", "ALL")
    assert job_port("4711") <= int(env["MASTER_PORT"]) < job_port("4711") + 100
    assert not {"WORLD_SIZE", "TORCHELASTIC_RUN_ID"} & set(env)
    (evaluation,) = slurm.calls("sbatch")
    assert {"--dependency=afterany:4711", "--nodes=1", "--ntasks-per-node=2", "--partition=gpu", "--account=lab"} <= set(
        evaluation["argv"]
    )
    assert evaluation["argv"][-1].endswith("runs/run")
    assert not [key for key in evaluation["env"] if key.startswith("SLURM_JOB")], "this job's variables are not the next one's"
    assert [record.kind for record in read_all(slurm.folder.parent / "runs" / "run")] == ["pretrain", "evaluate"]


def test_the_evaluation_is_submitted_once(slurm: StandIns) -> None:
    finish(slurm)
    assert run(slurm, "pretrain", "run.yaml").returncode == 0
    again = run(slurm, "pretrain", "run.yaml")
    assert "job 4712 already" in again.stdout
    assert len(slurm.calls("sbatch")) == 1


def test_an_evaluation_that_cannot_be_submitted_does_not_fail_the_training(slurm: StandIns) -> None:
    finish(slurm)
    slurm.answer("sbatch", code=1)
    done = run(slurm, "pretrain", "run.yaml")
    assert done.returncode == 0
    assert "cannot submit the evaluation" in done.stdout


@pytest.mark.parametrize(("code", "requeued"), [(EXIT_REQUEUE, True), (7, True), (NoProgress.exit_code, False), (3, False)])
def test_a_job_requeues_itself_where_that_can_help(slurm: StandIns, code: int, requeued: bool) -> None:
    slurm.answer("srun", "pipeline.train", code=code)
    # The real one ends this script; so does this one.
    slurm.answer("scontrol", "requeue", do="import signal; os.kill(os.getppid(), signal.SIGKILL)")
    done = run(slurm, "pretrain", "run.yaml")
    asked = [call["argv"] for call in slurm.calls("scontrol") if call["argv"][0] == "requeue"]
    assert asked == ([["requeue", "4711"]] if requeued else [])
    assert done.returncode == (-signal.SIGKILL if requeued else code)
    assert not slurm.calls("sbatch"), "nothing to evaluate yet"


def test_a_job_that_slurm_ends_does_not_come_back_by_itself(slurm: StandIns) -> None:
    slurm.answer("srun", "pipeline.train", code=EXIT_REQUEUE, do="import time; time.sleep(2)")
    process = subprocess.Popen(
        command(slurm, "pretrain", "run.yaml"),
        env=environment(slurm),
        cwd=slurm.folder.parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while len(slurm.calls("srun")) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert "Slurm ended this job" in said
    assert process.returncode == EXIT_REQUEUE
    assert not [call for call in slurm.calls("scontrol") if call["argv"][0] == "requeue"]


def test_a_limit_on_restarts(slurm: StandIns) -> None:
    slurm.answer("srun", "pipeline.train", code=EXIT_REQUEUE)
    done = run(slurm, "pretrain", "run.yaml", "--max-restarts", "3", SLURM_RESTART_COUNT="3")
    assert "requeued 3 times already, the limit of --max-restarts" in done.stdout
    assert done.returncode == EXIT_REQUEUE


def test_an_unfit_host_ends_the_job_before_training(slurm: StandIns) -> None:
    slurm.answer("srun", "pipeline.doctor", code=1, do=HEALTHY.replace(", 'n004'", ","))
    done = run(slurm, "pretrain", "run.yaml")
    assert done.returncode == 2
    assert "host n004 is not fit: the doctor did not finish there" in done.stdout
    assert "--exclude=n004" in done.stdout
    assert len(slurm.calls("srun")) == 1


def test_an_unfit_host_can_be_left_out(slurm: StandIns) -> None:
    slurm._answers.insert(
        0, {"program": "srun", "with": ["pipeline.doctor"], "prints": "", "code": 1, "do": HEALTHY.replace(", 'n004'", ",")}
    )
    slurm.answer("scontrol", "4711", prints="JobId=4711 StdOut=/out/a b.out TimeLimit=1-00:00:00 ExcNodeList=n009")
    done = run(slurm, "pretrain", "run.yaml", "train.steps=8", "--exclude-bad-hosts")
    assert done.returncode == 2
    assert "job 4712 continues without n004" in done.stdout
    (successor,) = [call["argv"] for call in slurm.calls("sbatch")]
    same = {"--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=6", "--partition=gpu", "--account=lab", "--time=1-00:00:00"}
    assert same | {"--exclude=n009,n004", "--output=/out/a b.out", "--exclude-bad-hosts"} <= set(successor)
    frozen = slurm.folder.parent / "runs" / "run" / "jobs" / "4711"
    assert successor[-3:] == ["--frozen", str(frozen), str(frozen / "config.yaml")]
    assert len(slurm.calls("srun")) == 1, "nothing was trained on hosts that are not fit"


def test_a_wrong_setting_ends_the_job_at_once(slurm: StandIns) -> None:
    done = run(slurm, "pretrain", "run.yaml", "optim.lrr=1")
    assert done.returncode == 2
    assert "did you mean 'lr'" in done.stderr
    assert not slurm.calls("srun")


def test_evaluation_on_all_ranks(slurm: StandIns) -> None:
    assert run(slurm, "evaluate", "runs/run", "sets/a", "sets/b").returncode == 0
    (call,) = slurm.calls("srun")
    assert call["argv"][-6:] == ["-m", "pipeline.eval.run", "runs/run", "--sets", "sets/a", "sets/b"]
    assert "--ntasks=4" in call["argv"]


def test_outside_a_job_the_way_in_is_named(slurm: StandIns) -> None:
    env = {key: value for key, value in environment(slurm).items() if key != "SLURM_JOB_ID"}
    done = subprocess.run(
        command(slurm, "pretrain", "run.yaml"), env=env, cwd=slurm.folder.parent, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "sbatch slurm/pretrain.sh CONFIG" in done.stderr
