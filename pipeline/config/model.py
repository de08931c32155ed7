"""The towers, and what they are initialised with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.config.limits import Ranges, Rule


@dataclass(frozen=True)
class ModelConfig:
    """The two towers: an open_clip architecture by name, or its configuration inline. Exactly one of the two."""

    architecture: str | None = None
    """Name that ``open_clip.list_models()`` knows, for example ``ViT-B-32``."""
    inline: dict[str, Any] | None = None
    """``embed_dim``, ``vision_cfg``, ``text_cfg`` and further keys of an open_clip model file."""
    init_weights: str | None = None
    """``.safetensors`` file (an export of ours or open_clip's) to start from; None starts from random weights."""
    patch_dropout: float | None = None
    """Fraction of image patches dropped while training; None keeps the architecture's own value."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    compile: bool = False
    """``torch.compile`` both towers; not possible with ZeRO stage 3."""
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


RANGES: Ranges = {
    "model.patch_dropout": (0, 1),
}


def rules(model: ModelConfig) -> list[Rule]:
    """Combinations of these settings that must hold."""
    return [
        ((model.architecture is None) != (model.inline is None), "model: give exactly one of architecture, inline"),
    ]
