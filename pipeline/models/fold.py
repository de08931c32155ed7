"""A model with heads -> a plain open_clip model that computes the same evaluation features.

    state, config, folded, dropped = fold(clip, architecture(cfg.model))

Evaluation augments nothing, so f_A's embedding is 0 (``heads.py``) and what is left of g_I can be written with open_clip's
own parts, exactly:

    residual MLP block      x + MLP(norm(x)) of the class token, before the last norm: one more transformer layer whose
                            attention is silent (all its weights 0). A narrower block is padded with zeros.
    affine block            nothing: at e = 0 it is the identity
    norm, projection        back into the tower

g_T folds in the same way. f_A and the heads beside the projection have no place in open_clip and are dropped, by name.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.models.heads import MlpBlock
from pipeline.models.model import ClipModel


class Folded(NamedTuple):
    """What ``fold`` found."""

    state: dict[str, Tensor]
    """Tensors of the plain model, by the names that it has without heads."""
    config: dict[str, Any]
    """Its open_clip configuration."""
    folded: list[str]
    """Heads that became part of the towers, in words."""
    dropped: list[str]
    """Our names of tensors that have no place in it."""


def fold(clip: ClipModel, config: dict[str, Any]) -> Folded:
    """The plain model that computes ``clip``'s features of images that were not augmented, and of texts.

    Args:
        clip: the trained model; not changed.
        config: its architecture, from ``towers.architecture``.
    """
    state: dict[str, Tensor] = {}
    dropped: list[str] = []
    words: list[str] = []
    config = copy.deepcopy(config)
    for name, tensor in clip.state_dict().items():
        if name.startswith(("heads.", "scalars.")) and name not in clip.moved_names:
            dropped.append(name)
        else:
            state[clip.moved_names.get(name, name)] = tensor
    if clip.heads is None:
        return Folded(state, config, words, dropped)
    for head, prefix, part in (("image", "visual", "vision_cfg"), ("text", "text", "text_cfg")):
        projection: Any = getattr(clip.heads, head)
        blocks = [block for block in projection.blocks if isinstance(block, MlpBlock)]
        if blocks:
            layers: Any = getattr(clip, prefix).transformer.resblocks
            for place, block in enumerate(blocks, start=len(layers)):
                silent = _silent_layer(block, layers[-1])
                state |= {f"{prefix}.transformer.resblocks.{place}.{name}": tensor for name, tensor in silent.items()}
            config[part]["layers"] = len(layers) + len(blocks)
            words.append(f"{len(blocks)} residual blocks of heads.{head} as layers without attention")
            kept = {f"heads.{head}.blocks.{i}.{name}" for i, block in enumerate(blocks) for name in _carried(block)}
            dropped = [name for name in dropped if name not in kept]
        if any(name.startswith(f"heads.{head}.") for name in clip.moved_names):
            words.append(f"the projection of heads.{head}")
    return Folded(state, config, words, dropped)


def _carried(block: MlpBlock) -> list[str]:
    """Tensors of a block that its layer holds; what comes from an augmentation is not among them."""
    return [name for name in block.state_dict() if not name.startswith("shift.")]


def _silent_layer(block: MlpBlock, template: Any) -> dict[str, Tensor]:
    """``block`` as the state of a transformer layer built like ``template``, whose attention adds nothing."""
    state = {name: torch.zeros_like(tensor) for name, tensor in template.state_dict().items()}
    for name in state:
        if name == "ln_1.weight" or name.endswith(".gamma"):
            state[name] = torch.ones_like(state[name])
    state["ln_2.weight"], state["ln_2.bias"] = block.norm.weight, block.norm.bias
    hidden = block.c_fc.out_features  # the rest of the layer's hidden units stays 0, and GELU(0) is 0
    state["mlp.c_fc.weight"][:hidden], state["mlp.c_fc.bias"][:hidden] = block.c_fc.weight, block.c_fc.bias
    state["mlp.c_proj.weight"][:, :hidden], state["mlp.c_proj.bias"] = block.c_proj.weight, block.c_proj.bias
    return {name: tensor.detach() for name, tensor in state.items()}
