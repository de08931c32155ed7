"""A trained run -> a folder that open_clip loads without this project: ``unisphere export RUN_OR_CHECKPOINT OUT``.

    unisphere export runs/tuned OUT --mix start.safetensors=0.5     # half of the weights from elsewhere (WiSE-FT, soups)

    OUT/
      open_clip_config.json        model_cfg and preprocess_cfg, as ``local-dir:`` wants them
      open_clip_model.safetensors  weights in open_clip's names, fp32
      open_clip_model.pt           the same as a plain state dict (``torch.load(..., weights_only=True)``)
      NAME.json                    inline architectures only: model_cfg for ``open_clip.add_model_config``
      export.json                  provenance: run, step, digests, what was folded and dropped, how far the features are off
      complete/                    with heads only: config.yaml, model.safetensors, state.json, for this project
      README.md                    a model card with the lines that load it

    model, _, preprocess = open_clip.create_model_and_transforms("local-dir:OUT")
    tokenizer = open_clip.get_tokenizer("local-dir:OUT")

Heads fold into the towers where open_clip has the parts for it (``models/fold.py``); the rest is listed as dropped, and
``complete/`` keeps everything: ``unisphere eval OUT/complete``, ``load_trained(OUT/complete)``.

The export is checked before it appears under its name: open_clip loads it, and its features must equal the trained
model's. It is written beside OUT first and renamed at the end, so OUT is either absent or complete.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import RunConfig
from pipeline.config.data import data_sources
from pipeline.errors import ConfigError, ExportError, PipelineError
from pipeline.trained import CONFIG, load_trained

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.checkpoint import TrainState
    from pipeline.models.clip import ClipModel

CONFIG_FILE, WEIGHTS_FILE, PICKLE_FILE = "open_clip_config.json", "open_clip_model.safetensors", "open_clip_model.pt"
REPORT_FILE, COMPLETE = "export.json", "complete"
TOLERANCE = 1e-5
"""Largest difference of a feature (unit rows, fp32) between the trained model and the exported one."""


def export(
    run_or_checkpoint: Path, out: Path, mix: Sequence[tuple[Path, float]] = (), *, averaged: bool = False
) -> dict[str, Any]:
    """Write the export folder ``out`` and return what ``export.json`` holds.

    Args:
        run_or_checkpoint: a run folder (its newest checkpoint) or one of its checkpoint folders.
        out: new or empty folder, or an earlier export, which is replaced.
        mix: further weights and their shares of the exported ones; see ``load_trained``.
        averaged: export the moving average of the weights.

    Raises:
        CheckpointError: there is nothing to export, or it does not fit its configuration.
        ConfigError: weights of ``mix`` do not fit.
        ExportError: ``out`` holds something else, weights are not finite, the model is none of open_clip's, or open_clip
            computes other features from the export.
    """
    from pipeline import checkpoint
    from pipeline.models.fold import fold
    from pipeline.models.towers import architecture

    _check_free(out)
    cfg, folder, model, unused = load_trained(run_or_checkpoint, mix, averaged=averaged)
    if model.second_image_tower:
        raise ExportError(f"{cfg.name} has two image towers (model.second_tower); open_clip has no such model")
    state = checkpoint.read_state(folder)
    built = architecture(dataclasses.replace(cfg.model, patch_dropout=None))
    plain = fold(model, built)
    # A model that folding made deeper, or that has another width, is no longer the architecture that its run names.
    name = cfg.model.architecture if plain.config == built and cfg.model.embed_dim is None else None
    model_cfg, dropped = plain.config, sorted([*unused, *plain.dropped])
    if _is_custom(model_cfg):
        model_cfg["custom_text"] = True
    weights, clamped = _open_clip_weights(plain.state, model, fused=not _is_custom(model_cfg))
    report: dict[str, Any] = {
        "run": cfg.name,
        "step": state.step,
        "checkpoint": folder.name,
        "checkpoint_sha256": checkpoint.file_sha256(folder / (checkpoint.AVERAGED if averaged else checkpoint.WEIGHTS)),
        "architecture": name or _free_name(cfg.name),
        "architecture_file": None if name else f"{_free_name(cfg.name)}.json",
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "averaged": averaged,
        "mixed_with": {str(path): share for path, share in mix},
        "folded": plain.folded,
        "dropped_tensors": dropped,
        "complete": COMPLETE if model.heads is not None else None,
        "logit_scale": round(model.logit_scale().detach().item(), 6),
        "logit_scale_was_out_of_bounds": clamped,
    }
    with _appearing(out) as partial:
        _write_model(partial, cfg, model_cfg, weights, report)
        report["max_feature_difference"] = _check_features(partial, model)
        if report["complete"]:
            _write_complete(partial / COMPLETE, cfg, model, state)
        (partial / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(_card(cfg, report), encoding="utf-8")
    return report


@contextlib.contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A new folder beside ``out`` that takes its place if nothing fails, and is gone otherwise."""
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if out.exists():  # dying between these two lines leaves the complete export under its partial name
            shutil.rmtree(out)
        os.rename(partial, out)
    except OSError as error:
        raise ExportError(f"cannot write the export to {out}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_free(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file; give a folder to export to")
    if out.is_dir() and any(out.iterdir()) and not (out / REPORT_FILE).is_file():
        raise ExportError(f"{out} holds files and is not an earlier export (no {REPORT_FILE}); give a new folder")


