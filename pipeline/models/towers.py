"""From ``ModelConfig`` to an open_clip architecture: a plain dict as in open_clip's own model files; and its towers.

    config = architecture(ModelConfig(architecture="ViT-B-32"))   # {"embed_dim": 512, "vision_cfg": {...}, "text_cfg": {...}}
    towers = build_towers(config)                                 # towers.visual, towers.text

No weights are fetched or unpickled here: a run starts from random weights or from a ``.safetensors`` file.
"""

from __future__ import annotations

import copy
import difflib
from typing import Any, NamedTuple

import open_clip
from torch import nn

from pipeline.config import ModelConfig
from pipeline.errors import ConfigError

_KNOWN_KEYS = {
    "embed_dim",
    "vision_cfg",
    "text_cfg",
    "multimodal_cfg",
    "quick_gelu",
    "custom_text",
    "init_logit_scale",
    "init_logit_bias",
}


class Towers(NamedTuple):
    """Separate modules rather than open_clip's fused ``CLIP``: ZeRO stage 3 gathers a module's parameters around its own
    ``forward``, which the fused class by-passes when its text half is called."""

    visual: Any
    text: Any
    text_decoder: Any = None
    """Of captioning models (CoCa): predicts each token of a caption from those before it and the image."""
    second_image_tower: bool = False
    """Whether ``text`` is a second image tower."""

    def modules(self) -> list[Any]:
        """The two or three modules."""
        return [tower for tower in (self.visual, self.text, self.text_decoder) if tower is not None]


def architecture(model: ModelConfig) -> dict[str, Any]:
    """The open_clip configuration of ``model``, with the run's patch dropout and embedding width; a fresh dict each time.

    Raises:
        ConfigError: unknown architecture (naming the nearest one), unknown or missing inline keys.
    """
    if model.inline is not None:
        config = copy.deepcopy(model.inline)
    else:
        config = open_clip.get_model_config(model.architecture)
        if config is None:
            near = difflib.get_close_matches(str(model.architecture), open_clip.list_models(), n=3)
            hint = f"did you mean one of {', '.join(near)}?" if near else "see open_clip.list_models()"
            raise ConfigError(f"model.architecture = {model.architecture!r} is not known to open_clip; {hint}")
    if missing := {"embed_dim", "vision_cfg", "text_cfg"} - config.keys():
        raise ConfigError(f"model.inline: missing {', '.join(sorted(missing))}")
    if unknown := config.keys() - _KNOWN_KEYS:
        raise ConfigError(f"model.inline: unknown {', '.join(sorted(unknown))}; known: {', '.join(sorted(_KNOWN_KEYS))}")
    if model.patch_dropout is not None:
        config["vision_cfg"]["patch_dropout"] = model.patch_dropout
    if model.embed_dim is not None:
        config["embed_dim"] = model.embed_dim
    # The towers' own pretrained weights would be downloaded (and unpickled) by timm or transformers.
    if config["vision_cfg"].get("timm_model_pretrained"):
        config["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"]["hf_model_pretrained"] = False
    return config


def build_towers(config: dict[str, Any], *, second_image_tower: bool = False) -> Towers:
    """The towers of an open_clip configuration, with random weights.

    Args:
        config: from ``architecture``.
        second_image_tower: put another image tower, with random weights of its own, where the text tower would be.

    Raises:
        ConfigError: open_clip refuses the configuration; its words are kept.
    """
    captioning = "multimodal_cfg" in config
    if captioning and second_image_tower:
        raise ConfigError("model.second_tower = image: a captioning model needs its text tower")
    if captioning and config["text_cfg"].get("hf_model_name"):
        raise ConfigError("model: a captioning model needs open_clip's own text tower, not one of Hugging Face (hf_model_name)")
    used = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu") + (("multimodal_cfg",) if captioning else ())
    keys = {key: copy.deepcopy(config[key]) for key in used if key in config}
    kind = open_clip.CoCa if captioning else open_clip.CustomTextCLIP
    try:
        clip = kind(**keys, nonscalar_logit_scale=True)
        second = kind(**keys, nonscalar_logit_scale=True).visual if second_image_tower else None
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        raise ConfigError(f"open_clip cannot build this model: {error}") from error
    if second is not None:
        return Towers(clip.visual, second, second_image_tower=True)
    if not captioning:
        return Towers(clip.visual, clip.text)
    # open_clip leaves this one as it finds it in memory.
    nn.init.normal_(clip.text_decoder.text_projection, std=keys["multimodal_cfg"]["width"] ** -0.5)
    return Towers(clip.visual, clip.text, clip.text_decoder)
