"""What a saved run is on disk, and how to find it again.

    runs/NAME/checkpoints/
        step-00000040/
            model.safetensors     the whole model, fp32, our names: all that evaluation and export ever read
            engine/               DeepSpeed's share of every rank: what resume needs besides
            state.json            TrainState: step, world, and the settings that a resume must not change
        latest                    the name of the newest complete checkpoint

A checkpoint is written as ``.writing-step-...`` by all ranks together, renamed when every file is on disk, and ``latest`` is
replaced last. So if we die while writing, ``latest`` still names the previous complete one; if we die between the rename and
the pointer, the new one is complete but unknown and is overwritten when the run comes by that step again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline import dist
from pipeline.config import RunConfig
from pipeline.dist import World
from pipeline.errors import CheckpointError

WEIGHTS, STATE, POINTER = "model.safetensors", "state.json", "latest"


@dataclass(frozen=True)
class TrainState:
    """Where a run is. Everything random or scheduled is a function of ``step`` and the settings, so this is all of it."""

    step: int
    """Completed optimizer steps."""
    samples: int
    """Pairs seen, over all ranks."""
    settings: dict[str, Any]
    """Settings that decide what the next step computes; see ``pinned_settings``."""
    weights_sha256: str = ""


class Shardable(Protocol):
    """What a checkpoint asks of the engine."""

    def save(self, folder: Path) -> None:
        """Write every rank's share under ``folder``; collective."""

    def load(self, folder: Path) -> None:
        """Restore what ``save`` wrote; collective."""

    def consolidated(self) -> dict[str, Tensor]:
        """The whole model by name on rank 0; collective."""


def pinned_settings(cfg: RunConfig, world: World, precision: str) -> dict[str, Any]:
    """The settings under which a resumed run continues the same sequence of losses."""
    return {
        "world size": world.size,
        "engine.zero_stage": cfg.engine.zero_stage,
        "engine.precision": precision,
        "seed": cfg.seed,
        "train.global_batch_size": cfg.train.global_batch_size,
        "data.train": cfg.data.train,
        "data.shuffle_window": cfg.data.shuffle_window,
        "train.steps": cfg.train.steps,
        "model": _digest((cfg.model.architecture, cfg.model.inline, cfg.model.patch_dropout)),
        "augment": _digest(cfg.augment),
        "objective": _digest((cfg.objective.terms, cfg.objective.learn_temperature, cfg.objective.min_temperature)),
        "optim": _digest(cfg.optim),
    }


def _digest(settings: object) -> str:
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:12]


def save(run_dir: Path, engine: Shardable, state: TrainState, *, world: World, keep_last: int) -> Path:
    """Write a complete checkpoint and point ``latest`` at it; every rank, together.

    Args:
        keep_last: older checkpoints beyond this many are deleted afterwards; 0 keeps all.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: on every rank, if rank 0 could not write; the previous checkpoint is untouched.
    """
    folder = run_dir / "checkpoints" / f"step-{state.step:08d}"
    writing = folder.with_name(f".writing-{folder.name}")
    _on_main(world, f"cannot start {writing}", lambda: _fresh(writing))
    engine.save(writing)
    weights = engine.consolidated()

    def publish() -> None:
        save_file(weights, writing / WEIGHTS)
        complete = dataclasses.replace(state, weights_sha256=file_sha256(writing / WEIGHTS))
        (writing / STATE).write_text(json.dumps(dataclasses.asdict(complete), indent=1) + "\n")
        _sync_tree(writing)
        if folder.exists():  # complete, but made before a resume from an older one: this run's is as good
            shutil.rmtree(folder)
        os.replace(writing, folder)
        _replace_text(folder.parent / POINTER, folder.name + "\n")
        _retain(folder.parent, keep_last)

    _on_main(world, f"cannot write {folder}", publish)
    return folder


def resume(cfg: RunConfig, engine: Shardable, settings: dict[str, Any]) -> TrainState | None:
    """Continue from ``cfg.resume_from``, else from the run's newest checkpoint; None where there is none: a new run.

    Rank 0 chooses, so that all ranks agree whatever their view of a shared file system is.

    Raises:
        CheckpointError: on every rank; the checkpoint is missing, incomplete, or was saved under other settings.
    """
    folder = dist.broadcast_object(Path(cfg.resume_from) if cfg.resume_from is not None else newest(cfg.run_dir))
    if folder is None:
        return None
    state = read_state(folder)
    check_same_settings(state, settings, folder)
    engine.load(folder)
    return state


def newest(run_dir: Path) -> Path | None:
    """The folder that ``latest`` names, or None if the run has not saved yet.

    Raises:
        CheckpointError: the pointer names a folder that is not there or not complete.
    """
    pointer = run_dir / "checkpoints" / POINTER
    if not pointer.exists():
        return None
    folder = pointer.parent / pointer.read_text().strip()
    read_state(folder)
    return folder


def read_state(folder: Path) -> TrainState:
    """The state of a checkpoint.

    Raises:
        CheckpointError: the folder is missing or not a complete checkpoint, saying which file is missing or damaged.
    """
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint folder {folder} does not exist")
    for name in (STATE, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is not a complete checkpoint: {name} is missing")
    try:
        return TrainState(**json.loads((folder / STATE).read_text()))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / STATE} is damaged: {error}") from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The whole model of a checkpoint, fp32 on the CPU, checked against the hash taken when it was written.

    Raises:
        CheckpointError: missing, incomplete, or changed since it was written.
    """
    state = read_state(folder)
    found = file_sha256(folder / WEIGHTS)
    if found != state.weights_sha256:
        raise CheckpointError(
            f"{folder / WEIGHTS} was damaged: sha256 is {found[:12]}…, was {state.weights_sha256[:12]}… when saved"
        )
    return load_file(folder / WEIGHTS)


def check_same_settings(saved: TrainState, settings: dict[str, Any], folder: Path) -> None:
    """Refuse to continue a run whose next loss would not be the one it was going to have.

    Raises:
        CheckpointError: naming each setting that differs, with both values.
    """
    differences = [
        f"{name}: was {saved.settings.get(name)!r}, is {value!r}"
        for name, value in settings.items()
        if saved.settings.get(name) != value
    ]
    if differences:
        raise CheckpointError(
            f"{folder} was saved under other settings:\n  "
            + "\n  ".join(differences)
            + "\nrestore them, or start another run (name=...) from its weights with model.init_weights="
            + str(folder / WEIGHTS)
        )


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _on_main(world: World, what: str, action: Any) -> None:
    """Run ``action`` on rank 0 only; if it fails there, every rank raises the same error."""
    failure: str | None = None
    if world.is_main:
        try:
            action()
        except OSError as error:
            failure = f"{what}: {error}"
    if failure := dist.broadcast_object(failure):
        raise CheckpointError(failure)


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _retain(checkpoints: Path, keep_last: int) -> None:
    complete = sorted(path for path in checkpoints.glob("step-*") if path.is_dir())
    for old in complete[:-keep_last] if keep_last else []:
        shutil.rmtree(old)


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".writing")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