def _is_custom(model_cfg: dict[str, Any]) -> bool:
    """Whether open_clip builds its two-module class for this. Its fused class has no place for a text class token."""
    text_cfg = model_cfg["text_cfg"]
    keys = (text_cfg.get("hf_model_name"), text_cfg.get("embed_cls"), model_cfg.get("multimodal_cfg"))
    return bool(model_cfg.get("custom_text") or any(keys))


def _free_name(run: str) -> str:
    """A name for an inline architecture that hides none of open_clip's own."""
    import open_clip

    return f"{run}-trained" if run in open_clip.list_models() else run


def _open_clip_weights(plain: dict[str, Tensor], model: ClipModel, *, fused: bool) -> tuple[dict[str, Tensor], bool]:
    """The plain model's weights in open_clip's names, and whether the logit scale had to be brought within its bounds.

    Training bounds the scale where it is used and lets the parameter wander; open_clip uses the parameter as it is.
    """
    import torch

    from pipeline.models.names import to_open_clip

    state = {name: tensor.detach().float().contiguous() for name, tensor in plain.items()}
    bad = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise ExportError(
            f"{len(bad)} tensors hold values that are not finite, the first is {bad[0]}; export an earlier checkpoint"
        )
    log_scale = state["logit_scale.log_scale"]
    bounded = log_scale.clamp(0.0, model.logit_scale.high)
    state["logit_scale.log_scale"] = bounded
    return to_open_clip(state, fused=fused), not torch.equal(log_scale, bounded)


def _write_model(
    folder: Path, cfg: RunConfig, model_cfg: dict[str, Any], weights: dict[str, Tensor], report: dict[str, Any]
) -> None:
    import torch
    from safetensors.torch import save_file

    from pipeline import checkpoint
    from pipeline.data import tokenizer

    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    torch.save(weights, folder / PICKLE_FILE)
    report["weights_sha256"] = checkpoint.file_sha256(folder / WEIGHTS_FILE)
    preprocess = {
        "mean": list(cfg.model.image_mean),
        "std": list(cfg.model.image_std),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if report["architecture_file"]:
        (folder / report["architecture_file"]).write_text(json.dumps(model_cfg, indent=2) + "\n", encoding="utf-8")
    if model_cfg["text_cfg"].get("hf_tokenizer_name"):  # open_clip looks for its files in the export folder itself
        tokenizer.build(model_cfg).save_pretrained(str(folder))  # type: ignore[attr-defined]


def _write_complete(folder: Path, cfg: RunConfig, model: ClipModel, state: TrainState) -> None:
    """The model with all its heads, as ``load_trained`` reads it; without what belongs to the run's loss."""
    from pipeline import checkpoint, config

    folder.mkdir()
    checkpoint.write_weights(folder, model.state_dict(), state)
    (folder / CONFIG).write_text(config.dump(cfg), encoding="utf-8")


def _check_features(folder: Path, trained: ClipModel) -> float:
    """Largest feature difference between open_clip's reading of ``folder`` and the trained model, on fixed inputs."""
    import open_clip
    import torch

    generator = torch.Generator().manual_seed(0)
    size = trained.image_size
    image_BCHW = torch.randn(4, 3, size, size, generator=generator)
    try:
        tokens_BL = open_clip.get_tokenizer(f"local-dir:{folder}")(["a photo of a dog", "red", "", "two birds above the sea"])
        model = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True).eval()
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
    return difference


