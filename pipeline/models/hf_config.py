"""Which open_clip architectures are the same function as Hugging Face's ``CLIPModel`` or dual encoder, and their config.json.

    misfits(model_cfg)                          [] or what stands in the way: ["vision_cfg.no_ln_pre = True: ..."]
    clip_config(model_cfg, log_scale)           config.json of the same CLIPModel
    open_clip_config(json.loads(text))          and back: model_cfg for open_clip, or a ConfigError that says what does not fit

``CLIPModel`` is a ViT read at its class token beside a causal text transformer read at its end token, both with plain
pre-norm layers. A ``VisionTextDualEncoderModel`` has that ViT beside one of Hugging Face's text towers with its own pooler.
The lists below say of every key of an open_clip configuration whether it is expressed there, must have one value, or changes
nothing in evaluation; a key in none of them is a misfit, so that a new option is refused and not overlooked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import ConfigError

Config = Mapping[str, Any]

_PLAIN_LAYERS = {
    "ls_init_value": None,
    "block_type": None,
    **dict.fromkeys(("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), False),
    "output_tokens": False,
}
_IMAGE_FIXED = {
    **_PLAIN_LAYERS,
    "timm_model_name": None,
    "attentional_pool": False,
    "no_ln_pre": False,
    "pool_type": "tok",
}
_IMAGE_SHAPES = ("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "act_kwargs", "norm_kwargs")
_IMAGE_SILENT = ("patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "pos_embed_type", "final_ln_after_pool")
_TEXT_FIXED = {
    **_PLAIN_LAYERS,
    "embed_cls": False,
    "no_causal_mask": False,
    "proj_bias": False,
    "proj_type": "linear",
    "tokenizer_mode": None,
}
_TEXT_SHAPES = (
    "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "act_kwargs", "norm_kwargs", "pool_type", "eos_id",
)  # fmt: skip
_TEXT_SILENT = ("pad_id", "hf_tokenizer_name", "final_ln_after_pool", "correct_cls_mask")
_HF_TEXT_FIXED = {"hf_pooler_type": "cls_pooler", "output_tokens": False, "tokenizer_mode": None}
_HF_TEXT_SILENT = (
    "hf_model_name", "hf_tokenizer_name", "hf_model_pretrained", "hf_proj_type", "context_length", "vocab_size", "width",
    "heads", "layers",
)  # fmt: skip
_MODEL_KEYS = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias")
END_TOKEN, START_TOKEN = 49407, 49406
LEGACY_END_TOKEN = 2
"""In a config.json it means: the token with the highest id. (Hugging Face's configurations of before mid 2023.)"""
DEFAULT_EPS = 1e-5
_DEFAULTS = {"width": (768, 512), "layers": (12, 12), "mlp_ratio": (4.0, 4.0)}


def has_hf_text(model_cfg: Config) -> bool:
    """Whether the text tower is one of Hugging Face's, so that the whole can only be a dual encoder."""
    return bool(model_cfg["text_cfg"].get("hf_model_name"))


def misfits(model_cfg: Config) -> list[str]:
    """What keeps an architecture from being a ``CLIPModel``, or a dual encoder where ``has_hf_text``; empty if nothing does."""
    image, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    found = [f"{key}: has no counterpart" for key in sorted(model_cfg.keys() - set(_MODEL_KEYS))]
    found += _differing("vision_cfg", image, _IMAGE_FIXED, (*_IMAGE_SHAPES, *_IMAGE_SILENT), ("timm_",))
    if isinstance(image.get("layers", 12), (list, tuple)):
        found.append(f"vision_cfg.layers = {image['layers']}: a ResNet has no counterpart")
    found += [
        f"vision_cfg.{key} = {image[key]}: only square images and patches have a counterpart"
        for key in ("image_size", "patch_size")
        if not _is_square(image.get(key))
    ]
    if has_hf_text(model_cfg):
        found += _differing("text_cfg", {"hf_pooler_type": "mean_pooler", **text}, _HF_TEXT_FIXED, _HF_TEXT_SILENT, ())
        if text.get("hf_proj_type", "mlp") not in ("linear", None):
            found.append(
                f"text_cfg.hf_proj_type = {text.get('hf_proj_type', 'mlp')!r}: only a linear projection has a counterpart"
            )
    else:
        found += _differing("text_cfg", text, _TEXT_FIXED, (*_TEXT_SHAPES, *_TEXT_SILENT, "tokenizer_kwargs"), ("hf_",))
        found += _pooling_misfits(text)
        if text.get("tokenizer_kwargs") and not text.get("hf_tokenizer_name"):
            found.append(f"text_cfg.tokenizer_kwargs = {text['tokenizer_kwargs']}: CLIPTokenizer cleans texts in one way only")
    for name, part in (("vision_cfg", image), ("text_cfg", text)):
        if _activation(model_cfg, part) is None:
            found.append(f"{name}.act_kwargs = {part['act_kwargs']}: no such activation there")
        if part.get("norm_kwargs") and part["norm_kwargs"].keys() != {"eps"}:
            found.append(f"{name}.norm_kwargs = {part['norm_kwargs']}: only eps has a counterpart")
    return found


def _differing(
    name: str, part: Config, fixed: Mapping[str, Any], allowed: tuple[str, ...], ignored: tuple[str, ...]
) -> list[str]:
    """Keys with another value than the one that has a counterpart, and keys that are not known here."""
    found = []
    for key, value in part.items():
        if key in fixed:
            if (value or None) != (fixed[key] or None):
                only = "has no counterpart" if fixed[key] is None else f"only {fixed[key]!r} has a counterpart"
                found.append(f"{name}.{key} = {value!r}: {only}")
        elif key not in allowed and not key.startswith(ignored):
            found.append(f"{name}.{key}: has no counterpart")
    return found


def _pooling_misfits(text: Config) -> list[str]:
    pool, end = text.get("pool_type", "argmax"), text.get("eos_id", 2)
    if pool not in ("argmax", "eos"):
        return [f"text_cfg.pool_type = {pool!r}: only 'argmax' and 'eos', reading at the end token, have a counterpart"]
    if pool == "eos" and end == LEGACY_END_TOKEN:
        return [f"text_cfg.eos_id = {end}: means the highest id there, which the end token is not"]
    return []


def clip_config(model_cfg: Config, log_scale: float) -> dict[str, Any]:
    """The config.json of the ``CLIPModel`` that computes the same.

    Args:
        model_cfg: without ``misfits``.
        log_scale: the logarithm of the logit scale.
    """
    text = model_cfg["text_cfg"]
    if text.get("pool_type", "argmax") == "eos":
        end = text["eos_id"]
    else:  # CLIP's byte pairs end in their highest id; of another vocabulary only its own rule is known
        own = text.get("hf_tokenizer_name") or text.get("vocab_size", 49408) <= END_TOKEN
        end = LEGACY_END_TOKEN if own else END_TOKEN
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "torch_dtype": "float32",
        "projection_dim": model_cfg["embed_dim"],
        "logit_scale_init_value": log_scale,
        "initializer_factor": 1.0,
        "vision_config": _vision_config(model_cfg),
        "text_config": {
            "model_type": "clip_text_model",
            **_layers(model_cfg, text, 1),
            "num_attention_heads": text.get("heads", 8),
            "vocab_size": text.get("vocab_size", 49408),
            "max_position_embeddings": text.get("context_length", 77),
            "projection_dim": model_cfg["embed_dim"],
            "bos_token_id": START_TOKEN,
            "eos_token_id": end,
            "pad_token_id": END_TOKEN if end == END_TOKEN else text.get("pad_id", 0),
        },
    }


