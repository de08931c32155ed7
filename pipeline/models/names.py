"""Parameter names here and in open_clip, in both directions. Pure functions on name -> tensor dicts.

here                      open_clip, two-module class      open_clip, fused class
visual.conv1.weight       visual.conv1.weight              visual.conv1.weight
text.ln_final.weight      text.ln_final.weight             ln_final.weight
logit_scale.log_scale     logit_scale                      logit_scale (0-dim in files; here [1], as DeepSpeed needs)
scalars.siglip_bias.value logit_bias                       logit_bias
"""

from __future__ import annotations

import re

from torch import Tensor

_SCALE, _THEIR_SCALE = "logit_scale.log_scale", "logit_scale"
_BIAS, _THEIR_BIAS = "scalars.siglip_bias.value", "logit_bias"
_OURS = ("visual", "text", "text_decoder", "logit_scale", "scalars", "heads")
_PROJECTION = re.compile(r"(?:visual\.proj|visual\.attnpool\.c_proj|visual\.head|text\.text_projection|text\.proj)(?:\.|$)")


def is_projection(name: str) -> bool:
    """Whether a tensor of a tower (by its name in the tower) belongs to the projection into the shared space."""
    return _PROJECTION.match(name) is not None


def to_open_clip(state: dict[str, Tensor], *, fused: bool) -> dict[str, Tensor]:
    """Our names to open_clip's; ``fused`` for architectures without ``custom_text``. The scale becomes 0-dim."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == _SCALE:
            renamed[_THEIR_SCALE] = tensor.reshape(())
        elif name.startswith("text.") and fused:
            renamed[name.removeprefix("text.")] = tensor
        else:
            renamed[name] = tensor
    return renamed


def from_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Either of open_clip's naming schemes, or our own, to ours. Scale and bias become [1]."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == _THEIR_SCALE:
            renamed[_SCALE] = tensor.reshape(1)
        elif name == _THEIR_BIAS:
            renamed[_BIAS] = tensor.reshape(1)
        elif name.split(".")[0] in _OURS:
            renamed[name] = tensor
        else:
            renamed["text." + name] = tensor
    return renamed
