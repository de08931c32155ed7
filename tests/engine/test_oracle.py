"""Loss and every gradient, the temperature's too, through DeepSpeed equal those of one process on the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import dist
from pipeline.config import EngineConfig, OptimConfig
from pipeline.dist import World
from pipeline.losses import info_nce, reference
from tests import tiny
from tests.distributed import run_ranks

B = 12


def oracle() -> tuple[float, dict[str, Tensor]]:
    model = tiny.model()
    features = model(*tiny.batch(B, num_groups=7))
    loss = reference.info_nce(features.image_bd, features.text_bd, features.scale, features.group_b)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def through_engine(world: World, stage: int) -> tuple[float, dict[str, Tensor], float]:
    from deepspeed.utils import safe_get_full_grad

    from pipeline.engine.engine import Engine

    b = B // world.size
    engine = Engine(
        tiny.model(),
        OptimConfig(grad_clip_norm=None),
        EngineConfig(zero_stage=stage, precision="fp32"),
        world=world,
        device=torch.device("cpu"),
        micro_batch_size=b,
    )
    rows = slice(world.rank * b, (world.rank + 1) * b)
    loss = info_nce(engine.forward(*(part[rows] for part in tiny.batch(B, num_groups=7))))
    engine.backward(loss)
    grads = {name: safe_get_full_grad(p).clone() for name, p in engine.module.named_parameters()}
    norm = engine.step(lr=0.0)
    return (dist.all_reduce_sum(loss.detach()) / world.size).item(), grads, norm


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gradients_equal_one_process_on_the_whole_batch(stage: int, world_size: int) -> None:
    true_loss, true_grads = oracle()
    true_norm = torch.linalg.vector_norm(torch.stack([grad.norm() for grad in true_grads.values()])).item()
    results: list[Any] = run_ranks(through_engine, world_size, stage)
    for loss, grads, norm in results:
        assert loss == pytest.approx(true_loss, abs=1e-5)
        assert norm == pytest.approx(true_norm, rel=1e-5)
        assert grads.keys() == true_grads.keys() and "logit_scale.log_scale" in grads
        for name, grad in grads.items():
            error = (grad.view_as(true_grads[name]) - true_grads[name]).abs().max() / true_grads[name].abs().max().clamp(min=1)
            assert error < 1e-5, f"{name} is off by {error:.1e} at stage {stage}, world size {world_size}"
