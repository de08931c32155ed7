"""What holds at every ZeRO stage: consolidated weights, clipping, bf16 that keeps small updates, offloading."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import dist
from pipeline.config import EngineConfig, OptimConfig
from pipeline.dist import World
from tests import tiny
from tests.distributed import run_ranks

B = 12


def new_engine(world: World, stage: int, precision: str = "fp32", engine: Any = None, **optim: Any) -> Any:
    from pipeline.engine.engine import Engine

    return Engine(
        tiny.model(),
        OptimConfig(**optim),
        EngineConfig(zero_stage=stage, precision=precision, **(engine or {})),  # type: ignore[arg-type]
        world=world,
        device=torch.device("cpu"),
        micro_batch_size=B // world.size,
    )


def steps(engine: Any, world: World, which: range, lr: float = 1e-3) -> list[tuple[float, float]]:
    """Loss (mean over ranks) and gradient norm of the steps ``which``."""
    seen = []
    for step in which:
        inputs = tiny.share(tiny.batch(B, seed=step, num_groups=9), world.rank, world.size)
        loss = tiny.objective()(engine.forward(inputs), step=step).total
        engine.backward(loss)
        norm = engine.step(lr).item()
        seen.append(((dist.all_reduce_sum(loss.detach()) / world.size).item(), norm))
    return seen


def train_and_consolidate(world: World, stage: int) -> tuple[list[tuple[float, float]], dict[str, Tensor]]:
    engine = new_engine(world, stage)
    return steps(engine, world, range(3)), engine.consolidated()


def test_losses_norms_and_weights_agree_across_stages_and_world_sizes() -> None:
    losses, weights = run_ranks(train_and_consolidate, 1, 0)[0]
    assert set(weights) == set(tiny.model().state_dict())
    for stage, world_size in [(0, 2), (1, 2), (2, 3), (3, 2)]:
        (their_losses, their_weights), *others = run_ranks(train_and_consolidate, world_size, stage)
        torch.testing.assert_close(torch.tensor(their_losses), torch.tensor(losses), rtol=1e-4, atol=1e-5)
        for name, weight in weights.items():
            torch.testing.assert_close(their_weights[name], weight, rtol=1e-3, atol=1e-4, msg=f"{name} at stage {stage}")
        assert all(other == {} for _, other in others)


def clipped_update(world: World, stage: int) -> tuple[float, float]:
    engine = new_engine(world, stage, grad_clip_norm=1e-3, eps=1.0, weight_decay=0.0, beta1=0.0, beta2=0.0)
    before = {name: p.clone() for name, p in tiny.model().named_parameters()}
    ((_, norm),) = steps(engine, world, range(1), lr=1.0)
    after = engine.consolidated()
    moved = sum(float((after[name] - before[name]).detach().square().sum()) for name in before) ** 0.5 if after else 0.0
    return norm, moved


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_clipping_bounds_the_gradient_and_the_reported_norm_is_the_unclipped_one(stage: int) -> None:
    """With eps = 1 and no momentum, Adam's update is g / (|g| + 1), about g itself when g is clipped to 1e-3."""
    norm, moved = run_ranks(clipped_update, 2, stage)[0]
    assert norm > 1.0
    assert moved == pytest.approx(1e-3, rel=0.02)


def small_updates(world: World, stage: int) -> float:
    engine = new_engine(world, stage, "bf16", weight_decay=0.0)
    steps(engine, world, range(8), lr=1e-5)
    after, before = engine.consolidated(), tiny.model().state_dict()
    name = "text.ln_final.weight"  # starts at exactly 1, where bf16 cannot represent a change of 1e-5
    return float((after[name] - before[name]).abs().max()) if after else 0.0


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_keeps_fp32_masters_so_that_small_updates_are_not_lost(stage: int) -> None:
    assert 1e-5 < run_ranks(small_updates, 2, stage)[0] < 1e-3


def plain_torch(grad_clip_norm: float) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Three steps of one process without DeepSpeed: torch's own clipping and AdamW."""
    from pipeline.engine.parameters import parameter_groups

    model, optim = tiny.model(), OptimConfig(grad_clip_norm=grad_clip_norm)
    groups = parameter_groups(model, optim)
    adamw = torch.optim.AdamW(groups, lr=1e-3, betas=(optim.beta1, optim.beta2), eps=optim.eps)
    losses, norms = [], []
    for step in range(3):
        adamw.zero_grad()
        loss = tiny.objective()(model(*tiny.batch(B, seed=step, num_groups=9)), step=step).total
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip_norm).item())
        adamw.step()
        losses.append(loss.item())
    return losses, norms, model.state_dict()


def clipped_steps(world: World, stage: int, engine: dict[str, Any]) -> tuple[list[tuple[float, float]], dict[str, Tensor]]:
    ds = new_engine(world, stage, engine=engine, grad_clip_norm=0.5)
    return steps(ds, world, range(3)), ds.consolidated()


@pytest.mark.parametrize(
    ("stage", "world_size", "engine"), [(0, 2, {}), (1, 3, {}), (2, 2, {}), (3, 2, {}), (2, 2, {"offload": "cpu"})]
)
def test_clipped_steps_equal_plain_torch(stage: int, world_size: int, engine: dict[str, Any]) -> None:
    losses, norms, weights = plain_torch(0.5)
    assert min(norms) > 5, "every step is clipped"
    seen, ours = run_ranks(clipped_steps, world_size, stage, engine)[0]
    assert [loss for loss, _ in seen] == pytest.approx(losses, abs=1e-5)
    assert [norm for _, norm in seen] == pytest.approx(norms, rel=1e-4)
    for name, weight in weights.items():
        # Adam turns gradients near 0 into steps of +-lr: rounding may flip their sign.
        torch.testing.assert_close(ours[name], weight, rtol=1e-3, atol=1e-4, msg=f"{name} at stage {stage}")
