"""The towers, the heads on them, what they are initialised with, and how fast which part of them learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.config.limits import INFINITY, POSITIVE, Ranges, Rule


@dataclass(frozen=True)
class TowerConfig:
    """How one tower starts and learns. Layer groups, from the input: embeddings, each block, projection."""

    init_weights: str | None = None
    """Weights file (``.safetensors``, or a plain ``.pt`` state dict) of this tower alone; its projection stays random."""
    locked: bool = False
    """Keep the tower's weights as they are: no gradient, no optimizer state, batch-norm statistics frozen."""
    unlocked_groups: int = 0
    """Layer groups of a locked tower, from its output, that learn all the same: 1 is the projection, 2 also the last block."""
    lr_scale: float = 1.0
    """Factor on ``optim.lr`` for this tower."""
    layer_decay: float = 1.0
    """Further factor per layer group, counted from the output; below 1 the layers near the input learn slower."""


@dataclass(frozen=True)
class AugmentationConfig:
    """UniCLIP's augmentation encoder f_A and augmentation-aware image projection g_I."""

    form: Literal["mlp", "affine"] = "mlp"
    """What g_I's residual blocks are: ``mlp`` needs a ViT with a class token; ``affine`` (linear in the image's feature) fits
    any tower. Both export exactly."""
    blocks: int = 2
    """Residual blocks of g_I; all are zero at the start."""
    block_width: int | None = None
    """Hidden width of a block; None takes the tower's own MLP width (``mlp``) or its feature width (``affine``)."""
    encoder_width: int = 256
    """Width of f_A's layers and of the augmentation's embedding."""
    encoder_layers: int = 3


@dataclass(frozen=True)
class ProjectorConfig:
    """A head beside the projection: layer norm, then ``layers`` linear layers with GELU between them."""

    layers: int = 1
    hidden_width: int = 2048
    out_dim: int | None = None
    """Width of its embeddings; None takes ``embed_dim``."""
    placement: Literal["feature", "embedding"] = "feature"
    """What it reads: the tower's feature before the projection, or the embedding after it."""


@dataclass(frozen=True)
class HeadsConfig:
    """Heads on the towers' features; None leaves a head out. Evaluation and open_clip need none of those left in."""

    augmentation: AugmentationConfig | None = None
    """Image embeddings that know which augmentation was applied (UniCLIP)."""
    text_blocks: int = 0
    """Residual MLP blocks before the text projection (g_T); 0 is CLIP's linear one."""
    independent: ProjectorConfig | None = None
    """Features of what each modality does not share (deep feature separation): ``independent_image``, ``independent_text``."""
    projector: ProjectorConfig | None = None
    """SimCLR's projector on images: ``projected_image``, ``projected_image_2``, ..."""


@dataclass(frozen=True)
class ModelConfig:
    """The two towers: an open_clip architecture by name, or its configuration inline. Exactly one of the two."""

    architecture: str | None = None
    """Name that ``open_clip.list_models()`` knows, for example ``ViT-B-32``."""
    inline: dict[str, Any] | None = None
    """``embed_dim``, ``vision_cfg``, ``text_cfg`` and further keys of an open_clip model file."""
    embed_dim: int | None = None
    """Width of the shared space; None keeps the architecture's own."""
    init_weights: str | None = None
    """Weights to start from: ``.safetensors`` or a plain ``.pt`` state dict, of ours, of open_clip, or in OpenAI's layout."""
    fresh_projections: bool = False
    """Leave the projections of ``init_weights`` out: they start from random numbers, also at another ``embed_dim``."""
    second_tower: Literal["text", "image"] = "text"
    """``image``: a second image tower on the same pixels takes the text tower's place (a control of the modality gap)."""
    image_tower: TowerConfig = TowerConfig()
    text_tower: TowerConfig = TowerConfig()
    heads: HeadsConfig = HeadsConfig()
    patch_dropout: float | None = None
    """Fraction of image patches dropped while training, by step and sample; None keeps the architecture's own value."""
    views_together: bool = True
    """Encode all views of a step in one pass of the image tower; false takes one pass per view: less memory at once."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    compile: bool = False
    """``torch.compile`` both towers; not possible with ZeRO stage 3."""
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


RANGES: Ranges = {
    "model.embed_dim": (1, INFINITY),
    "model.patch_dropout": (0, 1),
    **{
        f"model.{tower}.{name}": limits
        for tower in ("image_tower", "text_tower")
        for name, limits in (
            ("unlocked_groups", (0, INFINITY)),
            ("lr_scale", (POSITIVE, INFINITY)),
            ("layer_decay", (POSITIVE, 1)),
        )
    },
    "model.heads.text_blocks": (0, INFINITY),
}


def rules(model: ModelConfig) -> list[Rule]:
    """Combinations of these settings that must hold."""
    augmentation = model.heads.augmentation or AugmentationConfig()
    sides = [side for side in (model.heads.independent, model.heads.projector) if side is not None]
    return [
        ((model.architecture is None) != (model.inline is None), "model: give exactly one of architecture, inline"),
        (
            min(augmentation.blocks, augmentation.encoder_layers, augmentation.encoder_width, augmentation.block_width or 1)
            >= 1,
            f"model.heads.augmentation: blocks, layers and widths must be at least 1, got {augmentation}",
        ),
        (
            all(min(side.layers, side.hidden_width, side.out_dim or 1) >= 1 for side in sides),
            f"model.heads: layers and widths of a head must be at least 1, got {sides}",
        ),
        *(
            (
                tower.locked or tower.unlocked_groups == 0,
                f"model.{name}.unlocked_groups = {tower.unlocked_groups}: nothing is locked; set model.{name}.locked = true",
            )
            for name, tower in (("image_tower", model.image_tower), ("text_tower", model.text_tower))
        ),
        (
            model.second_tower == "text" or model.heads == HeadsConfig(),
            "model.second_tower = image is a control with plain projections; leave model.heads out",
        ),
    ]
