"""From a folder on disk to the model to evaluate.

    target = load(Path("runs/emoji"), device)                              # a run: its newest checkpoint
    target = load(Path("runs/emoji/checkpoints/step-00000300"), device)    # that checkpoint
    target = load(Path("exports/emoji"), device)                           # an open_clip folder, ours or another's
    target.subject, target.sets, target.results                            # model, default sets, default results file

An export is evaluated through the same towers as a checkpoint, so both give the same numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline import checkpoint
from pipeline.config import ModelConfig, ObjectiveConfig
from pipeline.data import tokenizer
from pipeline.errors import CheckpointError
from pipeline.eval.embed import Subject
from pipeline.export import CONFIG_FILE, REPORT_FILE, WEIGHTS_FILE
from pipeline.models import clip
from pipeline.models.towers import architecture
from pipeline.trained import load_trained, locate


@dataclass(frozen=True)
class Target:
    """What ``unisphere eval`` was pointed at."""

    subject: Subject
    sets: tuple[str, ...]
    """Evaluation sets named by the run's configuration; empty for an export."""
    results: Path
    """Where results are appended unless another file is asked for."""


def load(path: Path, device: torch.device, *, averaged: bool = False) -> Target:
    """Read the weights into a model on ``device``, in fp32 and evaluation mode.

    ``averaged``: the moving average of a run's weights (``engine.ema_decay``) instead of its weights.

    Raises:
        CheckpointError: the folder is missing, is none of the three kinds, or has no complete checkpoint.
        ConfigError: its configuration does not fit its weights.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder; give a run (runs/NAME), a checkpoint, or an export folder")
    if (path / CONFIG_FILE).is_file():
        return _from_export(path, device)
    cfg, folder, model, _ = load_trained(path, averaged=averaged)
    state = checkpoint.read_state(folder)
    provenance = {"run": cfg.name, "step": state.step, "weights_sha256": state.weights_sha256}
    if averaged:
        provenance["weights"] = "averaged"
    tokens = tokenizer.build(architecture(cfg.model))
    subject = Subject(
        model.to(device), tokens, cfg.model.image_mean, cfg.model.image_std, provenance, model.logit_scale().item()
    )
    return Target(subject, cfg.eval.sets, locate(path)[0] / "eval.jsonl")


def _from_export(folder: Path, device: torch.device) -> Target:
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        preprocess: dict[str, Any] = config.get("preprocess_cfg", {})
        model_cfg = ModelConfig(inline=config["model_cfg"], init_weights=str(folder / WEIGHTS_FILE))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE} cannot be used: {type(error).__name__}: {error}") from error
    for key, ours in (("interpolation", "bicubic"), ("resize_mode", "shortest")):
        if preprocess.get(key, ours) != ours:
            raise CheckpointError(f"{folder / CONFIG_FILE}: {key} = {preprocess[key]!r}; only {ours!r} is supported")
    report = folder / REPORT_FILE
    known: dict[str, Any] = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    model = clip.build(model_cfg, ObjectiveConfig()).to(device).eval()
    subject = Subject(
        model,
        tokenizer.build(_local_tokenizer(architecture(model_cfg), folder)),
        tuple(preprocess.get("mean", model_cfg.image_mean)),
        tuple(preprocess.get("std", model_cfg.image_std)),
        {
            "run": known.get("run", folder.name),
            "step": known.get("step"),
            "weights_sha256": checkpoint.file_sha256(folder / WEIGHTS_FILE),
        },
        model.logit_scale().item(),
    )
    return Target(subject, (), folder / "eval.jsonl")


def _local_tokenizer(model_cfg: dict[str, Any], folder: Path) -> dict[str, Any]:
    """open_clip reads a Hugging Face tokenizer from the export folder itself; so does this."""
    if model_cfg["text_cfg"].get("hf_tokenizer_name") and (folder / "tokenizer_config.json").is_file():
        model_cfg["text_cfg"]["hf_tokenizer_name"] = str(folder)
    return model_cfg
