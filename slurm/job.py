"""A training to be started, as a value, and what follows from it: pure functions.

    job = Job(name="emoji", command=("python", "-m", "pipeline.train", "x.yaml"), batch=("pretrain", "x.yaml"),
              folder=Path("runs/emoji/jobs"), nodes=2, tasks_per_node=8, gpus_per_node=8)
    job.world_size                   # 16
    print(sbatch_text(job))          # what `sbatch` is given

On a cluster the batch script runs ``slurm/batch.py``, as ``pretrain.sh`` does; on this machine submitit starts the ranks.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig
from pipeline.errors import ConfigError, LaunchError

LAUNCH_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
)
"""What a launcher sets for ranks; a leftover of another launch must not reach a training."""


@dataclass(frozen=True)
class Job:
    """One training or evaluation to start: ``nodes * tasks_per_node`` processes."""

    name: str
    command: tuple[str, ...]
    """What each process runs, on this machine."""
    batch: tuple[str, ...]
    """What ``slurm.batch`` is told, on a cluster."""
    folder: Path
    """Where submitit keeps logs and scripts."""
    settings: RunConfig | None = None
    """Of a training, complete; None for an evaluation."""
    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int | None = None
    minutes: int = 24 * 60
    """Wall-clock limit."""
    partition: str | None = None
    sbatch_options: tuple[tuple[str, str], ...] = ()
    """Further ``#SBATCH --key=value`` lines."""
    signal_seconds: int = 300
    """How long before the limit the ranks are told to save and leave."""

    @property
    def world_size(self) -> int:
        """Processes over all nodes."""
        return self.nodes * self.tasks_per_node


@dataclass(frozen=True)
class Place:
    """One process among those of a job on this machine; on a cluster ``World.from_env`` reads Slurm's own variables."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    master_port: int
    threads: int | None = None
    """Threads of the CPU operators; None leaves it open."""


def parse_minutes(text: str) -> int:
    """``HH:MM:SS`` or ``D-HH:MM:SS`` in whole minutes, rounded up.

    Raises:
        ConfigError: another form, or a limit of zero.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", text)
    if not match:
        raise ConfigError(f"--time {text}: expected HH:MM:SS or D-HH:MM:SS, for example 12:00:00")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    total = (days * 24 + hours) * 60 + minutes + (1 if seconds else 0)
    if total == 0:
        raise ConfigError(f"--time {text}: the limit must be longer than zero")
    return total


def job_port(job_id: str) -> int:
    """Rendezvous port of a Slurm job: jobs on one host get different ones."""
    digits = re.match(r"\d+", job_id)
    if not digits:
        raise LaunchError(f"cannot derive a port from the job id {job_id!r}: it does not start with a number")
    return 20_000 + int(digits.group()) % 20_000


def rank_environment(inherited: Mapping[str, str], place: Place) -> dict[str, str]:
    """Variables of one training process: the inherited ones without leftovers of other launches, plus its place.

    The ``SLURM_*`` variables go too: they describe the shell that the launch was typed in, and ``World.from_env`` would rightly
    refuse the contradiction.
    """
    env = {key: value for key, value in inherited.items() if key not in LAUNCH_VARIABLES and not key.startswith("SLURM_")}
    env |= {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.size),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.local_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(place.master_port),
    }
    if place.threads is not None:
        env.setdefault("OMP_NUM_THREADS", str(place.threads))
    return env


def threads_per_process(processes: int) -> int:
    """This machine's cores, shared evenly by the training processes on it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)


def sbatch_parameters(job: Job) -> dict[str, Any]:
    """The job in the words of submitit's Slurm executor."""
    parameters: dict[str, Any] = {
        "job_name": job.name,
        "time": job.minutes,
        "nodes": job.nodes,
        "ntasks_per_node": job.tasks_per_node,
        "gpus_per_node": job.gpus_per_node or None,
        "cpus_per_task": job.cpus_per_task,
        "partition": job.partition,
        "signal_delay_s": job.signal_seconds,
        "additional_parameters": {"requeue": True, **dict(job.sbatch_options)},
        # A leftover of another launch would contradict Slurm.
        "setup": ["unset " + " ".join(LAUNCH_VARIABLES)],
        "stderr_to_stdout": True,
        # One process on the first host, slurm.batch, which starts the ranks itself. Submitit's own way starts one of its
        # processes per rank and answers Slurm's warning on the first of them alone, where saving needs all.
        "use_srun": False,
        "wckey": None,
    }
    return {key: value for key, value in parameters.items() if value is not None or key == "wckey"}


def sbatch_text(job: Job, members: int = 1) -> str:
    """The batch script that submitting the job (as an array, with several ``members``) would hand to sbatch."""
    from submitit.slurm.slurm import _make_sbatch_string  # the only way to its text without a Slurm installation

    inner = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(log_folder(job)))}"
    parameters = sbatch_parameters(job) | ({"map_count": members} if members > 1 else {})
    return _make_sbatch_string(command=inner, folder=log_folder(job), **parameters)


def log_folder(job: Job) -> Path:
    """Folder of one submission; submitit fills in the job id for ``%j``."""
    return job.folder.absolute() / "%j"


def local_lines(job: Job, port: int) -> list[str]:
    """One shell line per process, equal in effect to what ``--cluster local`` starts."""
    lines = []
    for rank in range(job.world_size):
        threads = threads_per_process(job.world_size)
        place = Place(rank, job.world_size, rank, job.tasks_per_node, port, threads)
        variables = [f"{key}={value}" for key, value in rank_environment({}, place).items()]
        lines.append(" ".join(["env", *variables, shlex.join(job.command)]))
    return lines
