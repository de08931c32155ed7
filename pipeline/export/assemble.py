"""``export()``: what is exported and in what order; the folder appears under its name when everything in it was checked."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import RunConfig
from pipeline.errors import CheckpointError, ConfigError, ExportError
from pipeline.trained import CONFIG, load_trained, locate

if TYPE_CHECKING:
    from pipeline.models.clip import ClipModel

REPORT_FILE, COMPLETE = "export.json", "complete"


def export(
    run_or_checkpoint: Path,
    out: Path,
    mix: Sequence[tuple[Path, float]] = (),
    *,
    averaged: bool = False,
    hugging_face: bool = False,
    onnx: bool = False,
    hub: str | None = None,
) -> dict[str, Any]:
    """Write the export folder ``out`` and return what ``export.json`` holds.

    Args:
        run_or_checkpoint: a run folder (its newest checkpoint) or one of its checkpoint folders.
        out: new or empty folder, or an earlier export, which is replaced.
        mix: further weights and their shares of the exported ones; see ``load_trained``.
        averaged: export the moving average of the weights.
        hugging_face: also write it for transformers.
        onnx: also write it for onnxruntime.
        hub: the repository on a hub, OWNER/NAME, that the folder will be uploaded to.

    Raises:
        CheckpointError: there is nothing to export, or it does not fit its configuration.
        ConfigError: weights of ``mix`` do not fit, or a package is missing.
        ExportError: ``out`` holds something else, weights are not finite, or a format cannot take the model.
    """
    from pipeline.export import card, onnx_towers, open_clip_folder
    from pipeline.export import hugging_face as hf
    from pipeline.models.fold import fold
    from pipeline.models.towers import architecture

    _check_destination(out, hub)
    if onnx:
        onnx_towers.check_packages()
    cfg, folder, model, unused = load_trained(run_or_checkpoint, mix, averaged=averaged)
    built = architecture(dataclasses.replace(cfg.model, patch_dropout=None))
    plain = fold(model, built)
    if hugging_face:
        hf.check(plain.config, model)
    state, clamped = open_clip_folder.finished(plain.state, model)
    report = _provenance(cfg, folder, mix, averaged, hub) | _architecture(cfg, plain.config, built)
    report |= {
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "folded": plain.folded,
        "dropped_tensors": sorted([*unused, *plain.dropped]),
        "complete": COMPLETE if model.heads is not None else None,
        "logit_scale": round(model.logit_scale().detach().item(), 6),
        "logit_scale_was_out_of_bounds": clamped,
    }
    with _appearing(out) as partial:
        model_cfg = open_clip_folder.write(partial, cfg, plain.config, state, model, report)
        theirs, report["max_feature_difference"] = open_clip_folder.check_features(partial, model)
        report["hugging_face"] = hf.write(partial, cfg, model_cfg, state, model) if hugging_face else None
        report["onnx"] = onnx_towers.write(partial, cfg, model_cfg, theirs, model) if onnx else None
        if report["complete"]:
            _write_complete(partial / COMPLETE, cfg, model, folder)
        (partial / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        known = card.results(locate(run_or_checkpoint)[0], report)
        (partial / "README.md").write_text(card.text(cfg, report, known), encoding="utf-8")
    return report


def newest_checkpoints(run: Path, count: int) -> tuple[Path, list[tuple[Path, float]]]:
    """A run's newest checkpoint, and the others of its newest ``count`` with equal shares, as ``export`` takes them.

    Averaging the last checkpoints of one run often beats each of them (Izmailov et al. 2018, "SWA").

    Raises:
        CheckpointError: the run has fewer complete checkpoints.
        ConfigError: ``count`` is less than 1.
    """
    from pipeline.checkpoint.find import complete_steps

    if count < 1:
        raise ConfigError(f"--last {count}: must be at least 1")
    run_dir, newest = locate(run)
    found = complete_steps(newest.parent)
    chosen = [folder for _, folder in sorted(found.items(), reverse=True)[:count]]
    if len(chosen) < count:
        raise CheckpointError(
            f"--last {count}: {run_dir} has {len(chosen)} complete checkpoints; keep more with checkpoint.keep_last"
        )
    return chosen[0], [(folder, 1 / count) for folder in chosen[1:]]


def _provenance(
    cfg: RunConfig, folder: Path, mix: Sequence[tuple[Path, float]], averaged: bool, hub: str | None
) -> dict[str, Any]:
    from pipeline import checkpoint

    return {
        "run": cfg.name,
        "step": checkpoint.read_state(folder).step,
        "checkpoint": folder.name,
        "checkpoint_sha256": checkpoint.file_sha256(folder / (checkpoint.AVERAGED if averaged else checkpoint.WEIGHTS)),
        "averaged": averaged,
        "mixed_with": {str(path): share for path, share in mix},
        "hub": hub,
    }


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


def _check_destination(out: Path, hub: str | None) -> None:
    if hub is not None and (hub.count("/") != 1 or not all(hub.split("/"))):
        raise ConfigError(f"--hub {hub}: expected OWNER/NAME")
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file; give a folder to export to")
    if out.is_dir() and any(out.iterdir()) and not (out / REPORT_FILE).is_file():
        raise ExportError(f"{out} holds files and is not an earlier export (no {REPORT_FILE}); give a new folder")


def _architecture(cfg: RunConfig, plain: dict[str, Any], built: dict[str, Any]) -> dict[str, Any]:
    """The architecture's name, and the file that says what it is where open_clip has none of that name.

    A model that folding made deeper, or that has another width, is no longer the architecture that its run names.
    """
    import open_clip

    if cfg.model.architecture is not None and plain == built and cfg.model.embed_dim is None:
        return {"architecture": cfg.model.architecture, "architecture_file": None}
    name = f"{cfg.name}-trained" if cfg.name in open_clip.list_models() else cfg.name  # hides none of open_clip's own
    return {"architecture": name, "architecture_file": f"{name}.json"}


def _write_complete(folder: Path, cfg: RunConfig, model: ClipModel, source: Path) -> None:
    """The model with all its heads, as ``load_trained`` reads it; without what belongs to the run's loss."""
    from pipeline import checkpoint, config
    from pipeline.models import text_tower_files

    folder.mkdir()
    checkpoint.write_weights(folder, model.state_dict(), checkpoint.read_state(source))
    if cfg.model.inline is not None:
        inline, _ = text_tower_files.pack(cfg.model.inline, folder)
        cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, inline=inline))
    (folder / CONFIG).write_text(config.dump(cfg), encoding="utf-8")
