"""The heart of the project: the distributed loss equals the single-process reference in value and in every gradient.

Each rank computes its share from its rows; the mean of the shares and the mean of the parameter gradients over ranks (what
the engine does) must be those of ``reference.py`` on the whole batch. Embedding gradients are compared row by row: since the
engine averages over W ranks, a rank's gradient of its own rows is W times the global one before that mean.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as torch_dist
import torch.nn.functional as F
from torch import Tensor

from pipeline import dist
from pipeline.dist import World
from pipeline.features import Features
from pipeline.losses import gather, info_nce, reference
from tests.distributed import run_ranks

B, D = 12, 5
GROUPS = {
    "distinct": torch.arange(B),
    "pairs": torch.arange(B) // 2,
    "across ranks": torch.arange(B) % 4,
    "one group": torch.zeros(B, dtype=torch.int64),
}


def embeddings(requires_grad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    image_BD, text_BD = (torch.randn(B, D, dtype=torch.float64, generator=generator) for _ in range(2))
    scale = torch.tensor(9.0, dtype=torch.float64)
    leaves = (image_BD, text_BD, scale)
    return tuple(leaf.requires_grad_(requires_grad) for leaf in leaves)  # type: ignore[return-value]


def expected(group_B: Tensor, smoothing: float) -> dict[str, Tensor]:
    image_BD, text_BD, scale = embeddings()
    loss = reference.info_nce(F.normalize(image_BD, dim=1), F.normalize(text_BD, dim=1), scale, group_B, smoothing)
    loss.backward()
    return {"loss": loss.detach(), "image": image_BD.grad, "text": text_BD.grad, "scale": scale.grad}  # type: ignore[dict-item]


def measured(world: World, group_B: Tensor, smoothing: float, fault: str | None = None) -> dict[str, Tensor]:
    """The same four quantities from this rank's rows, averaged over ranks as the engine averages them."""
    if fault:
        FAULTS[fault]()
    rows = slice(world.rank * B // world.size, (world.rank + 1) * B // world.size)
    image_BD, text_BD, scale = embeddings(requires_grad=False)
    image_bD, text_bD = (rows_BD[rows].clone().requires_grad_() for rows_BD in (image_BD, text_BD))
    scale.requires_grad_()
    features = Features(F.normalize(image_bD, dim=1), F.normalize(text_bD, dim=1), scale, group_B[rows])
    loss = info_nce(features, smoothing)
    loss.backward()
    assert image_bD.grad is not None and text_bD.grad is not None and scale.grad is not None
    return {
        "loss": dist.all_reduce_sum(loss.detach()) / world.size,
        "image": dist.all_gather_rows(image_bD.grad) / world.size,
        "text": dist.all_gather_rows(text_bD.grad) / world.size,
        "scale": dist.all_reduce_sum(scale.grad) / world.size,
    }


def largest_error(result: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    return max(float((result[name] - truth[name]).abs().max()) for name in truth)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_equals_the_reference_in_value_and_gradient(world_size: int) -> None:
    cases = [(name, smoothing) for name in GROUPS for smoothing in (0.0, 0.1)]
    results = run_ranks(measure_all, world_size, cases)
    for (name, smoothing), *per_rank in zip(cases, *results, strict=True):
        truth = expected(GROUPS[name], smoothing)
        for rank, result in enumerate(per_rank):
            error = largest_error(result, truth)
            assert error < 1e-9, f"groups {name}, smoothing {smoothing}, rank {rank} of {world_size}: off by {error}"


def measure_all(world: World, cases: list[tuple[str, float]]) -> list[dict[str, Tensor]]:
    return [measured(world, GROUPS[name], smoothing) for name, smoothing in cases]


def _replace_backward(backward: Any) -> None:
    gather._GatherRows.backward = staticmethod(backward)  # type: ignore[method-assign]


def _summed(grad_Bd: Tensor) -> Tensor:
    total_Bd = grad_Bd.clone()
    torch_dist.all_reduce(total_Bd)
    return total_Bd.chunk(torch_dist.get_world_size())[torch_dist.get_rank()]


FAULTS = {
    "columns detached": lambda: _replace_backward(lambda ctx, grad: torch.zeros_like(_summed(grad))),
    "gradient averaged over ranks": lambda: _replace_backward(lambda ctx, grad: _summed(grad) / torch_dist.get_world_size()),
    "gradient multiplied by ranks": lambda: _replace_backward(lambda ctx, grad: _summed(grad) * torch_dist.get_world_size()),
    "only own columns live": lambda: _replace_backward(
        lambda ctx, grad: grad.chunk(torch_dist.get_world_size())[torch_dist.get_rank()]
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_catches_a_faulty_gather(fault: str) -> None:
    """Each classic mistake leaves the loss value right and the gradient wrong; the comparison above must see it."""
    truth = expected(GROUPS["pairs"], 0.0)
    (result, _) = run_ranks(measured, 2, GROUPS["pairs"], 0.0, fault)
    assert abs(float(result["loss"] - truth["loss"])) < 1e-9
    assert largest_error(result, truth) > 1e-3


def test_group_masks_change_the_loss() -> None:
    """Otherwise the masked cases above would prove nothing."""
    assert abs(float(expected(GROUPS["pairs"], 0.0)["loss"] - expected(GROUPS["distinct"], 0.0)["loss"])) > 1e-2
