"""Hugging Face's part of an export: ``CLIPModel``, or ``VisionTextDualEncoderModel`` for one of its own text towers.

    OUT/config.json  model.safetensors  preprocessor_config.json  tokenizer files

    model = transformers.AutoModel.from_pretrained("OUT")
    processor = transformers.AutoProcessor.from_pretrained("OUT")

Which architectures have a counterpart is decided by ``models/hf_config.py`` before anything is written. Writing needs no
transformers; where it is installed, it loads the result, and its features must equal the trained model's.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import RunConfig
from pipeline.errors import ExportError
from pipeline.export import tokenizer_files
from pipeline.export.open_clip_folder import TEXTS, TOLERANCE, sample_images

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.clip import ClipModel

_BICUBIC = 3


def check(model_cfg: Mapping[str, Any], model: ClipModel) -> None:
    """Refuse a model that transformers has no counterpart for.

    Raises:
        ExportError: with every part that does not fit.
    """
    from pipeline.models.hf_config import has_hf_text, misfits

    found = misfits(model_cfg)
    if has_hf_text(model_cfg) and not found:
        text = model.text
        if getattr(text.config, "is_encoder_decoder", False) or getattr(text.transformer, "pooler", None) is None:
            found.append(f"text_cfg.hf_model_name: a {text.config.model_type} text tower has no pooler of its own")
    if found:
        listed = "".join(f"\n  {line}" for line in found)
        raise ExportError(
            f"--hf: {_class(model_cfg)} cannot compute what this model does:{listed}\nleave --hf out; open_clip takes it"
        )


def write(
    folder: Path, cfg: RunConfig, model_cfg: Mapping[str, Any], state: Mapping[str, Tensor], model: ClipModel
) -> dict[str, Any]:
    """Write the files, check them where transformers is installed; returns what the report says about it.

    Args:
        folder: holds open_clip's part already.
        cfg: the run's.
        model_cfg: an architecture that ``check`` let pass.
        state: the plain model's tensors by our names.
        model: the trained one.

    Raises:
        ExportError: transformers computes other features.
    """
    from safetensors.torch import save_file

    from pipeline.models import hf_config, hf_names
    from pipeline.models.folders import HF_CONFIG_FILE, HF_PREPROCESS_FILE, HF_WEIGHTS_FILE

    dual = hf_config.has_hf_text(model_cfg)
    log_scale = float(state["logit_scale.log_scale"])
    if dual:
        config = hf_config.dual_encoder_config(model_cfg, model.text.config.to_dict(), log_scale)
    else:
        config = hf_config.clip_config(model_cfg, log_scale)
        if not model_cfg["text_cfg"].get("hf_tokenizer_name"):
            tokenizer_files.write(folder, model.context_length)
    (folder / HF_CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    preprocess = _preprocessing(cfg, model.image_size, dual=dual)
    (folder / HF_PREPROCESS_FILE).write_text(json.dumps(preprocess, indent=2) + "\n", encoding="utf-8")
    tensors = hf_names.to_hugging_face(state, model_cfg["embed_dim"])
    save_file(tensors, folder / HF_WEIGHTS_FILE, metadata={"format": "pt"})
    installed = importlib.util.find_spec("transformers") is not None
    return {
        "summary": _class(model_cfg),
        "max_feature_difference": _check_features(folder, model, model_cfg) if installed else None,
    }


def _class(model_cfg: Mapping[str, Any]) -> str:
    from pipeline.models.hf_config import has_hf_text

    return "VisionTextDualEncoderModel" if has_hf_text(model_cfg) else "CLIPModel"


def _preprocessing(cfg: RunConfig, image_size: int, *, dual: bool) -> dict[str, Any]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "VisionTextDualEncoderProcessor" if dual else "CLIPProcessor",
        "do_resize": True,
        "size": {"shortest_edge": image_size},
        "resample": _BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(cfg.model.image_mean),
        "image_std": list(cfg.model.image_std),
    }


def _check_features(folder: Path, trained: ClipModel, model_cfg: Mapping[str, Any]) -> float:
    import torch
    import transformers

    from pipeline.data import tokenizer
    from pipeline.models.folders import read

    tokens_BL = tokenizer.build(read(folder).architecture)(TEXTS)
    image_BCHW = sample_images(trained)
    inputs: dict[str, Any] = {"input_ids": tokens_BL, "pixel_values": image_BCHW}
    if _class(model_cfg) == "VisionTextDualEncoderModel":
        inputs["attention_mask"] = (tokens_BL != trained.text.config.pad_token_id).long()
    try:
        model = getattr(transformers, _class(model_cfg)).from_pretrained(folder, local_files_only=True).eval()
        with torch.no_grad():
            found, ours = model(**inputs), (trained.encode_image(image_BCHW), trained.encode_text(tokens_BL))
            scale = float((model.logit_scale.exp() / trained.logit_scale() - 1).abs())
    except (RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
        raise ExportError(f"transformers cannot load the export: {type(error).__name__}: {error}") from error
    pairs = zip((found.image_embeds, found.text_embeds), ours, strict=True)
    difference = max(float((theirs - our).abs().max()) for theirs, our in pairs)
    if not (difference <= TOLERANCE and scale <= TOLERANCE):
        raise ExportError(
            f"transformers computes other features from the export: off by {difference:.2e} (logit scale by a factor "
            f"{scale:.2e}), allowed is {TOLERANCE:.0e}; leave --hf out, and report the architecture"
        )
    return difference
