"""``sbatch slurm/pretrain.sh`` on a real cluster: whatever happens to the job, its losses are those of an undisturbed run.

Real Slurm daemons, real ranks on several hosts (namespaces of this machine), real shards. Each test waits for a state of the
run, does something to it, and compares every loss with those of ``undisturbed``.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

import pytest
import yaml

from slurm.records import read_all
from tests import runs
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

REPOSITORY = Path(__file__).parents[2]
STEPS = 240
SHAPE = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1")
PYTHON = Path(sys.executable).parent
SHELL = {"PATH": f"{PYTHON}:{os.environ['PATH']}:/usr/sbin", "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


class Lab:
    """A folder with shards and a run's settings, and the cluster to run it on."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        runs.write_shards(folder / "shards")
        tree = runs.run_tree(
            folder,
            train={"steps": STEPS, "global_batch_size": 24},
            checkpoint={"every_steps": 20, "keep_last": 2},
            optim={"warmup_steps": 5},
        )
        (folder / "run.yaml").write_text(yaml.safe_dump(tree))

    def submit(self, name: str, *overrides: str, shape: tuple[str, ...] = SHAPE, env: dict[str, str] | None = None) -> str:
        """``sbatch slurm/pretrain.sh``; returns the job."""
        output = f"--output={self.folder}/%x-%j.out"
        words = (*shape, output, "slurm/pretrain.sh", str(self.folder / "run.yaml"), f"name={name}", *overrides)
        return self.cluster.sbatch(*words, cwd=REPOSITORY, env={**SHELL, **(env or {})})

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def step(self, name: str) -> int:
        """The last step that the run recorded."""
        path = self.run(name) / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return max((json.loads(line).get("step", 0) for line in lines[-3:]), default=0)

    def wait_for_step(self, name: str, step: int, job: str, seconds: float = 120) -> None:
        """Until the run has passed ``step``, as good as at once."""
        deadline = time.monotonic() + seconds
        while self.step(name) < step:
            assert time.monotonic() < deadline, self.cluster.story(job, f"not at step {step} in {seconds} s")
            time.sleep(0.05)
        assert self.step(name) < STEPS - 20, "too late to disturb anything"

    def losses(self, name: str) -> dict[int, float]:
        """Loss by step; where a step was repeated after a restart, both records must agree."""
        seen: dict[int, float] = {}
        for line in (self.run(name) / "metrics.jsonl").read_text().splitlines():
            record = json.loads(line)
            if "loss" in record:
                assert seen.setdefault(record["step"], record["loss"]) == record["loss"], (
                    f"step {record['step']} came out otherwise"
                )
        return seen


@pytest.fixture(scope="session")
def lab(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(cluster, tmp_path_factory.mktemp("a folder with spaces"))


@pytest.fixture(scope="session")
def undisturbed(lab: Lab) -> dict[int, float]:
    """The losses that every other run must have."""
    job = lab.submit("undisturbed", env={"WORLD_SIZE": "64", "MASTER_ADDR": "nowhere", "RANK": "3"})
    ended = lab.cluster.wait(job, "COMPLETED")
    assert ended["Restarts"] == "0"
    losses = lab.losses("undisturbed")
    assert sorted(losses) == list(range(1, STEPS + 1)), lab.cluster.story(job, "not every step")
    return losses


def warn(lab: Lab, job: str) -> None:
    """What ``--signal=USR1@300`` does five minutes ahead of the limit: a signal to every process of the job's steps."""
    lab.cluster.command("scancel", "--signal=USR1", job)


def test_through_a_warning_a_lost_host_and_a_preemption(lab: Lab, undisturbed: dict[int, float]) -> None:
    cluster, job = lab.cluster, lab.submit("tried")
    lab.wait_for_step("tried", 30, job)
    warn(lab, job)
    cluster.wait(job, "RUNNING", restarts=1)
    stopped_at = lab.step("tried")
    lab.wait_for_step("tried", stopped_at + 30, job)
    lost = cluster.job(job)["BatchHost"]
    cluster.power_off(lost)
    cluster.declare_down(lost)
    assert lost not in cluster.wait(job, "RUNNING", restarts=2)["BatchHost"]
    lab.wait_for_step("tried", lab.step("tried") + 20, job)
    # On both hosts that are left: the job must give way at once, long before it would be done.
    urgent = cluster.sbatch("--partition=urgent", "--nodes=2", "--exclusive", "--wrap", "sleep 1", cwd=lab.folder)
    cluster.wait(urgent, "COMPLETED")
    assert cluster.wait(job, "COMPLETED", restarts=3)["Restarts"] == "3"
    cluster.power_on(lost)
    assert lab.losses("tried") == undisturbed
    said = cluster.output(job)
    assert "requeue: the training was asked to stop, and saved" in said
    assert [record.job for record in read_all(lab.run("tried"))] == [job], "one job, whatever it went through"


def test_a_cancelled_job_saves_and_stays_cancelled(lab: Lab) -> None:
    job = lab.submit("cancelled", "eval.sets=[nowhere]")
    lab.wait_for_step("cancelled", 10, job)
    lab.cluster.command("scancel", job)
    ended = lab.cluster.wait(job, "CANCELLED")
    assert ended["Restarts"] == "0"
    assert (lab.run("cancelled") / "checkpoints" / "latest").exists()
    assert lab.cluster.command("squeue", "--noheader") == "", "no evaluation waits for a training that was given up"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["cut off the network", "without its daemon"])
