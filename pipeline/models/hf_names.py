"""Parameter names here and in Hugging Face's ``CLIPModel`` and ``VisionTextDualEncoderModel``, in both directions.

Pure functions on name -> tensor dicts; nothing here needs transformers. W is a tower's width, d the embedding's.

here                                              CLIPModel
visual.conv1.weight                               vision_model.embeddings.patch_embedding.weight
visual.transformer.resblocks.0.attn.in_proj_weight [3W, W]
                                                  vision_model.encoder.layers.0.self_attn.{q,k,v}_proj.weight, [W, W] each
visual.transformer.resblocks.0.mlp.c_fc.weight    vision_model.encoder.layers.0.mlp.fc1.weight
visual.proj [W, d]                                visual_projection.weight [d, W]
text.ln_final.weight                              text_model.final_layer_norm.weight
logit_scale.log_scale [1]                         logit_scale []

A dual encoder has the same image tower, and as ``text_model`` one of Hugging Face's own text towers, which open_clip keeps
as ``text.transformer``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from pipeline.errors import ConfigError

_TOWERS = (("visual", "vision_model"), ("text", "text_model"))
_PLACES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",  # their spelling
    "visual.ln_post": "vision_model.post_layernorm",
    "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text.ln_final": "text_model.final_layer_norm",
}
_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_PROJECTIONS = {"visual.proj": "visual_projection.weight", "text.text_projection": "text_projection.weight"}
_SCALE, _BIAS = "logit_scale.log_scale", "scalars.siglip_bias.value"
_TEXT_PROJECTION, _OWN_TEXT = "text.proj.weight", "text.token_embedding.weight"


def is_hugging_face(names: Collection[str]) -> bool:
    """Whether these are the tensors of a ``CLIPModel`` or a dual encoder with CLIP's image tower."""
    return any(name.startswith("vision_model.") for name in names) and any(name.startswith("text_model.") for name in names)


def to_hugging_face(state: Mapping[str, Tensor], embed_dim: int) -> dict[str, Tensor]:
    """Our names to theirs, of a model that ``hf_config`` lets pass.

    Args:
        state: by our names.
        embed_dim: d. A tower of Hugging Face whose feature is the embedding has no projection; there it gets the identity.

    Raises:
        ConfigError: a tensor that has no place there.
    """
    own_text = _OWN_TEXT in state
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == _SCALE:
            renamed["logit_scale"] = tensor.reshape(())
        elif name in _PROJECTIONS:
            renamed[_PROJECTIONS[name]] = tensor.T.contiguous()
        elif name == _TEXT_PROJECTION:
            renamed["text_projection.weight"] = tensor
        elif name.startswith("text.transformer.") and not own_text:
            renamed["text_model." + name.removeprefix("text.transformer.")] = tensor
        elif ".attn.in_proj_" in name:
            before, kind = name.split(".attn.in_proj_")
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{_layer(before)}.self_attn.{part}_proj.{kind}"] = rows.contiguous()
        else:
            renamed[_place(name)] = tensor
    if not own_text and "text_projection.weight" not in renamed:
        renamed["text_projection.weight"] = torch.eye(embed_dim)
    return renamed


def from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their names to ours. Names that mean nothing here keep theirs, for whoever compares them with a model to list."""
    state = {name.replace("vision_model.vision_model.", "vision_model.", 1): tensor for name, tensor in state.items()}
    own_text = _PLACES[_OWN_TEXT] in state
    backwards = {theirs: ours for ours, theirs in _PLACES.items()}
    layers = {theirs: ours for ours, theirs in _LAYER.items()}
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "logit_scale":
            renamed[_SCALE] = tensor.reshape(1)
        elif name == "logit_bias":
            renamed[_BIAS] = tensor.reshape(1)
        elif name == "visual_projection.weight" or (name == "text_projection.weight" and own_text):
            renamed[next(ours for ours, theirs in _PROJECTIONS.items() if theirs == name)] = tensor.T.contiguous()
        elif name == "text_projection.weight":
            renamed[_TEXT_PROJECTION] = tensor
        elif name.startswith("text_model.") and not own_text:
            renamed["text.transformer." + name.removeprefix("text_model.")] = tensor
        elif ".self_attn.q_proj." in name:
            parts = [state.get(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
            joined = torch.cat([part for part in parts if part is not None])  # a missing one shows as a wrong shape
            before, kind = name.split(".self_attn.q_proj.")
            renamed[f"{_our_layer(before)}.attn.in_proj_{kind}"] = joined
        elif ".self_attn.k_proj." not in name and ".self_attn.v_proj." not in name:
            renamed[_our_place(name, backwards, layers)] = tensor
    return renamed


def _place(name: str) -> str:
    """Their name of a tensor that has the same value there."""
    if name in _PLACES:
        return _PLACES[name]
    owner, _, kind = name.rpartition(".")
    if owner in _PLACES:
        return f"{_PLACES[owner]}.{kind}"
    tower, _, rest = owner.partition(".transformer.resblocks.")
    number, _, part = rest.partition(".")
    if part not in _LAYER or not number.isdigit():
        raise ConfigError(f"{name} has no place in Hugging Face's CLIPModel")
    return f"{_layer(f'{tower}.transformer.resblocks.{number}')}.{_LAYER[part]}.{kind}"


def _layer(name: str) -> str:
    tower, number = name.split(".transformer.resblocks.")
    return f"{dict(_TOWERS)[tower]}.encoder.layers.{number}"


def _our_place(name: str, backwards: Mapping[str, str], layers: Mapping[str, str]) -> str:
    if name in backwards:
        return backwards[name]
    owner, _, kind = name.rpartition(".")
    if owner in backwards:
        return f"{backwards[owner]}.{kind}"
    tower, _, rest = owner.partition(".encoder.layers.")
    number, _, part = rest.partition(".")
    return f"{_our_layer(f'{tower}.encoder.layers.{number}')}.{layers[part]}.{kind}" if part in layers else name


def _our_layer(name: str) -> str:
    tower, _, number = name.partition(".encoder.layers.")
    ours = {theirs: our for our, theirs in _TOWERS}.get(tower, tower)
    return f"{ours}.transformer.resblocks.{number}"
