"""Parameter names here and in open_clip, in both directions. Pure functions on name -> tensor dicts.

here                      open_clip, two-module class      open_clip, fused class
visual.conv1.weight       visual.conv1.weight              visual.conv1.weight
text.ln_final.weight      text.ln_final.weight             ln_final.weight
logit_scale.log_scale     logit_scale                      logit_scale (0-dim in files; here [1], as DeepSpeed needs)
"""

from __future__ import annotations

from torch import Tensor

_SCALE, _THEIR_SCALE = "logit_scale.log_scale", "logit_scale"


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
    """Either of open_clip's naming schemes, or our own, to ours. The scale becomes [1]."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == _THEIR_SCALE:
            renamed[_SCALE] = tensor.reshape(1)
        elif name.split(".")[0] in ("visual", "text", "logit_scale", "scalars"):
            renamed[name] = tensor
        else:
            renamed["text." + name] = tensor
    return renamed
