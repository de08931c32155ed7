"""Micro-batches keep all negatives: k of them give the loss and the gradients of one batch of k times the size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.config import EngineConfig, ModelConfig, ObjectiveConfig, OptimConfig
from pipeline.dist import World
from pipeline.engine.micro_batches import MicroBatches
from pipeline.models import clip
from tests import tiny
from tests.distributed import run_ranks

B = 12
TERMS: tiny.Terms = {"clip": {}, "siglip": {"weight": 0.2}, "uniformity": {"weight": 0.3}, "v_mix": {"weight": 0.1}}


def one_step(world: World, stage: int, count: int, dropout: float) -> tuple[float, float, dict[str, Tensor]]:
    """Loss, gradient norm, and the weights after one step with plain gradient descent's direction."""
    from pipeline.engine.engine import Engine

    torch.manual_seed(0)
    model = clip.build(
        ModelConfig(inline=tiny.INLINE, patch_dropout=dropout), ObjectiveConfig(), tiny.objective(TERMS).scalars()
    )
    b = B // world.size
    # With eps = 1 and no momentum Adam's update is smooth in the gradient, so that small errors stay small.
    optim = OptimConfig(grad_clip_norm=None, eps=1.0, beta1=0.0, beta2=0.0, weight_decay=0.0)
    config = EngineConfig(zero_stage=stage, precision="fp32")
    device = torch.device("cpu")
    engine = Engine(model, optim, config, world=world, device=device, micro_batch_size=b // count, micro_batches=count)
    engine.train()
    micro = MicroBatches(engine, count)
    features = micro.forward(tiny.share(tiny.batch(B, num_groups=7), world.rank, world.size), seed=5)
    losses = tiny.objective(TERMS)(features, step=4)
    micro.backward(losses.total)
    norm = engine.step(lr=0.1).item()
    return losses.total.item(), norm, engine.consolidated()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_micro_batches_equal_the_whole_batch(stage: int) -> None:
    """With patch dropout too: what a sample loses does not depend on its micro-batch."""
    loss, norm, weights = run_ranks(one_step, 2, stage, 1, 0.5)[0]
    for count in (2, 3):
        their_loss, their_norm, their_weights = run_ranks(one_step, 2, stage, count, 0.5)[0]
        assert their_loss == pytest.approx(loss, abs=1e-5)
        assert their_norm == pytest.approx(norm, rel=1e-5)
        for name, weight in weights.items():
            torch.testing.assert_close(their_weights[name], weight, rtol=0, atol=1e-5, msg=f"{name}, {count} micro-batches")


def test_dropout_is_replayed() -> None:
    """The pass that computes the loss and the pass that carries its gradient drop the same patches."""
    (same,) = run_ranks(features_of_both_passes, 1)
    assert same


def features_of_both_passes(world: World) -> bool:
    from pipeline.engine.engine import Engine

    torch.manual_seed(0)
    model = clip.build(ModelConfig(inline=tiny.INLINE, patch_dropout=0.5), ObjectiveConfig())
    config = EngineConfig(zero_stage=1, precision="fp32")
    sizes: dict[str, Any] = {"micro_batch_size": 4, "micro_batches": 3}
    engine = Engine(model, OptimConfig(), config, world=world, device=torch.device("cpu"), **sizes)
    engine.train()
    micro = MicroBatches(engine, 3)
    first = micro.forward(tiny.batch(B), seed=9).embeddings["image"].detach()
    again = torch.cat([micro._run(place).embeddings["image"].detach() for place in range(3)])
    other = micro.forward(tiny.batch(B), seed=10).embeddings["image"].detach()
    return bool(first.equal(again)) and not first.equal(other)