def dual_encoder_config(model_cfg: Config, text_config: Config, log_scale: float) -> dict[str, Any]:
    """The config.json of the ``VisionTextDualEncoderModel`` that computes the same.

    Args:
        model_cfg: without ``misfits``.
        text_config: the text tower's own configuration, as its config.json has it.
        log_scale: the logarithm of the logit scale.
    """
    return {
        "architectures": ["VisionTextDualEncoderModel"],
        "model_type": "vision-text-dual-encoder",
        "torch_dtype": "float32",
        "projection_dim": model_cfg["embed_dim"],
        "logit_scale_init_value": log_scale,
        "vision_config": _vision_config(model_cfg),
        "text_config": dict(text_config),
    }


def _vision_config(model_cfg: Config) -> dict[str, Any]:
    image = model_cfg["vision_cfg"]
    layers = _layers(model_cfg, image, 0)
    return {
        "model_type": "clip_vision_model",
        **layers,
        "num_attention_heads": layers["hidden_size"] // image.get("head_width", 64),
        "image_size": side(image.get("image_size", 224)),
        "patch_size": side(image.get("patch_size", 16)),
        "num_channels": 3,
        "projection_dim": model_cfg["embed_dim"],
    }


def _layers(model_cfg: Config, part: Config, place: int) -> dict[str, Any]:
    width, layers, ratio = (part.get(key, defaults[place]) for key, defaults in _DEFAULTS.items())
    return {
        "hidden_size": width,
        "intermediate_size": int(width * ratio),
        "num_hidden_layers": layers,
        "hidden_act": _activation(model_cfg, part),
        "layer_norm_eps": (part.get("norm_kwargs") or {}).get("eps", DEFAULT_EPS),
        "attention_dropout": 0.0,
    }


