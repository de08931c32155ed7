"""The smallest model and batches that exercise everything: two one-layer towers on 16-pixel images."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.config import ModelConfig, ObjectiveConfig
from pipeline.config.model import HeadsConfig
from pipeline.features import Inputs
from pipeline.losses import Objective
from pipeline.models import clip

INLINE: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}

VIEW_PARAMS = 5
"""Numbers that describe a view in these tests."""

Terms = dict[str, dict[str, Any]]


def objective(terms: Terms | None = None) -> Objective:
    """CLIP's loss, or other terms, in small tiles."""
    return Objective(ObjectiveConfig(terms=terms or {"clip": {}}, tile=5), seed=3, total_steps=10)


def model(seed: int = 0, terms: Terms | None = None, **changes: Any) -> clip.ClipModel:
    """A ``ClipModel`` with weights that depend on the seed alone, and the numbers that the terms learn.

    Args:
        seed: of the weights.
        terms: the loss that it is for.
        changes: fields of ``ModelConfig``.
    """
    torch.manual_seed(seed)
    cfg = ModelConfig(**{"inline": INLINE, **changes})
    return clip.build(cfg, ObjectiveConfig(), objective(terms).scalars(), num_view_params=VIEW_PARAMS)


def with_heads(seed: int = 0, terms: Terms | None = None, **heads: Any) -> clip.ClipModel:
    """A model with heads; ``heads`` are fields of ``HeadsConfig``."""
    return model(seed, terms, heads=HeadsConfig(**heads))


def randomise(module: torch.nn.Module, seed: int = 1) -> None:
    """Give every parameter random values, as if it had learned something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + (parameter == 1))


def batch(size: int, seed: int = 0, num_groups: int | None = None, num_views: int = 1) -> Inputs:
    """Images [V, size, 3, 16, 16], tokens [size, 8], groups [size], and what was done to the views [V, size, 5].

    With ``num_groups`` several samples share each group.
    """
    generator = torch.Generator().manual_seed(seed)
    image_VBCHW = torch.randn(num_views, size, 3, 16, 16, generator=generator)
    tokens_BL = torch.randint(1, 63, (size, 8), generator=generator)
    params_VBK = torch.randn(num_views, size, VIEW_PARAMS, generator=generator)
    return Inputs(image_VBCHW, tokens_BL, torch.arange(size) % (num_groups or size), params_VBK)


def share(inputs: Inputs, rank: int, world_size: int) -> Inputs:
    """The samples of one rank."""
    return inputs.chunk(world_size)[rank]
