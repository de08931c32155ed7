"""Every term equals its reference in value and in every gradient, at any world size, with groups, and in any tile size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.dist import World
from pipeline.losses import gather
from pipeline.losses.terms import TERMS
from tests.distributed import run_ranks
from tests.losses.cases import CASES, GROUPS, Case, Rows, expected, largest_error, measured


def measure_all(world: World) -> list[Rows]:
    return [measured(case, group_B, world.rank, world.size) for case in CASES for group_B in GROUPS.values()]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_term_equals_its_reference(world_size: int) -> None:
    truths = [(case, name, expected(case, group_B)) for case in CASES for name, group_B in GROUPS.items()]
    wrong = [
        f"{case.title}, groups {name}, rank {rank}: off by {error:.1e}"
        for rank, found in enumerate(run_ranks(measure_all, world_size))
        for (case, name, truth), result in zip(truths, found, strict=True)
        if not (error := largest_error(result, truth)) < 1e-9
    ]
    assert not wrong, f"{len(wrong)} of {world_size * len(truths)} comparisons failed:\n" + "\n".join(wrong)


def test_there_is_a_case_for_every_term() -> None:
    assert {case.term for case in CASES} == set(TERMS)
    assert len(TERMS) == 16


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_large_scales_take_the_shifted_sums_and_stay_exact(case) -> None:  # type: ignore[no-untyped-def]
    truth = expected(case, GROUPS["pairs"], high_scale=True)
    assert largest_error(measured(case, GROUPS["pairs"], 0, 1, high_scale=True), truth) < 1e-8


@pytest.mark.parametrize("tile", [1, 3, 12, 100])
def test_the_tile_size_changes_nothing_but_rounding(tile: int) -> None:
    for case in CASES:
        assert largest_error(measured(case, GROUPS["pairs"], 0, 1, tile=tile), expected(case, GROUPS["pairs"])) < 1e-10


def test_the_same_call_gives_the_same_bits() -> None:
    for case in CASES:
        first, second = (measured(case, GROUPS["pairs"], 0, 1) for _ in range(2))
        assert all(first[name].equal(second[name]) for name in first)


FAULTS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "columns detached": lambda grad_B, right_b, size: torch.zeros_like(right_b),
    "gradient averaged over ranks": lambda grad_B, right_b, size: right_b / size,
    "gradient multiplied by ranks": lambda grad_B, right_b, size: right_b * size,
    "only own columns live": lambda grad_B, right_b, size: grad_B.chunk(size)[gather.row_offset(len(right_b)) // len(right_b)],
}
"""Classic mistakes in the way home of the columns' gradients: from all gradients, the right answer, and the world size."""


def measure_with_fault(world: World, fault: str) -> list[Rows]:
    right = gather.scatter_sum
    gather.scatter_sum = lambda grad_B: FAULTS[fault](grad_B, right(grad_B), world.size)
    return [measured(case, GROUPS["pairs"], world.rank, world.size) for case in coupled()]


def coupled() -> list[Case]:
    """The cases whose rows meet other ranks' columns in the engine."""
    local = {"alignment", "brownian_bridge", "geometric_consistency", "cyclip"}
    return [case for case in CASES if case.term not in local]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_catches_a_faulty_gather(fault: str) -> None:
    """Each mistake leaves every loss right and every gradient wrong; the comparison above must see it in each term."""
    (results, _) = run_ranks(measure_with_fault, 2, fault)
    assert len(results) > 20
    for case, found in zip(coupled(), results, strict=True):
        truth = expected(case, GROUPS["pairs"])
        assert abs(float(found["loss"] - truth["loss"])) < 1e-9, case.title
        assert largest_error(found, truth) > 1e-4, f"{case.title} hides the fault"