def test_a_host_that_cannot_be_reached(lab: Lab, undisturbed: dict[int, float], what: str) -> None:
    """Its ranks live on, unseen, while the job runs again elsewhere: they must not write any more."""
    cluster, name = lab.cluster, what.replace(" ", "-")
    job = lab.submit(name)
    lab.wait_for_step(name, 30, job)
    host = cluster.job(job)["BatchHost"]
    if what == "cut off the network":
        cluster.unplug(host)
    else:
        cluster.kill_daemon(host)
    cluster.declare_down(host)
    assert host not in cluster.wait(job, "RUNNING", restarts=1)["NodeList"]
    assert cluster.wait(job, "COMPLETED")["Restarts"] == "1"
    cluster.plug(host)
    cluster.power_off(host)
    cluster.power_on(host)
    assert lab.losses(name) == undisturbed
    newest = (lab.run(name) / "checkpoints" / "latest").read_text().strip()
    assert newest == f"step-{STEPS:08d}", "the stale start did not set it back"


@pytest.mark.slow
def test_a_full_disk_fails_the_job_and_not_the_machine(lab: Lab) -> None:
    """No checkpoint fits: training goes on to its end, every step is recorded, and the job says that it could not save."""
    job = lab.submit("full", f"runs_dir={lab.cluster.folder.parent / 'small'}", "train.steps=60", "checkpoint.every_steps=20")
    ended = lab.cluster.wait(job, "FAILED")
    assert (ended["ExitCode"], ended["Restarts"]) == ("5:0", "0")
    assert "No space left on device" in lab.cluster.output(job)
    lines = (lab.cluster.folder.parent / "small" / "full" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line).get("step", 0) for line in lines) == 60


@pytest.mark.slow
def test_a_host_that_is_not_fit_is_named_and_left_out(lab: Lab) -> None:
    cluster = lab.cluster
    cluster.inside("n3", "mount", "-o", "remount,size=8m", "/dev/shm")
    try:
        shape = (*SHAPE, "--exclude=n1")
        stops = lab.submit("named", shape=shape)
        assert cluster.wait(stops, "FAILED")["ExitCode"] == "2:0"
        assert "host n3 is not fit: shared memory" in cluster.output(stops)
        # Of n2 and n3 the first is fit; the successor takes it and n1, which was merely not asked for.
        given_up = lab.submit("left-out", "train.steps=20", "--exclude-bad-hosts", shape=(*SHAPE, "--nodelist=n2,n3"))
        assert cluster.wait(given_up, "FAILED")["ExitCode"] == "2:0"
        _, successor = read_all(lab.run("left-out"))
        assert cluster.wait(successor.job, "COMPLETED")["NodeList"] == "n[1-2]"
    finally:
        cluster.inside("n3", "mount", "-o", "remount,size=50%", "/dev/shm")