def _activation(model_cfg: Config, part: Config) -> str | None:
    options = part.get("act_kwargs")
    if model_cfg.get("quick_gelu"):
        return None if options else "quick_gelu"
    known: dict[str, str] = {"none": "gelu", "tanh": "gelu_pytorch_tanh"}
    if options and options.keys() != {"approximate"}:
        return None
    return known.get((options or {}).get("approximate", "none"))


def open_clip_config(config: Config) -> dict[str, Any]:
    """The open_clip architecture of a ``CLIPModel`` from its config.json.

    Raises:
        ConfigError: another kind of model, or one that open_clip has no part for; what does not fit is named.
    """
    if config.get("model_type") != "clip":
        raise ConfigError(f"model_type = {config.get('model_type')!r}: only 'clip' (CLIPModel) has a counterpart in open_clip")
    image = _VISION_DEFAULTS | dict(config.get("vision_config") or {})
    text = _TEXT_DEFAULTS | dict(config.get("text_config") or {})
    wrong = [
        f"{name}.{key} = {part[key]!r}: expected a whole number of at least 1"
        for name, part, keys in (
            ("vision_config", image, (*_LAYER_KEYS, "image_size", "patch_size")),
            ("text_config", text, (*_LAYER_KEYS, "vocab_size", "max_position_embeddings")),
        )
        for key in keys
        if type(part[key]) is not int or part[key] < 1
    ]
    if wrong:
        raise ConfigError("; ".join(wrong))
    acts = {image["hidden_act"], text["hidden_act"]}
    if not acts <= set(_ACT_KWARGS) or ("quick_gelu" in acts and len(acts) > 1):
        raise ConfigError(f"hidden_act = {sorted(acts)}: open_clip has quick_gelu in both towers, or gelu, gelu_pytorch_tanh")
    if image["hidden_size"] % image["num_attention_heads"] or text["hidden_size"] % text["num_attention_heads"]:
        raise ConfigError("hidden_size: must be a multiple of num_attention_heads")
    end = text["eos_token_id"]
    if type(end) is not int:
        raise ConfigError(f"text_config.eos_token_id = {end!r}: expected one token")
    return {
        "embed_dim": config.get("projection_dim", 512),
        "quick_gelu": acts == {"quick_gelu"},
        "vision_cfg": {
            "image_size": image["image_size"],
            "patch_size": image["patch_size"],
            "head_width": image["hidden_size"] // image["num_attention_heads"],
            **_open_clip_layers(image),
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "heads": text["num_attention_heads"],
            **({} if end == LEGACY_END_TOKEN else {"pool_type": "eos", "eos_id": end}),
            **_open_clip_layers(text),
        },
    }


_LAYER_KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_ACT_KWARGS: dict[str, dict[str, str] | None] = {
    "quick_gelu": None,
    "gelu": None,
    "gelu_pytorch_tanh": {"approximate": "tanh"},
}
_SHARED_DEFAULTS = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": DEFAULT_EPS}
_VISION_DEFAULTS: dict[str, Any] = _SHARED_DEFAULTS | {
    "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "image_size": 224, "patch_size": 32,
}  # fmt: skip
"""What a config.json may leave out, since it says only what differs from Hugging Face's defaults."""
_TEXT_DEFAULTS: dict[str, Any] = _SHARED_DEFAULTS | {
    "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "vocab_size": 49408, "max_position_embeddings": 77,
    "eos_token_id": END_TOKEN,
}  # fmt: skip


def _open_clip_layers(part: Config) -> dict[str, Any]:
    width, hidden = part["hidden_size"], part["intermediate_size"]
    ratio = hidden / width
    if int(width * ratio) != hidden:  # open_clip rounds down
        ratio = (hidden + 0.5) / width
    found = {"width": width, "layers": part["num_hidden_layers"], "mlp_ratio": ratio}
    if _ACT_KWARGS[part["hidden_act"]] is not None:
        found["act_kwargs"] = _ACT_KWARGS[part["hidden_act"]]
    if part["layer_norm_eps"] != DEFAULT_EPS:
        found["norm_kwargs"] = {"eps": part["layer_norm_eps"]}
    return found


def _is_square(size: Any) -> bool:
    return not isinstance(size, (list, tuple)) or len(set(size)) == 1


def side(size: Any) -> int:
    """Height and width of a square size, which open_clip writes as a number or as two."""
    return int(size[0] if isinstance(size, (list, tuple)) else size)
