"""Who a process thinks it is under each launcher, and the collectives that carry no gradient."""

from __future__ import annotations

import pytest
import torch

from pipeline import dist
from pipeline.dist import World
from pipeline.errors import LaunchError
from tests.distributed import RanksFailed, run_ranks

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "n1", "MASTER_PORT": "29500",
}  # fmt: skip
SRUN = {
    "SLURM_JOB_ID": "41234", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NODELIST": "gpu[007-008]",
}  # fmt: skip


def test_nothing_set_is_one_process() -> None:
    assert World.from_env({}) == World(0, 1, 0, 1, "single")


def test_torchrun() -> None:
    assert World.from_env(TORCHRUN) == World(5, 8, 1, 4, "torchrun", "n1:29500")


def test_srun_derives_host_and_port_from_the_job() -> None:
    assert World.from_env(SRUN) == World(3, 4, 1, 2, "slurm", "gpu007:21234")


def test_srun_uses_a_given_rendezvous() -> None:
    assert World.from_env({**SRUN, "MASTER_ADDR": "n9", "MASTER_PORT": "1234"}).master == "n9:1234"


def test_plain_rank_variables_as_deepspeed_sets_them() -> None:
    env = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}
    assert World.from_env(env) == World(1, 2, 1, 2, "env://", "h:1")


def test_torchrun_inside_a_slurm_step_wins() -> None:
    assert World.from_env({**SRUN, **TORCHRUN}).source == "torchrun"


def test_a_batch_script_is_not_a_step() -> None:
    script = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}
    assert World.from_env(script) == World()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({**SRUN, "WORLD_SIZE": "1"}, r"srun says world size 4, but WORLD_SIZE = 1 is exported too.*unset RANK"),
        ({**SRUN, "RANK": "0"}, "srun says rank 3, but RANK = 0"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE = 'two' is not a number"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "needs MASTER_ADDR and MASTER_PORT"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "rank 2 of 2"),
    ],
)
def test_contradictions_are_explained(env: dict[str, str], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        World.from_env(env)


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [("n1", "n1"), ("n1,n2", "n1"), ("n[003-007,9],m1", "n003"), ("a-b[1,5]", "a-b1"), ("r1n[1-2]-ib", "r1n1-ib")],
)
def test_first_host(nodelist: str, host: str) -> None:
    assert dist.first_host(nodelist) == host


def test_the_table_says_where_the_geometry_came_from() -> None:
    assert World.from_env(TORCHRUN).table() == "world: rank 5 of 8 · local rank 1 of 4 · from torchrun · rendezvous n1:29500"


def collectives(world: World) -> tuple[float, list[int], list[int], str]:
    rows = torch.full((world.rank, 2), world.rank)  # rank 0 has no rows at all
    return (
        dist.all_reduce_sum(torch.tensor(float(world.rank + 1))).item(),
        dist.all_gather_rows(rows)[:, 0].tolist(),
        dist.all_gather_object(world.rank * 10),
        dist.broadcast_object(f"from {world.rank}", src=world.size - 1),
    )


def test_collectives_with_unequal_rows() -> None:
    assert run_ranks(collectives, 3) == [(6.0, [1, 2, 2], [0, 10, 20], "from 2")] * 3


def test_collectives_without_a_group() -> None:
    assert collectives(World()) == (1.0, [], [0], "from 0")


def one_rank_raises(world: World) -> None:
    if world.rank == 1:
        raise ValueError("planted")
    dist.barrier()


def one_rank_hangs(world: World) -> None:
    import time

    if world.rank == 1:
        time.sleep(600)
    dist.barrier()


def test_the_harness_reports_the_rank_that_raised() -> None:
    with pytest.raises(RanksFailed, match="(?s)rank 1 of 2: .*ValueError: planted"):
        run_ranks(one_rank_raises, 2)


def test_the_harness_turns_a_hang_into_a_failure_with_stacks() -> None:
    with pytest.raises(RanksFailed, match="(?s)rank 1 of 2: did not finish in time.*in one_rank_hangs"):
        run_ranks(one_rank_hangs, 2, timeout_seconds=4)


def test_a_job_s_end_is_known_whatever_started_the_ranks() -> None:
    assert World.from_env({}).ends_at is None
    assert World.from_env({"SLURM_JOB_END_TIME": "1700000000"}).ends_at == 1_700_000_000
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "1", "SLURM_JOB_END_TIME": "17"}
    assert World.from_env(torchrun).ends_at == 17
    with pytest.raises(LaunchError, match="SLURM_JOB_END_TIME = 'soon' is not a number"):
        World.from_env({"SLURM_JOB_END_TIME": "soon"})


def timed(world: World) -> tuple[list[float], bool]:
    import torch.distributed as torch_dist

    spent: list[float] = []
    original = torch_dist.all_reduce
    with dist.timed_collectives(spent.append):
        dist.all_reduce_sum(torch.ones(3))
        torch_dist.all_reduce(torch.ones(3), async_op=True).wait()
    dist.all_reduce_sum(torch.ones(3))
    return spent, torch_dist.all_reduce is original


def test_collectives_are_timed_within_the_block_only() -> None:
    for spent, restored in run_ranks(timed, 2):
        assert len(spent) == 2 and all(seconds > 0 for seconds in spent) and restored