def _card(cfg: RunConfig, report: dict[str, Any]) -> str:
    """The README: how to load, where it comes from."""
    mean, std = (tuple(round(x, 8) for x in values) for values in (cfg.model.image_mean, cfg.model.image_std))
    register = f'open_clip.add_model_config("PATH/{report["architecture_file"]}")\n' if report["architecture_file"] else ""
    dropped = ", ".join(f"`{name}`" for name in report["dropped_tensors"]) or "nothing"
    trained_on = "`, `".join(source.path for source in data_sources(cfg.data))
    return f"""---
library_name: open_clip
pipeline_tag: zero-shot-image-classification
tags:
- clip
---
# {cfg.name}

A CLIP model with {report["parameters"]:,} parameters, trained for {report["step"]} steps by the run `{cfg.name}`
on `{trained_on}` with {cfg.train.global_batch_size} pairs per step.

## Use

Put the folder's own path for PATH:

```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:PATH")
tokenizer = open_clip.get_tokenizer("local-dir:PATH")
```

or, by the name of the architecture:

```python
{register}model, _, preprocess = open_clip.create_model_and_transforms(
    "{report["architecture"]}", pretrained="PATH/{WEIGHTS_FILE}", image_mean={mean}, image_std={std}
)
```

## Provenance

| | |
|---|---|
| run, step | `{report["run"]}`, {report["step"]} (`{report["checkpoint"]}`) |
| checkpoint sha256 | `{report["checkpoint_sha256"]}` |
| weights sha256 | `{report["weights_sha256"]}` |
| dropped from the checkpoint | {dropped} |
| heads folded into the towers | {"; ".join(report["folded"]) or "none"} |
| largest feature difference to the trained model | {report["max_feature_difference"]:.1e} |
"""


def _share(text: str) -> tuple[Path, float]:
    path, _, share = text.rpartition("=")
    try:
        return Path(path), float(share)
    except ValueError:
        raise ConfigError(f"--mix {text}: expected WEIGHTS=SHARE, for example start.safetensors=0.5") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``unisphere export``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="unisphere export", description="Write a trained model as a folder that open_clip loads."
    )
    parser.add_argument("source", type=Path, help="run folder (newest checkpoint) or checkpoint folder")
    parser.add_argument("out", type=Path, help="folder to write; new, empty, or an earlier export")
    parser.add_argument(
        "--mix",
        action="append",
        default=[],
        metavar="WEIGHTS=SHARE",
        help="take this share of every weight from a run, checkpoint, or weights file, and the rest from SOURCE; repeatable",
    )
    parser.add_argument("--averaged", action="store_true", help="the moving average of the weights (engine.ema_decay)")
    args = parser.parse_args(argv)
    try:
        report = export(args.source, args.out, [_share(text) for text in args.mix], averaged=args.averaged)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(
        f"exported {report['run']} at step {report['step']} to {args.out}: {report['parameters']:,} parameters, "
        f"features within {report['max_feature_difference']:.1e}, {len(report['dropped_tensors'])} tensors dropped"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
