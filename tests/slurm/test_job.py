"""What follows from a job: the limit, the port, the ranks' variables, the batch script."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, LaunchError
from slurm.job import Job, Place, job_port, local_lines, parse_minutes, rank_environment, sbatch_text

JOB = Job(
    name="demo",
    command=("python", "-m", "pipeline.train", "configs/x.yaml", "name=a b"),
    batch=("pretrain", "configs/x.yaml", "name=a b"),
    folder=Path("/runs/demo/jobs"),
    nodes=2,
    tasks_per_node=4,
    gpus_per_node=4,
    cpus_per_task=12,
    minutes=90,
    partition="gpu",
    sbatch_options=(("account", "lab"),),
)
FOLDER = Path(__file__).parent / "recorded"
PLAIN = dataclasses.replace(JOB, nodes=1, tasks_per_node=2, gpus_per_node=0, partition=None, sbatch_options=())
ODD = dataclasses.replace(
    JOB, name="it's $HOME; echo no", folder=Path("/runs/a b/jobs"), sbatch_options=(("comment", "a; rm -rf /"), ("qos", "low"))
)
RECORDED = [("two_hosts.sh", JOB, 1), ("cpu.sh", PLAIN, 1), ("odd_characters.sh", ODD, 1), ("array.sh", JOB, 3)]
"""Files in ``recorded/``; rewrite them with ``python -m tests.slurm.test_job``, then read the difference."""

PLACE = Place(rank=5, size=8, local_rank=5, local_size=8, master_port=20_007)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("00:30:00", 30),
        ("12:00:00", 720),
        ("00:00:01", 1),
        ("1-00:00:00", 1440),
        ("2-03:04:05", 3065),
        ("100:00:00", 6000),
    ],
)
def test_time_limits_are_whole_minutes_rounded_up(text: str, minutes: int) -> None:
    assert parse_minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "30", "12:00", "00:60:00", "1:2:3", "-1:00:00", "1-12"])
def test_other_time_forms_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected HH:MM:SS or D-HH:MM:SS, for example 12:00:00"):
        parse_minutes(text)


def test_a_limit_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be longer than zero"):
        parse_minutes("00:00:00")


def test_ports_stay_in_their_range_and_differ_for_neighbouring_jobs() -> None:
    ports = [job_port(str(job_id)) for job_id in range(1_000_000, 1_000_100)]
    assert len(set(ports)) == 100
    assert all(20_000 <= port < 40_000 for port in ports)
    assert job_port("1234_7") == job_port("1234") == 21_234
    with pytest.raises(LaunchError, match="'abc'"):
        job_port("abc")


def test_a_rank_gets_its_place_and_no_leftovers() -> None:
    inherited = {
        "RANK": "99",
        "MASTER_ADDR": "old",
        "TORCHELASTIC_RUN_ID": "x",
        "SLURM_PROCID": "5",
        "HOME": "/somewhere",
    }
    assert rank_environment(inherited, PLACE) == {
        "HOME": "/somewhere",
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "5",
        "LOCAL_WORLD_SIZE": "8",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "20007",
    }


def test_cores_are_shared_unless_the_shell_says_otherwise() -> None:
    here = dataclasses.replace(PLACE, threads=3)
    env = rank_environment({}, here)
    assert env["OMP_NUM_THREADS"] == "3"
    assert rank_environment({"OMP_NUM_THREADS": "1"}, here)["OMP_NUM_THREADS"] == "1", "the shell's choice stays"


def test_the_batch_script_asks_for_what_the_job_says() -> None:
    lines = sbatch_text(JOB).splitlines()
    given = [line.removeprefix("#SBATCH --").partition("=") for line in lines if line.startswith("#SBATCH --")]
    options = {key: value for key, _, value in given}
    expected = {
        "job-name": "demo",
        "nodes": "2",
        "ntasks-per-node": "4",
        "gpus-per-node": "4",
        "cpus-per-task": "12",
        "time": "90",
        "partition": "gpu",
        "account": "lab",
        "open-mode": "append",
        "requeue": "",
        "signal": "USR2@300",
    }
    assert expected.items() <= options.items()
    assert "wckey" not in options, "some clusters refuse unknown keys"


def test_one_process_on_the_first_host_and_no_leftovers() -> None:
    lines = sbatch_text(JOB).splitlines()
    assert not [line for line in lines if line.startswith("srun ")], "the inside of the job starts the ranks"
    (command,) = [shlex.split(line) for line in lines if "submitit.core._submit" in line]
    assert command[-3:-1] == ["-m", "submitit.core._submit"]
    (unset,) = [line for line in lines if line.startswith("unset ")]
    assert {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} <= set(unset.split())
    assert lines.index(unset) < lines.index(shlex.join(command))


@pytest.mark.parametrize(("name", "job", "members"), RECORDED)
def test_batch_scripts_are_what_was_recorded(name: str, job: Job, members: int) -> None:
    """A change of a script is a change of these files, to be read by whoever reviews it."""
    text = sbatch_text(job, members).replace(sys.executable, "/venv/bin/python")
    assert text == (FOLDER / name).read_text()
    subprocess.run(["bash", "-n", str(FOLDER / name)], check=True)


def test_a_job_without_gpus_does_not_ask_for_any() -> None:
    text = sbatch_text(dataclasses.replace(JOB, gpus_per_node=0, cpus_per_task=None, partition=None))
    assert "gpus" not in text
    assert "cpus-per-task" not in text
    assert "partition" not in text


def test_local_lines_name_every_rank_once_and_quote_the_command() -> None:
    lines = [shlex.split(line) for line in local_lines(dataclasses.replace(JOB, nodes=1, tasks_per_node=3), port=4000)]
    assert [line[1] for line in lines] == ["RANK=0", "RANK=1", "RANK=2"]
    for line in lines:
        assert line[0] == "env"
        assert "WORLD_SIZE=3" in line
        assert "MASTER_PORT=4000" in line
        assert tuple(line[-len(JOB.command) :]) == JOB.command


if __name__ == "__main__":
    for name, job, members in RECORDED:
        (FOLDER / name).write_text(sbatch_text(job, members).replace(sys.executable, "/venv/bin/python"))
