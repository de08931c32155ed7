"""The smallest model and batches that exercise everything: two one-layer towers on 16-pixel images."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.config import ModelConfig, ObjectiveConfig
from pipeline.features import Inputs
from pipeline.losses import Objective
from pipeline.models import clip

INLINE: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}


Terms = dict[str, dict[str, Any]]


def objective(terms: Terms | None = None) -> Objective:
    """CLIP's loss, or other terms, in small tiles."""
    return Objective(ObjectiveConfig(terms=terms or {"clip": {}}, tile=5), seed=3, total_steps=10)


def model(seed: int = 0, terms: Terms | None = None) -> clip.ClipModel:
    """A ``ClipModel`` with weights that depend on the seed alone, and the numbers that the terms learn."""
    torch.manual_seed(seed)
    return clip.build(ModelConfig(inline=INLINE), ObjectiveConfig(), objective(terms).scalars())


def batch(size: int, seed: int = 0, num_groups: int | None = None, num_views: int = 1) -> Inputs:
    """Images [V, size, 3, 16, 16], tokens [size, 8], groups [size]; with ``num_groups`` several samples share each group."""
    generator = torch.Generator().manual_seed(seed)
    image_VBCHW = torch.randn(num_views, size, 3, 16, 16, generator=generator)
    tokens_BL = torch.randint(1, 63, (size, 8), generator=generator)
    return Inputs(image_VBCHW, tokens_BL, torch.arange(size) % (num_groups or size), torch.zeros(num_views, size, 0))


def share(inputs: Inputs, rank: int, world_size: int) -> Inputs:
    """The samples of one rank."""
    return inputs.chunk(world_size)[rank]
