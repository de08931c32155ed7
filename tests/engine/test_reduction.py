"""Gradients averaged in this project's buckets equal those of DeepSpeed's own reduction, bitwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.config import EngineConfig, OptimConfig
from pipeline.dist import World
from pipeline.engine.micro_batches import MicroBatches
from tests import tiny
from tests.distributed import run_ranks

B = 12


def new_engine(world: World, stage: int, count: int, limit: int | None, theirs: bool) -> Any:
    from pipeline.engine import ds_config
    from pipeline.engine.engine import Engine

    if limit is not None:
        ds_config._BUCKET_ELEMENTS = limit
    settings: dict[str, Any] = {"zero_optimization": {"round_robin_gradients": False}} if theirs else {}
    config, optim = EngineConfig(zero_stage=stage, deepspeed=settings), OptimConfig(grad_clip_norm=None, eps=1.0)
    sizes = {"micro_batch_size": B // world.size // count, "micro_batches": count}
    engine = Engine(tiny.model(), optim, config, world=world, device=torch.device("cpu"), **sizes)
    assert (engine._reduction is None) == theirs
    engine.train()
    return engine


def weights_after(world: World, stage: int, count: int, limit: int | None, theirs: bool) -> dict[str, Tensor]:
    """Weights after three steps; the text tower has no gradient in the second, and in the third only of its first part."""
    engine = new_engine(world, stage, count, limit, theirs)
    micro = MicroBatches(engine, count)
    inputs = [tiny.share(tiny.batch(B, seed=step), world.rank, world.size) for step in range(3)]
    for step in range(2):
        features = micro.forward(inputs[step], seed=step)
        losses = tiny.objective()(features, step=step)
        micro.backward(losses.total if step == 0 else features.embeddings["image"].mul(torch.arange(16.0)).sum())
        engine.step(lr=1e-2)
    for place, part in enumerate(inputs[2].chunk(count)):
        found = engine.forward(part).embeddings
        loss = sum(found[name].mul(torch.arange(16.0)).sum() for name in (("image", "text") if place == 0 else ("image",)))
        engine.backward(loss, last=place == count - 1)
    engine.step(lr=1e-2)
    weights: dict[str, Tensor] = engine.consolidated()
    return weights


@pytest.mark.parametrize(("stage", "count", "limit"), [(1, 2, 3000), (2, 2, None)])
def test_weights_are_bitwise_those_of_deepspeeds_own_reduction(stage: int, count: int, limit: int | None) -> None:
    ours, theirs = (run_ranks(weights_after, 2, stage, count, limit, own)[0] for own in (False, True))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_three_ranks_agree_with_deepspeeds_to_rounding() -> None:
    """Parameters are cut anywhere, and the last rank's share is filled up."""
    ours, theirs = (run_ranks(weights_after, 3, 2, 1, 1000, own)[0] for own in (False, True))
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-5, atol=1e-6)
