"""Loss and every gradient, the temperature's too, through DeepSpeed equal those of one process on the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import dist
from pipeline.config import EngineConfig, OptimConfig
from pipeline.dist import World
from pipeline.losses import reference
from pipeline.losses.reference.mixup import derangement_block, draw_lambda, random_derangement
from pipeline.losses.terms import Step
from tests import tiny
from tests.distributed import run_ranks

B, NUMBER = 12, 4
TERMS: tiny.Terms = {
    "clip": {},
    "siglip": {"weight": 0.3},
    "alignment": {"weight": 0.2},
    "uniformity": {"weight": 0.4},
    "cross_uniformity": {"weight": 0.5},
    "geometric_consistency": {"weight": 0.25},
    "m2_mix": {"weight": 0.1, "per_sample": True},
    "v_mix": {"weight": 0.1},
    "l_mix": {"weight": 0.2},
    "vl_mix": {"weight": 0.3},
    "uniclip": {"image_image": "tie", "text_text": "tie"},
}
"""Every term that one view and one caption allow, all at once."""


def complete_reference(z: dict[str, Tensor], scalars: dict[str, Tensor], group_B: Tensor) -> Tensor:
    """The weighted sum of the references."""
    image, text, scale, step = z["image"], z["text"], scalars["scale"], Step({}, {}, group_B, seed=3, number=NUMBER)

    def draws(term: str, per_sample: bool = False) -> tuple[Tensor, Tensor]:
        generator = step.generator(term)
        return draw_lambda(generator, 0.5, B, per_sample).to(image), random_derangement(generator, B, derangement_block(B))

    zero_3 = torch.zeros(3)
    tau_3 = torch.stack([zero_3[0], scalars["uniclip_log_tau_IT"], zero_3[0]])
    return (
        reference.info_nce(image, text, scale, group_B)
        + 0.3 * reference.siglip(image, text, scale, scalars["siglip_bias"], group_B)
        + 0.2 * reference.alignment(image, text)
        + 0.4 * (reference.uniformity(image, group_B) + reference.uniformity(text, group_B)) / 2
        + 0.5 * reference.cross_uniformity(image, text, group_B)
        + 0.25 * reference.geometric_consistency(image, text)
        + 0.1 * reference.m2_mix(image, text, draws("m2_mix", True)[0], torch.tensor(1 / 0.07), group_B)
        + 0.1 * reference.v_mix(image, text, *draws("v_mix"), scale, group_B)
        + 0.2 * reference.l_mix(image, text, *draws("l_mix"), scale, group_B)
        + 0.3 * reference.vl_mix(image, text, *draws("vl_mix"), scale, group_B)
        + reference.mp_nce(image[None], text[None], tau_3, zero_3, group_B, "tie", "tie")
    )


def oracle() -> tuple[float, dict[str, Tensor]]:
    model = tiny.model(terms=TERMS)
    features = model(*tiny.batch(B, num_groups=7))
    loss = complete_reference(features.embeddings, features.scalars, features.group_b)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def through_engine(world: World, stage: int) -> tuple[float, dict[str, Tensor], float]:
    from deepspeed.utils import safe_get_full_grad

    from pipeline.engine.engine import Engine

    b = B // world.size
    engine = Engine(
        tiny.model(terms=TERMS),
        OptimConfig(grad_clip_norm=None),
        EngineConfig(zero_stage=stage, precision="fp32"),
        world=world,
        device=torch.device("cpu"),
        micro_batch_size=b,
    )
    inputs = tiny.share(tiny.batch(B, num_groups=7), world.rank, world.size)
    loss = tiny.objective(TERMS)(engine.forward(inputs), step=NUMBER).total
    engine.backward(loss)
    grads = {name: safe_get_full_grad(p).clone() for name, p in engine.module.named_parameters()}
    norm = engine.step(lr=0.0).item()
    return (dist.all_reduce_sum(loss.detach()) / world.size).item(), grads, norm


def relative_error(found: Tensor, truth: Tensor) -> float:
    """Largest difference, relative to the largest entry where that exceeds 1."""
    return float((found.view_as(truth) - truth).abs().max() / truth.abs().max().clamp(min=1))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gradients_equal_one_process_on_the_whole_batch(stage: int, world_size: int) -> None:
    true_loss, true_grads = oracle()
    true_norm = torch.linalg.vector_norm(torch.stack([grad.norm() for grad in true_grads.values()])).item()
    results: list[Any] = run_ranks(through_engine, world_size, stage)
    for loss, grads, norm in results:
        assert loss == pytest.approx(true_loss, rel=1e-6)
        assert norm == pytest.approx(true_norm, rel=1e-5)
        assert grads.keys() == true_grads.keys() and "logit_scale.log_scale" in grads
        for name, grad in grads.items():
            error = relative_error(grad, true_grads[name])
            assert error < 1e-5, f"{name} is off by {error:.1e} at stage {stage}, world size {world_size}"
