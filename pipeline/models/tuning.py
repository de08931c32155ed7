"""How fast which part of a model learns: locked towers, a factor per tower, layer-wise decay.

A tower's parameters form groups from its input to its output: embeddings, one group per block (the norm after the last one
belongs to it), the projection. With N blocks the groups are numbered 0 (embeddings) to N + 1 (projection).

    layer_groups(clip)          # {"visual.conv1.weight": ("visual", 0), ..., "visual.proj": ("visual", 13), ...}
    apply(clip, cfg.model)      # requires_grad, clip.lr_scales, clip.locked_modules

Heads that came with this project (f_A, residual blocks, independent features) are new: no lock and no factor touches them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from open_clip.timm_model import TimmModel
from timm.models import group_parameters

from pipeline.config.model import ModelConfig, TowerConfig
from pipeline.models.model import ClipModel
from pipeline.models.names import is_projection

TOWERS = ("visual", "text")

_BLOCK = re.compile(r"\.(?:resblocks|layer|layers|blocks)\.(\d+)\.")
_RESNET_STAGE = re.compile(r"\.layer(\d)\.")
_EMBEDDINGS = re.compile(
    r"\.(?:conv[123]|bn[123]|class_embedding|positional_embedding|ln_pre|token_embedding|cls_emb|embeddings)\b"
)


def layer_groups(clip: ClipModel) -> dict[str, tuple[str, int]]:
    """Tower and group number of every parameter that belongs to a tower, by our name; heads' own parameters are left out."""
    original = clip.moved_names  # our name -> the name inside the tower
    found: dict[str, tuple[str, int | None]] = {}
    for prefix in TOWERS:
        stages = dict(_timm_stages(getattr(clip, prefix)))
        for name, _ in clip.named_parameters():
            inside = original.get(name, name)
            if inside.startswith(prefix + "."):
                found[name] = (prefix, stages.get(inside.removeprefix(prefix + ".trunk."), _stage(inside)))
    last = {prefix: max((g for p, g in found.values() if p == prefix and g is not None), default=0) for prefix in TOWERS}
    numbered: dict[str, tuple[str, int]] = {}
    for name, (prefix, group) in found.items():
        inside = original.get(name, name)
        if is_projection(inside) or inside.startswith("visual.attnpool."):
            group = last[prefix] + 1
        numbered[name] = (prefix, last[prefix] if group is None else group)
    return numbered


def _stage(name: str) -> int | None:
    """Group of a parameter by its name; None for what comes after the last block."""
    if block := _BLOCK.search(name):
        return int(block[1]) + 1
    if stage := _RESNET_STAGE.search(name):
        return int(stage[1])
    return 0 if _EMBEDDINGS.search(name) else None


def _timm_stages(tower: Any) -> Iterator[tuple[str, int]]:
    """Groups of a timm trunk's parameters as timm itself divides them."""
    if isinstance(tower, TimmModel):
        for group, names in group_parameters(tower.trunk, tower.trunk.group_matcher()).items():
            for name in names:
                yield name, int(group)


def apply(clip: ClipModel, cfg: ModelConfig) -> None:
    """Lock what is to be locked, and set ``clip.lr_scales`` (parameter name -> factor on the learning rate).

    What is locked stays in evaluation mode: no dropout, and batch norms keep their statistics.
    """
    towers: dict[str, TowerConfig] = {"visual": cfg.image_tower, "text": cfg.text_tower}
    groups = layer_groups(clip)
    top = {prefix: max((g for p, g in groups.values() if p == prefix), default=0) for prefix in TOWERS}
    parameters = dict(clip.named_parameters())
    scales: dict[str, float] = {}
    for name, (prefix, group) in groups.items():
        tower, below = towers[prefix], top[prefix] - group
        if tower.locked and below >= tower.unlocked_groups:
            parameters[name].requires_grad = False
        scale = tower.lr_scale * tower.layer_decay**below
        if scale != 1:
            scales[name] = scale
    clip.lr_scales = scales
    clip.locked_modules = [
        module
        for prefix in TOWERS
        if towers[prefix].locked
        for module in getattr(clip, prefix).modules()
        if not any(parameter.requires_grad for parameter in module.parameters())
    ]
