"""What holds at every ZeRO stage: consolidated weights, clipping, bf16 that keeps small updates, saving and loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import dist
from pipeline.config import EngineConfig, OptimConfig
from pipeline.dist import World
from tests import tiny
from tests.distributed import RanksFailed, run_ranks

B = 12


def new_engine(world: World, stage: int, precision: str = "fp32", **optim: Any) -> Any:
    from pipeline.engine.engine import Engine

    return Engine(
        tiny.model(),
        OptimConfig(**optim),
        EngineConfig(zero_stage=stage, precision=precision),  # type: ignore[arg-type]
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
        norm = engine.step(lr)
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


def save_then_continue(world: World, stage: int, folder: str) -> list[tuple[float, float]]:
    engine = new_engine(world, stage)
    steps(engine, world, range(2))
    engine.save(Path(folder))
    return steps(engine, world, range(2, 4))


def load_then_continue(world: World, stage: int, folder: str) -> list[tuple[float, float]]:
    engine = new_engine(world, stage)
    engine.load(Path(folder))
    return steps(engine, world, range(2, 4))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_loading_continues_bitwise(stage: int, tmp_path: Path) -> None:
    assert run_ranks(save_then_continue, 2, stage, str(tmp_path)) == run_ranks(load_then_continue, 2, stage, str(tmp_path))


class Canary:
    """Unpickling this runs code: it creates a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run_it(tmp_path: Path) -> None:
    run_ranks(save_then_continue, 1, 1, str(tmp_path))
    (model_file,) = tmp_path.glob("engine/mp_rank_*_model_states.pt")
    torch.save({"module": Canary(str(tmp_path / "executed"))}, model_file)
    with pytest.raises(RanksFailed, match="cannot be read as plain data"):
        run_ranks(load_then_continue, 1, 1, str(tmp_path))
    assert not (tmp_path / "executed").exists()
