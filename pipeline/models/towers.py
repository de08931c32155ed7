"""From ``ModelConfig`` to an open_clip architecture: a plain dict as in open_clip's own model files.

    architecture(ModelConfig(architecture="ViT-B-32"))   # {"embed_dim": 512, "vision_cfg": {...}, "text_cfg": {...}}

No weights are fetched or unpickled here: a run starts from random weights or from a ``.safetensors`` file.
"""

from __future__ import annotations

import copy
import difflib
from typing import Any

import open_clip

from pipeline.config import ModelConfig
from pipeline.errors import ConfigError

_KNOWN_KEYS = {
    "embed_dim",
    "vision_cfg",
    "text_cfg",
    "quick_gelu",
    "custom_text",
    "init_logit_scale",
    "init_logit_bias",
}


def architecture(model: ModelConfig) -> dict[str, Any]:
    """The open_clip configuration of ``model``, with the patch dropout of the run applied; a fresh dict each time.

    Raises:
        ConfigError: unknown architecture (naming the nearest one), unknown or missing inline keys, or a kind of model that
            this pipeline does not train (generative towers).
    """
    if model.inline is not None:
        config = copy.deepcopy(model.inline)
    else:
        config = open_clip.get_model_config(model.architecture)
        if config is None:
            near = difflib.get_close_matches(str(model.architecture), open_clip.list_models(), n=3)
            hint = f"did you mean one of {', '.join(near)}?" if near else "see open_clip.list_models()"
            raise ConfigError(f"model.architecture = {model.architecture!r} is not known to open_clip; {hint}")
    if "multimodal_cfg" in config:
        raise ConfigError(f"model {model.architecture or 'inline'}: captioning models (multimodal_cfg) are not supported")
    if missing := {"embed_dim", "vision_cfg", "text_cfg"} - config.keys():
        raise ConfigError(f"model.inline: missing {', '.join(sorted(missing))}")
    if unknown := config.keys() - _KNOWN_KEYS:
        raise ConfigError(f"model.inline: unknown {', '.join(sorted(unknown))}; known: {', '.join(sorted(_KNOWN_KEYS))}")
    if model.patch_dropout is not None:
        config["vision_cfg"]["patch_dropout"] = model.patch_dropout
    # The towers' own pretrained weights would be downloaded (and unpickled) by timm or transformers.
    if config["vision_cfg"].get("timm_model_pretrained"):
        config["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"]["hf_model_pretrained"] = False
    return config


def build_towers(config: dict[str, Any]) -> tuple[Any, Any]:
    """The image and text tower (modules with ``forward`` of their own) of an open_clip configuration.

    Two separate modules rather than open_clip's fused ``CLIP``: ZeRO stage 3 gathers a module's parameters around its own
    ``forward``, which the fused class by-passes when its text half is called.

    Raises:
        ConfigError: open_clip refuses the configuration; its words are kept.
    """
    keys = {key: value for key, value in config.items() if key in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")}
    try:
        clip = open_clip.CustomTextCLIP(**keys, nonscalar_logit_scale=True)
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        raise ConfigError(f"open_clip cannot build this model: {error}") from error
    return clip.visual, clip.text
