"""From a folder to the trained model in it: a run, a checkpoint, or a complete export.

cfg, folder, model, unused = load_trained(Path("runs/emoji"))           # its newest checkpoint
cfg, folder, model, unused = load_trained(Path("exports/emoji/complete"))
load_trained(Path("runs/tuned"), mix=[(Path("start.safetensors"), 0.5)])   # half of the weights from elsewhere (WiSE-FT)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import RunConfig
from pipeline.config import load as load_config
from pipeline.config.model import TowerConfig
from pipeline.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.clip import ClipModel

CONFIG = "config.yaml"
UNICLIP_SCALE = "scalars.uniclip_log_tau_IT.value"
"""Logarithm of the temperature between images and texts in a run without CLIP's own loss."""
AUGMENTATION_INPUT = "heads.augmentation.layers.0.weight"


def locate(path: Path) -> tuple[Path, Path]:
    """The run folder and checkpoint folder that ``path`` means: a run (its newest checkpoint), or one checkpoint of it.

    A complete export is both at once.

    Raises:
        CheckpointError: ``path`` is missing, is neither, or is a run without a complete checkpoint.
    """
    from pipeline import checkpoint

    if not path.is_dir():
        raise CheckpointError(
            f"{path} is not a folder; give a run (runs/NAME) or a checkpoint (runs/NAME/checkpoints/step-...)"
        )
    has_state = (path / checkpoint.STATE).is_file()
    if (path / CONFIG).is_file():
        folder = path if has_state else checkpoint.newest(path)
        if folder is None:
            raise CheckpointError(f"run {path} has no complete checkpoint yet")
        return path, folder
    run_dir = path.resolve().parent.parent
    if has_state and (run_dir / CONFIG).is_file():
        return run_dir, path
    raise CheckpointError(
        f"{path} is neither a run (no {CONFIG}) nor a checkpoint of one (no {checkpoint.STATE}, or no "
        f"{CONFIG} two folders above)"
    )


def load_trained(
    path: Path, mix: Sequence[tuple[Path, float]] = (), *, averaged: bool = False
) -> tuple[RunConfig, Path, ClipModel, list[str]]:
    """The trained model of a run or checkpoint, on the CPU in fp32 and evaluation mode, with all its heads.

    Args:
        path: see ``locate``.
        mix: further weights (runs, checkpoints, or files) and their shares of the result; the rest is the run's own.
        averaged: the moving average of the run's weights (``engine.ema_decay``) instead of the weights.

    Returns:
        The run's configuration, the checkpoint folder, the model, and the names of tensors in the checkpoint that the
        model has no place for.

    Raises:
        CheckpointError: nothing to load, or tensors of the model are missing in the checkpoint.
        ConfigError: weights of ``mix`` do not fit, or the shares are not within 0 and 1.
    """
    from pipeline import checkpoint
    from pipeline.models import clip, text_tower_files, weights

    run_dir, folder = locate(path)
    cfg = load_config(run_dir / CONFIG)
    cfg = dataclasses.replace(cfg, model=text_tower_files.unpack(cfg.model, run_dir))
    # Initial weights may be gone by now, and patch dropout and compilation belong to training.
    plain = dataclasses.replace(
        cfg.model,
        init_weights=None,
        image_tower=TowerConfig(),
        text_tower=TowerConfig(),
        patch_dropout=None,
        compile=False,
        gradient_checkpointing=False,
    )
    found = checkpoint.read_weights(folder, averaged=averaged)
    num_view_params = found[AUGMENTATION_INPUT].shape[1] if AUGMENTATION_INPUT in found else 0
    model = clip.build(plain, cfg.objective, num_view_params=num_view_params)
    wanted = model.state_dict()
    wrong = [name for name in wanted if name not in found or found[name].shape != wanted[name].shape]
    if wrong:
        raise CheckpointError(
            f"{folder} does not fit the model of {run_dir / CONFIG}: {len(wrong)} tensors are missing or of "
            f"another shape, the first is {wrong[0]}"
        )
    if mix:
        if not all(0 <= share <= 1 for _, share in mix) or sum(share for _, share in mix) > 1:
            raise ConfigError(f"--mix: shares must be within [0, 1] and sum to at most 1, got {[share for _, share in mix]}")
        ours = {theirs: name for name, theirs in model.moved_names.items()}
        others = [{ours.get(name, name): tensor for name, tensor in _weights(other).items()} for other, _ in mix]
        shares = [share for _, share in mix]
        # What a run's losses learned is no part of the model, and not blended; anything else must be in all of them.
        states = [
            {name: t for name, t in state.items() if name in wanted or (name not in found and not name.startswith("scalars."))}
            for state in others
        ]
        found |= weights.blend([{name: found[name] for name in wanted}, *states], [1 - sum(shares), *shares])
    model.load_state_dict({name: found[name] for name in wanted})
    if UNICLIP_SCALE in found and "clip" not in cfg.objective.terms:
        model.logit_scale.log_scale.data = -found[UNICLIP_SCALE].clamp(max=0.0)  # only this one was learned
    return cfg, folder, model.eval(), sorted(found.keys() - wanted.keys())


def _weights(path: Path) -> dict[str, Tensor]:
    from pipeline import checkpoint
    from pipeline.models import weights

    return checkpoint.read_weights(locate(path)[1]) if path.is_dir() else weights.read(path, "--mix")
