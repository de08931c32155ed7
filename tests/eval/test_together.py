from __future__ import annotations

from pipeline.dist import World
from pipeline.errors import DataError
from pipeline.eval.together import all_or_none
from tests.distributed import run_ranks


def attempt(world: World, error: type[Exception]) -> tuple[str, str]:
    def action() -> int:
        if world.rank == 1:
            raise error("shard 7 is cut short")
        return world.rank

    try:
        return "fine", str(all_or_none(action, world))
    except Exception as raised:
        return type(raised).__name__, str(raised)


def succeed(world: World) -> int:
    return all_or_none(lambda: world.rank * 10, world)


def test_a_failure_reaches_every_rank_with_its_class() -> None:
    words = "rank 1 of 3 failed: shard 7 is cut short"
    assert run_ranks(attempt, 3, DataError) == [
        ("DataError", words),
        ("DataError", "shard 7 is cut short"),
        ("DataError", words),
    ]


def test_a_defect_stops_every_rank_as_a_defect() -> None:
    words = "rank 1 of 2 failed: ZeroDivisionError: shard 7 is cut short"
    assert run_ranks(attempt, 2, ZeroDivisionError) == [
        ("RuntimeError", words),
        ("ZeroDivisionError", "shard 7 is cut short"),
    ]


def test_success_returns_each_ranks_own_value() -> None:
    assert run_ranks(succeed, 2) == [0, 10]
    assert succeed(World()) == 0
