"""What Slurm gave a batch job: read once from the environment, handed on as a value.

here = Allocation.from_env(os.environ)
here.tasks, here.nodes, here.restarts        # 16, 2, 0
here.rendezvous("n003")                      # {"MASTER_ADDR": "n003", "MASTER_PORT": "..."}
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import LaunchError
from slurm.job import LAUNCH_VARIABLES, job_port

PORT_TRIES = 100


@dataclass(frozen=True)
class Allocation:
    """One batch job as it runs."""

    job: str
    """Slurm's number of this job (of this member, in an array)."""
    name: str
    nodelist: str
    nodes: int
    tasks: int
    cpus_per_task: int
    restarts: int
    """How often the job was requeued before."""
    partition: str | None = None
    account: str | None = None
    gpus_per_node: str | None = None

    @staticmethod
    def from_env(env: Mapping[str, str]) -> Allocation:
        """Read Slurm's variables of the batch script.

        Raises:
            LaunchError: this is not a batch job.
        """
        if "SLURM_JOB_ID" not in env:
            raise LaunchError("this runs inside a batch job only: sbatch slurm/pretrain.sh CONFIG (here: unisphere launch)")
        nodes = int(env["SLURM_JOB_NUM_NODES"])
        per_node = env.get("SLURM_NTASKS_PER_NODE")
        tasks = int(env.get("SLURM_NTASKS") or (int(per_node) * nodes if per_node else nodes))
        return Allocation(
            job=env["SLURM_JOB_ID"],
            name=env.get("SLURM_JOB_NAME", "unisphere"),
            nodelist=env["SLURM_JOB_NODELIST"],
            nodes=nodes,
            tasks=tasks,
            cpus_per_task=int(env.get("SLURM_CPUS_PER_TASK", 1)),
            restarts=int(env.get("SLURM_RESTART_COUNT", 0)),
            partition=env.get("SLURM_JOB_PARTITION"),
            account=env.get("SLURM_JOB_ACCOUNT"),
            gpus_per_node=env.get("SLURM_GPUS_PER_NODE") or env.get("SLURM_GPUS_ON_NODE"),
        )

    def rendezvous(self, first_host: str) -> dict[str, str]:
        """Where the ranks meet: a port of the first host, which is where the batch script runs, that nothing listens on now."""
        start = job_port(self.job)
        for port in range(start, start + PORT_TRIES):
            if _is_free(port):
                return {"MASTER_ADDR": first_host, "MASTER_PORT": str(port)}
        raise LaunchError(f"{first_host}: ports {start} to {start + PORT_TRIES - 1} are all in use; what listens on them?")


def clean(env: Mapping[str, str]) -> dict[str, str]:
    """The environment for srun: without leftovers of other launches, which would contradict Slurm, and whole for its tasks."""
    kept = {key: value for key, value in env.items() if key not in LAUNCH_VARIABLES}
    return {**kept, "SLURM_EXPORT_ENV": "ALL"}  # after sbatch --export=NONE srun would start tasks without even a PATH


def _is_free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind(("", port))
        return True
    return False
