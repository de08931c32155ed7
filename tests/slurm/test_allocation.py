"""What Slurm's variables say, and where the ranks meet."""

from __future__ import annotations

import socket

import pytest

from pipeline.errors import LaunchError
from slurm.allocation import Allocation, clean
from slurm.job import job_port

ENV = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"}


def test_tasks_are_counted_or_derived() -> None:
    assert Allocation.from_env({**ENV, "SLURM_NTASKS": "16"}).tasks == 16
    assert Allocation.from_env({**ENV, "SLURM_NTASKS_PER_NODE": "8"}).tasks == 16
    assert Allocation.from_env(ENV).tasks == 2
    assert Allocation.from_env({**ENV, "SLURM_RESTART_COUNT": "3"}).restarts == 3


def test_outside_a_job() -> None:
    with pytest.raises(LaunchError, match=r"sbatch slurm/pretrain.sh CONFIG"):
        Allocation.from_env({"SLURM_NTASKS": "2"})


def test_a_port_that_is_taken_is_passed_over() -> None:
    here = Allocation.from_env(ENV)
    with socket.socket() as taken:
        taken.bind(("", job_port("77")))
        assert here.rendezvous("n1") == {"MASTER_ADDR": "n1", "MASTER_PORT": str(job_port("77") + 1)}
    assert here.rendezvous("n1")["MASTER_PORT"] == str(job_port("77"))


def test_leftovers_of_other_launches_go() -> None:
    assert clean({"HOME": "/h", "RANK": "3", "MASTER_ADDR": "x", "SLURM_EXPORT_ENV": "NONE", "SLURM_JOB_ID": "7"}) == {
        "HOME": "/h",
        "SLURM_EXPORT_ENV": "ALL",
        "SLURM_JOB_ID": "7",
    }
