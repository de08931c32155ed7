"""open_clip's part of an export: weights in its names, its configuration, and the check that it computes the same features.

The folder is at once what ``local-dir:`` reads and, uploaded as it is, what ``hf-hub:`` reads. It can be moved: a Hugging Face
tokenizer's files lie in it, and so does what describes a Hugging Face text tower (``models/text_tower_files.py``).
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import RunConfig
from pipeline.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.clip import ClipModel

PICKLE_FILE = "open_clip_model.pt"
TOLERANCE = 1e-5
"""Largest difference of a feature (unit rows, fp32) between the trained model and the exported one."""
TEXTS = ["a photo of a dog", "red", "", "two birds above the sea"]


def finished(plain: Mapping[str, Tensor], model: ClipModel) -> tuple[dict[str, Tensor], bool]:
    """The plain model's weights in fp32 by our names, and whether the logit scale had to be brought within its bounds.

    Training bounds the scale where it is used and lets the parameter wander; others use the parameter as it is.

    Raises:
        ExportError: a tensor is not finite, or the model has no text tower.
    """
    import torch

    if model.second_image_tower:
        raise ExportError("the model has two image towers (model.second_tower); open_clip has no such model")
    state = {name: tensor.detach().float().contiguous() for name, tensor in plain.items()}
    bad = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise ExportError(
            f"{len(bad)} tensors hold values that are not finite, the first is {bad[0]}; export an earlier checkpoint"
        )
    log_scale = state["logit_scale.log_scale"]
    bounded = log_scale.clamp(0.0, model.logit_scale.high)
    state["logit_scale.log_scale"] = bounded
    return state, not torch.equal(log_scale, bounded)


def write(
    folder: Path,
    cfg: RunConfig,
    architecture: Mapping[str, Any],
    state: dict[str, Tensor],
    model: ClipModel,
    report: dict[str, Any],
) -> dict[str, Any]:
    """Write weights, configuration and tokenizer; returns the model configuration, with names of this machine.

    Args:
        folder: exists already.
        cfg: the run's.
        architecture: of the plain model.
        state: its tensors, from ``finished``.
        model: the trained one.
        report: gets ``weights_sha256`` and ``text_tower``; says ``architecture_file`` and ``hub``.
    """
    import torch
    from safetensors.torch import save_file

    from pipeline import checkpoint
    from pipeline.data import tokenizer
    from pipeline.models import text_tower_files
    from pipeline.models.folders import CONFIG_FILE, WEIGHTS_FILE
    from pipeline.models.names import to_open_clip

    model_cfg: dict[str, Any] = copy.deepcopy(dict(architecture))
    if _is_custom(model_cfg):
        model_cfg["custom_text"] = True
    weights = to_open_clip(state, fused=not _is_custom(model_cfg))
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    torch.save(weights, folder / PICKLE_FILE)
    report["weights_sha256"] = checkpoint.file_sha256(folder / WEIGHTS_FILE)
    packed, report["text_tower"] = text_tower_files.pack(model_cfg, folder)
    named = packed["text_cfg"].get("hf_tokenizer_name")
    if named:  # from a folder open_clip takes its files there, whatever the name; from a hub it goes by the name
        tokenizer.build(model_cfg).save_pretrained(str(folder))  # type: ignore[attr-defined]
        packed["text_cfg"]["hf_tokenizer_name"] = report["hub"] or ("." if Path(named).is_dir() else named)
    preprocess = {
        "mean": list(cfg.model.image_mean),
        "std": list(cfg.model.image_std),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    config = {"model_cfg": packed, "preprocess_cfg": preprocess}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if report["architecture_file"]:
        (folder / report["architecture_file"]).write_text(json.dumps(packed, indent=2) + "\n", encoding="utf-8")
    return model_cfg


def check_features(folder: Path, trained: ClipModel) -> tuple[Any, float]:
    """open_clip's model of ``folder``, and the largest difference of its features from the trained model's, on fixed inputs.

    Raises:
        ExportError: open_clip cannot load it, or computes something else.
    """
    import open_clip
    import torch

    image_BCHW, place = sample_images(trained), f"local-dir:{folder.resolve()}"
    try:
        tokens_BL = open_clip.get_tokenizer(place)(TEXTS)
        with contextlib.chdir(folder):  # a packed text tower is named relative to it
            model = open_clip.create_model(place, require_pretrained=True).eval()
        with torch.no_grad():
            pairs = [
                (model.encode_image(image_BCHW, normalize=True), trained.encode_image(image_BCHW)),
                (model.encode_text(tokens_BL, normalize=True), trained.encode_text(tokens_BL)),
            ]
            difference = max(float((theirs - ours).abs().max()) for theirs, ours in pairs)
            scale = float((model.logit_scale.exp() / trained.logit_scale() - 1).abs())
    except (RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
        raise ExportError(f"open_clip cannot load the export: {type(error).__name__}: {error}") from error
    if not (difference <= TOLERANCE and scale <= TOLERANCE):
        raise ExportError(
            f"open_clip computes other features from the export: off by {difference:.2e} (logit scale by a factor "
            f"{scale:.2e}), allowed is {TOLERANCE:.0e}; the architecture uses something that open_clip's "
            f"{type(model).__name__} does not have; set custom_text: true in the model's configuration"
        )
    return model, difference


def sample_images(model: ClipModel, count: int = 4) -> Tensor:
    """The same random pixels [count, 3, H, W] at every check."""
    import torch

    size = model.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def _is_custom(model_cfg: dict[str, Any]) -> bool:
    """Whether open_clip builds its two-module class for this. Its fused class has no place for a text class token."""
    text_cfg = model_cfg["text_cfg"]
    keys = (text_cfg.get("hf_model_name"), text_cfg.get("embed_cls"), model_cfg.get("multimodal_cfg"))
    return bool(model_cfg.get("custom_text") or any(keys))
