"""Who am I among the ranks, and the collectives that carry no gradient.

``World`` is a value: parts of the program that need to know the geometry are handed one, so a 64-rank data plan is tested in
one process. Only ``World.from_env`` reads launch variables. It decides in this order, first match wins:

    1. torchrun          TORCHELASTIC_RUN_ID is set: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE (also inside a Slurm job)
    2. Slurm step        SLURM_STEP_ID and SLURM_PROCID are set (the process was started by srun)
    3. env://            RANK and WORLD_SIZE are set (the ``deepspeed`` launcher, mpirun wrappers, a script)
    4. single process    nothing is set

Under 2, a leftover RANK or WORLD_SIZE that contradicts Slurm is an error that names both values: silently believing either
trains the wrong world.

The collectives below also work without a process group (one process), so that callers need no ``if``. Differentiable ones
live in ``losses/gather.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as torch_dist

from pipeline.errors import LaunchError


@dataclass(frozen=True)
class World:
    """The launch geometry of one process. ``0 <= rank < size``; ``local_*`` count within this host."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    source: str = "single"
    master: str = ""
    """``host:port`` of the rendezvous; empty where none is needed."""
    ends_at: float | None = None
    """Unix time at which the launcher ends the job, where it says so."""

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.size and 0 <= self.local_rank < self.local_size <= self.size):
            raise LaunchError(
                f"impossible world from {self.source}: rank {self.rank} of {self.size}, local rank {self.local_rank} of "
                f"{self.local_size}; check the launch command"
            )

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints (rank 0)."""
        return self.rank == 0

    @staticmethod
    def from_env(env: Mapping[str, str]) -> World:
        """Resolve the geometry from launch variables, in the order of the module docstring.

        Raises:
            LaunchError: a variable is missing or not a number, or two sources contradict each other.
        """
        if "TORCHELASTIC_RUN_ID" in env:
            world = _from_rank_variables(env, "torchrun")
        elif "SLURM_STEP_ID" in env and "SLURM_PROCID" in env:
            world = _from_slurm(env)
        elif "RANK" in env or "WORLD_SIZE" in env:
            world = _from_rank_variables(env, "env://")
        else:
            world = World()
        if "SLURM_JOB_END_TIME" in env:  # holds for whatever was started in the job, torchrun too
            world = dataclasses.replace(world, ends_at=float(_number(env, "SLURM_JOB_END_TIME", "Slurm")))
        return world

    def table(self) -> str:
        """One printable line of the geometry."""
        return (
            f"world: rank {self.rank} of {self.size} · local rank {self.local_rank} of {self.local_size} · "
            f"from {self.source}" + (f" · rendezvous {self.master}" if self.master else "")
        )


def _number(env: Mapping[str, str], name: str, source: str) -> int:
    try:
        return int(env[name])
    except KeyError:
        raise LaunchError(f"{source}: {name} is not set; start through torchrun, srun or deepspeed") from None
    except ValueError:
        raise LaunchError(f"{source}: {name} = {env[name]!r} is not a number") from None


def _from_rank_variables(env: Mapping[str, str], source: str) -> World:
    rank, size = _number(env, "RANK", source), _number(env, "WORLD_SIZE", source)
    local_rank = int(env.get("LOCAL_RANK", "0" if size == 1 else str(rank)))
    local_size = int(env.get("LOCAL_WORLD_SIZE", size))
    master = f"{env.get('MASTER_ADDR', '')}:{env.get('MASTER_PORT', '')}"
    if size > 1 and (master.startswith(":") or master.endswith(":")):
        raise LaunchError(f"{source}: WORLD_SIZE = {size} needs MASTER_ADDR and MASTER_PORT, got {master!r}")
    return World(rank, size, local_rank, local_size, source, master if size > 1 else "")


def _from_slurm(env: Mapping[str, str]) -> World:
    rank = _number(env, "SLURM_PROCID", "srun")
    size = _number(env, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS", "srun")
    for name, ours in (("WORLD_SIZE", size), ("RANK", rank)):
        if name in env and env[name] != str(ours):
            raise LaunchError(
                f"srun says {name.lower().replace('_', ' ')} {ours}, but {name} = {env[name]} is exported too, probably left "
                f"over from another launch; run `unset RANK WORLD_SIZE LOCAL_RANK` before srun"
            )
    local_rank = _number(env, "SLURM_LOCALID", "srun")
    tasks = re.match(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", str(size))))
    local_size = max(int(tasks.group()) if tasks else size, local_rank + 1)
    if size == 1:
        return World(source="slurm")
    host = env.get("MASTER_ADDR") or first_host(env.get("SLURM_STEP_NODELIST", env.get("SLURM_JOB_NODELIST", "")))
    port = env.get("MASTER_PORT") or str(20_000 + _number(env, "SLURM_JOB_ID", "srun") % 20_000)
    return World(rank, size, local_rank, min(local_size, size), "slurm", f"{host}:{port}")


def first_host(nodelist: str) -> str:
    """First host of a Slurm node list: ``n[003-007,9],m1`` -> ``n003``."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?", nodelist)
    if not match:
        raise LaunchError(f"cannot read the first host from Slurm's node list {nodelist!r}; set MASTER_ADDR")
    return match.group(1) + (match.group(2) or "") + (match.group(3) or "")


