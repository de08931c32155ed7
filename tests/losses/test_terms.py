"""Every term equals its reference in value and in every gradient, at any world size, with groups, and in any tile size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.dist import World
from pipeline.losses import gather
from pipeline.losses.reductions import plan_of
from pipeline.losses.terms import TERMS, Step
from tests.distributed import run_ranks
from tests.losses.cases import CASES, GROUPS, VIEWS, Case, D, Rows, expected, largest_error, measured


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
    assert len(TERMS) == 17


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_large_scales_take_the_shifted_sums_and_stay_exact(case) -> None:  # type: ignore[no-untyped-def]
    truth = expected(case, GROUPS["pairs"], high_scale=True)
    assert largest_error(measured(case, GROUPS["pairs"], 0, 1, high_scale=True), truth) < 1e-8


def measure_large(world: World) -> list[Rows]:
    return [measured(case, GROUPS["across ranks"], world.rank, world.size, high_scale=True) for case in coupled()]


def test_large_scales_stay_exact_over_ranks() -> None:
    """Ranks bring different maxima to the sums along rows."""
    for found in run_ranks(measure_large, 3):
        for case, result in zip(coupled(), found, strict=True):
            assert largest_error(result, expected(case, GROUPS["across ranks"], high_scale=True)) < 1e-8, case.title


@pytest.mark.parametrize("tile", [1, 3, 12, 100])
def test_the_tile_size_changes_nothing_but_rounding(tile: int) -> None:
    for case in CASES:
        assert largest_error(measured(case, GROUPS["pairs"], 0, 1, tile=tile), expected(case, GROUPS["pairs"])) < 1e-10


def test_the_same_call_gives_the_same_bits_however_much_is_kept() -> None:
    for case in CASES:
        first, again, some, most = (measured(case, GROUPS["pairs"], 0, 1, keep_mb=kept) for kept in (0, 0, 5e-4, 1))
        for name in first:
            assert first[name].equal(again[name]) and first[name].equal(some[name]) and first[name].equal(most[name])


def needed_products(world: World) -> dict[str, tuple[set[str], set[str]]]:
    """For each mixture term the domains that products are formed of, and its mixtures, on this rank."""
    b = 12 // world.size
    found = {}
    for name in ("v_mix", "l_mix", "vl_mix"):
        rows = {domain: torch.randn(b, D) for domain in VIEWS}
        step = Step(rows, {"scale": torch.tensor(9.0)}, torch.arange(b) + world.rank * b)
        plan = plan_of(TERMS[name]().reductions(step), step.domains)
        found[name] = (set(plan.names), set(plan.mixtures))
    return found


@pytest.mark.parametrize(("world_size", "together"), [(1, True), (2, False), (3, True)])
def test_mixup_needs_no_product_of_its_own_where_partners_share_a_tile(world_size: int, together: bool) -> None:
    """A batch of 12 is mixed in blocks of 4, which 1 and 3 ranks hold whole; 2 ranks have 6 samples each and form mixtures."""
    for found in run_ranks(needed_products, world_size):
        for name, (products, mixtures) in found.items():
            mixed = {f"{name} {domain}" for domain in TERMS[name].mixed}  # type: ignore[attr-defined]
            assert mixtures == (mixed if together else set())
            assert products <= set(VIEWS) if together else mixed <= products


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
    local = {"alignment", "brownian_bridge", "geometric_consistency", "cyclip", "captioning"}
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
