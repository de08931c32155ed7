"""The temperature's bound: it holds in every forward pass, and what left it can come back."""

from __future__ import annotations

import pytest
import torch

from pipeline.config import EngineConfig, OptimConfig
from pipeline.dist import World
from pipeline.models.scale import LogitScale
from tests.distributed import run_ranks


def test_initial_value_and_bound() -> None:
    scale = LogitScale(init_temperature=0.07, min_temperature=0.01, learn=True)
    assert scale().item() == pytest.approx(1 / 0.07, rel=1e-6)
    scale.log_scale.data.fill_(50.0)
    assert 99.99 < scale().item() <= 100.0
    scale.log_scale.data.fill_(-3.0)
    assert scale().item() == 1.0


@pytest.mark.parametrize(("start", "direction"), [(5.0, 1.0), (-1.0, -1.0)])
def test_gradient_leads_back_but_never_further_out(start: float, direction: float) -> None:
    scale = LogitScale(0.07, 0.01, learn=True)
    scale.log_scale.data.fill_(start)
    (direction * scale()).backward()  # descent moves the parameter back towards the range
    assert scale.log_scale.grad is not None and scale.log_scale.grad.item() * direction > 0
    scale.log_scale.grad = None
    (-direction * scale()).backward()  # descent would move it further out
    assert scale.log_scale.grad is not None and scale.log_scale.grad.item() == 0


def test_a_fixed_temperature_is_not_a_trainable_parameter() -> None:
    assert [p.requires_grad for p in LogitScale(0.05, 0.01, learn=False).parameters()] == [False]


def push(world: World, stage: int, precision: str) -> list[float]:
    """Push the scale up for 50 steps, then down for 60, through the engine; the effective scale after each."""
    from pipeline.engine.engine import Engine

    module = LogitScale(0.012, 0.01, learn=True)
    engine = Engine(
        module,
        OptimConfig(lr=0.05, weight_decay=0.0),
        EngineConfig(zero_stage=stage, precision=precision),  # type: ignore[arg-type]
        world=world,
        device=torch.device("cpu"),
        micro_batch_size=1,
    )
    seen = []
    for step in range(110):
        scale = engine._ds()
        engine.backward(-scale if step < 50 else scale)
        engine.step(0.05)
        seen.append(scale.item())
    return seen


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bound_holds_under_the_engine_and_can_come_back(stage: int, precision: str) -> None:
    (seen, _) = run_ranks(push, 2, stage, precision)
    assert max(seen) <= 100.0
    assert max(seen) > 97.0
    assert seen[-1] < 60.0
