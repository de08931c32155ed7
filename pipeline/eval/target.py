"""From a folder on disk to the model to evaluate.

    target = load(Path("runs/emoji"), device)                              # a run: its newest checkpoint
    target = load(Path("runs/emoji/checkpoints/step-00000300"), device)    # that checkpoint
    target = load(Path("exports/emoji"), device)                           # an export, ours or another's: open_clip's layout,
                                                                           # or a CLIPModel of Hugging Face
    target.subject, target.asked.sets, target.results                      # model, default sets, default results file

An export is evaluated through the same towers as a checkpoint, so both give the same numbers.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline import checkpoint
from pipeline.config import DataConfig, EvalConfig, ModelConfig, ObjectiveConfig
from pipeline.data import tokenizer
from pipeline.data.files import ByteSource
from pipeline.data.storage import open_storage
from pipeline.errors import CheckpointError
from pipeline.eval.embed import Subject
from pipeline.export import REPORT_FILE
from pipeline.models import clip, folders
from pipeline.models.towers import architecture
from pipeline.trained import load_trained, locate


@dataclass(frozen=True)
class Target:
    """What ``unisphere eval`` was pointed at."""

    subject: Subject
    asked: EvalConfig
    """What the run's configuration asks of an evaluation; of an export it names no sets."""
    results: Path
    """Where results are appended unless another file is asked for."""
    source: ByteSource
    """What sets are read through: with the run's options for remote places."""


def load(path: Path, device: torch.device, *, averaged: bool = False) -> Target:
    """Read the weights into a model on ``device``, in fp32 and evaluation mode.

    ``averaged``: the moving average of a run's weights (``engine.ema_decay``) instead of its weights.

    Raises:
        CheckpointError: the folder is missing, is none of the three kinds, or has no complete checkpoint.
        ConfigError: its configuration does not fit its weights.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder; give a run (runs/NAME), a checkpoint, or an export folder")
    if folders.is_model_folder(path):
        return _from_folder(path, device)
    cfg, folder, model, _ = load_trained(path, averaged=averaged)
    state = checkpoint.read_state(folder)
    provenance = {"run": cfg.name, "step": state.step, "weights_sha256": state.weights_sha256}
    if averaged:
        provenance["weights"] = "averaged"
    tokens = tokenizer.build(architecture(cfg.model))
    subject = Subject(
        model.to(device), tokens, cfg.model.image_mean, cfg.model.image_std, provenance, model.logit_scale().item()
    )
    return Target(subject, cfg.eval, locate(path)[0] / "eval.jsonl", open_storage(cfg.data))


def _from_folder(path: Path, device: torch.device) -> Target:
    """Of an export, ours or another's: open_clip's layout, or a Hugging Face ``CLIPModel``."""
    found = folders.read(path)
    report = path / REPORT_FILE
    known: dict[str, Any] = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    model_cfg = ModelConfig(inline=found.architecture, init_weights=str(path))
    model = clip.build(model_cfg, ObjectiveConfig()).to(device).eval()
    hashes = [checkpoint.file_sha256(file) for file in found.weights]
    whole = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    provenance = {"run": known.get("run", path.name), "step": known.get("step"), "weights_sha256": whole}
    tokens = tokenizer.build(architecture(model_cfg))
    subject = Subject(model, tokens, found.mean, found.std, provenance, model.logit_scale().item())
    return Target(subject, EvalConfig(), path / "eval.jsonl", open_storage(DataConfig()))
