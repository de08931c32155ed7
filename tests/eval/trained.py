"""Run folders as training leaves them, without training: random weights, saved by the project's own checkpoint code."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import checkpoint
from pipeline.checkpoint import TrainState
from pipeline.config import RunConfig, dump, from_tree
from pipeline.dist import World
from pipeline.models import clip
from pipeline.pieces import Reader, Snapshot, whole
from tests.eval.helpers import SIZE

TINY: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIZE, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    "custom_text": True,
}


def variant(custom_text: bool = True, **text_cfg: Any) -> dict[str, Any]:
    """``TINY`` with another class of open_clip's, or other text settings."""
    inline = copy.deepcopy(TINY) | {"custom_text": custom_text}
    inline["text_cfg"] |= text_cfg
    return inline


class Weights:
    """Stands where the engine does when a checkpoint is written."""

    on_disk = False

    def __init__(self, tensors: dict[str, Tensor], averaged: dict[str, Tensor] | None = None) -> None:
        self.tensors, self.averaged = tensors, averaged or {}

    def snapshot(self) -> Snapshot:
        found = whole(self.tensors)
        found.pieces.extend(dataclasses.replace(piece, kind="ema") for piece in whole(self.averaged).pieces)
        return found

    def restore(self, reader: Reader) -> None:
        raise AssertionError("evaluation restores no engine")


def write_run(
    runs_dir: Path,
    model: dict[str, Any],
    *,
    name: str = "tiny",
    sets: tuple[str, ...] = (),
    extra: dict[str, Tensor] | None = None,
    terms: str = "clip",
    averaged: bool = False,
) -> tuple[RunConfig, clip.ClipModel]:
    """A run folder with one checkpoint at step 40; returns its configuration and the model that was saved.

    Args:
        runs_dir: where the run's folder is made.
        model: the ``model`` group of the configuration.
        name: the run's name.
        sets: its evaluation sets.
        extra: tensors that replace or join those of the model in the checkpoint.
        terms: the one term of its loss.
        averaged: also save averaged weights, which are the saved ones times -1.
    """
    tree = {
        "name": name,
        "runs_dir": str(runs_dir),
        "data": {"train": "shards/train"},
        "model": model,
        "train": {"steps": 40, "global_batch_size": 32},
        "optim": {"warmup_steps": 0},
        "eval": {"sets": list(sets)},
        "objective": {"terms": {terms: {}}},
    }
    cfg = from_tree(tree)
    torch.manual_seed(0)
    trained = clip.build(cfg.model, cfg.objective, num_view_params=5).eval()
    cfg.run_dir.mkdir(parents=True)
    (cfg.run_dir / "config.yaml").write_text(dump(cfg))
    weights = {key: tensor.clone() for key, tensor in trained.state_dict().items()} | (extra or {})
    state = TrainState(step=40, samples=1280, settings={})
    average = {key: -tensor for key, tensor in weights.items()} if averaged else None
    checkpoint.save(cfg.run_dir, Weights(weights, average), state, world=World(), keep_last=3)
    return cfg, trained