@pytest.mark.slow
def test_two_jobs_share_a_host(lab: Lab, undisturbed: dict[int, float]) -> None:
    one_host = ("--nodes=1", "--ntasks-per-node=4", "--gpus-per-node=0", "--cpus-per-task=1", "--nodelist=n1")
    jobs = {name: lab.submit(name, f"seed={seed}", shape=one_host) for name, seed in (("left", 0), ("right", 1))}
    for job in jobs.values():
        lab.cluster.wait(job, "COMPLETED")
    assert lab.losses("left") == undisturbed, "the same ranks on other hosts"
    assert lab.losses("right") != undisturbed


def test_a_failing_run_is_a_failed_job_without_restarts(lab: Lab) -> None:
    job = lab.submit("wrong", "data.train=nowhere")
    ended = lab.cluster.wait(job, "FAILED")
    assert (ended["ExitCode"], ended["Restarts"]) == ("3:0", "0")
    assert "nowhere" in lab.cluster.output(job)


def test_the_evaluation_follows(lab: Lab, emoji: Path) -> None:
    train = ("eval.sets=[" + str(emoji / "eval-style") + "]", f"data.train={emoji / 'train'}", "train.steps=20")
    job = lab.submit("evaluated", *train)
    lab.cluster.wait(job, "COMPLETED")
    evaluation = read_all(lab.run("evaluated"))[-1]
    assert evaluation.kind == "evaluate"
    lab.cluster.wait(evaluation.job, "COMPLETED")
    (result,) = [json.loads(line) for line in (lab.run("evaluated") / "eval.jsonl").read_text().splitlines()]
    assert (result["set"], result["step"], result["world_size"]) == ("eval-style", 20, 2)
    assert result["zero_shot"]["n"] == 1595


def test_an_array_builds_what_one_process_builds(lab: Lab, emoji: Path) -> None:
    out, shell = lab.folder / "by array", {"cwd": REPOSITORY, "env": SHELL}
    words = (f"--output={lab.folder}/%x-%A_%a.out", "--cpus-per-task=1", "slurm/prepare.sh", "recipe:emoji", str(out))
    array = lab.cluster.sbatch("--array=0-2", *words, **shell)
    finish = lab.cluster.sbatch(f"--dependency=afterok:{array}", *words, **shell)
    lab.cluster.wait(finish, "COMPLETED")
    for name in ("train", "eval-style", "eval-concepts"):
        files = {path.relative_to(emoji): path.read_bytes() for path in (emoji / name).rglob("*") if path.is_file()}
        assert {path.relative_to(out): path.read_bytes() for path in (out / name).rglob("*") if path.is_file()} == files


@pytest.mark.slow
def test_submitted_from_python(lab: Lab, undisturbed: dict[int, float]) -> None:
    """``unisphere launch``: warned as by its own ``--signal``, requeued, and equal; looked after by the run's folder."""
    options = ("--cluster", "slurm", "--nodes", "2", "--tasks-per-node", "2", "--cpus-per-task", "1")
    launch = (str(PYTHON / "python"), "-m", "slurm.launch")
    words = (*launch, "pretrain", str(lab.folder / "run.yaml"), "name=launched", *options)
    said = lab.cluster.command(*words, cwd=REPOSITORY, env=SHELL)
    job = re.findall(r"submitted job (\d+)", said)[0]
    lab.wait_for_step("launched", 30, job)
    lab.cluster.command("scancel", "--signal=USR2", job)
    lab.cluster.wait(job, "COMPLETED", restarts=1)
    assert lab.losses("launched") == undisturbed
    run = str(lab.run("launched"))
    status = lab.cluster.command(*launch, "status", run, cwd=REPOSITORY)
    assert f"{STEPS} of {STEPS} steps" in status
    assert re.search(rf"{job}\s+pretrain\s+COMPLETED .* restarts 1", status)
    assert "done: the training is complete" in lab.cluster.command(*launch, "logs", run, cwd=REPOSITORY)
    assert "nothing, no job is waiting" in lab.cluster.command(*launch, "cancel", run, cwd=REPOSITORY)


@pytest.fixture(scope="session")
def emoji(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled shards."""
    from data_prep.__main__ import main

    folder = tmp_path_factory.mktemp("emoji") / "shards"
    assert main(["build", "recipe:emoji", str(folder)]) == 0
    return folder