def pick_device(local_rank: int) -> torch.device:
    """This process's device: its GPU where there is one for every local rank, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise LaunchError(
            f"local rank {local_rank} has no GPU: this host shows {torch.cuda.device_count()}; start one process per GPU"
        )
    return torch.device("cuda", local_rank)


def init(world: World, device: torch.device, timeout_seconds: int, init_method: str | None = None) -> None:
    """Join the process group (NCCL on GPUs, gloo on the CPU). Every rank calls it once.

    Args:
        world: this process's place; a world of one needs no rendezvous and opens no port.
        device: decides the backend.
        timeout_seconds: a collective that waits longer raises, instead of hanging for torch's default half hour.
        init_method: rendezvous other than the world's ``host:port``, for example ``file:///shared/path`` (tests).
    """
    if torch_dist.is_initialized():
        return
    options: dict[str, Any] = {"rank": world.rank, "world_size": world.size}
    if world.size == 1:
        options["store"] = torch_dist.HashStore()  # type: ignore[attr-defined]
    else:
        options["init_method"] = init_method or f"tcp://{world.master}"
    if world.source == "torchrun" and init_method is None:
        options = {"init_method": "env://"}  # torchrun's agent already serves the store on that port
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch_dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", timeout=datetime.timedelta(seconds=timeout_seconds), **options
    )
    # DeepSpeed reads these even when the group exists already.
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))


def shutdown() -> None:
    """Leave the process group, if there is one. Without it, gloo now and then aborts at interpreter exit."""
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def _alone() -> bool:
    return world_size() == 1


def world_size() -> int:
    """Ranks in the process group; 1 without one."""
    return torch_dist.get_world_size() if torch_dist.is_initialized() else 1


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over ranks of equally shaped tensors; returns a new tensor."""
    result = tensor.clone()
    if not _alone():
        torch_dist.all_reduce(result)
    return result


def all_reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """Mean over ranks of equally shaped tensors; returns a new tensor."""
    return all_reduce_sum(tensor) / world_size()


def all_gather_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate ``[n_r, ...]`` over ranks in rank order to ``[sum n_r, ...]``; ``n_r`` may differ and may be 0."""
    if _alone():
        return tensor
    counts = all_gather_object(tensor.shape[0])
    padded = tensor.new_zeros((max(counts), *tensor.shape[1:]))
    padded[: tensor.shape[0]] = tensor
    parts = [torch.empty_like(padded) for _ in counts]
    torch_dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def all_gather_object(value: Any) -> list[Any]:
    """Every rank's (small) Python value, in rank order."""
    if _alone():
        return [value]
    values: list[Any] = [None] * torch_dist.get_world_size()
    torch_dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any, src: int = 0) -> Any:
    """The (small) Python value of rank ``src`` on every rank."""
    if _alone():
        return value
    box = [value]
    torch_dist.broadcast_object_list(box, src=src)
    return box[0]


def barrier() -> None:
    """Wait for every rank."""
    if not _alone():
        torch_dist.barrier()


def own_store() -> Any:
    """A connection of its own to the store at which the ranks met, for a thread; None in a world of one. Collective.

    Its keys are this group's alone: torchrun's store outlives the ranks and would hand them what an earlier start left there.
    """
    if _alone():
        return None
    group = broadcast_object(secrets.token_hex(8))
    mine = torch_dist.distributed_c10d._get_default_store().clone()
    return torch_dist.PrefixStore(group, mine)  # type: ignore[attr-defined]


_COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
)


@contextlib.contextmanager
def timed_collectives(spent: Callable[[float], None]) -> Iterator[None]:
    """Within this block every collective of the process is waited for, and ``spent`` gets its seconds; for profiles only."""
    originals = {name: getattr(torch_dist, name) for name in _COLLECTIVES}

    def timed(collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            work = collective(*arguments, **options)
            if hasattr(work, "wait"):
                work.wait()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            spent(time.perf_counter() - start)
            return work

        return call

    for name, collective in originals.items():
        setattr(torch_dist, name, timed(collective))
    try:
        yield
    finally:
        for name, collective in originals.items():
            setattr(torch_dist, name, collective)
