"""Finding checkpoints: what is complete, what is damaged, which one to continue from."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from pipeline.checkpoint.files import Entry, file_sha256
from pipeline.checkpoint.state import AVERAGED, POINTER, REPLACED, STATE, WEIGHTS, Record, TrainState
from pipeline.errors import CheckpointError

_log = logging.getLogger("unisphere")


def read_record(folder: Path) -> Record:
    """What a checkpoint says about itself; every file that it names is there and has its size.

    Raises:
        CheckpointError: the folder is missing or not a complete checkpoint, saying which file is missing or damaged.
    """
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint folder {folder} does not exist")
    for name in (STATE, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is not a complete checkpoint: {name} is missing")
    try:
        record = Record.parse((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder / STATE} is damaged: {error}") from error
    for name, entry in record.files.items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is not a complete checkpoint: {name} is missing")
        if (size := (folder / name).stat().st_size) != entry.bytes:
            raise CheckpointError(f"{folder / name} was damaged: it has {size} bytes, had {entry.bytes} when saved")
    return record


def read_state(folder: Path) -> TrainState:
    """The training state of a checkpoint; raises what ``read_record`` does."""
    return read_record(folder).state


def verify(folder: Path) -> Record:
    """Read every byte of a checkpoint and compare it with the hashes taken when it was written.

    Raises:
        CheckpointError: missing, incomplete, or changed since it was written.
    """
    record = read_record(folder)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda item: _check(folder / item[0], item[1]), record.files.items()))
    return record


def _check(path: Path, entry: Entry) -> None:
    try:
        found = file_sha256(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if found != entry.sha256:
        raise CheckpointError(f"{path} was damaged: sha256 is {found[:12]}…, was {entry.sha256[:12]}… when saved")


def read_weights(folder: Path, *, averaged: bool = False) -> dict[str, Tensor]:
    """The whole model of a checkpoint, fp32 on the CPU, checked against the hash taken when it was written.

    Args:
        averaged: the exponential moving average of the weights instead of the weights.

    Raises:
        CheckpointError: missing, incomplete, changed since it was written, or without averaged weights.
    """
    record, name = read_record(folder), AVERAGED if averaged else WEIGHTS
    if name not in record.files:
        raise CheckpointError(f"{folder} has no averaged weights; they are kept where engine.ema_decay is set")
    _check(folder / name, record.files[name])
    return load_file(folder / name)


def newest(run_dir: Path, *, deep: bool = False) -> Path | None:
    """The newest complete checkpoint of a run, or None if it has not saved yet; damaged ones are passed over with a warning.

    Args:
        deep: compare every byte with the hashes, not only names and sizes.

    Raises:
        CheckpointError: there are checkpoints, and none of them is whole. That is never taken for a new run.
    """
    damage = []
    for folder in candidates(run_dir / "checkpoints"):
        try:
            (verify if deep else read_record)(folder)
        except CheckpointError as error:
            damage.append(str(error))
            continue
        for message in damage:
            _log.warning("passed over a damaged checkpoint: %s", message)
        return folder
    if damage:
        raise CheckpointError(
            f"{run_dir} has no checkpoint that is whole:\n  " + "\n  ".join(damage) + f"\nrestore one of them, or move "
            f"{run_dir / 'checkpoints'} away to start from the beginning"
        )
    return None


def candidates(checkpoints: Path) -> list[Path]:
    """Checkpoint folders in the order in which to try them: the one that ``latest`` names, then from the newest down.

    ``latest`` decides, so that a run can be set back by writing an older one's name into it; where it is missing or names
    nothing, the newest folder does.
    """
    found = sorted((path for path in checkpoints.glob("step-*") if path.is_dir()), reverse=True)
    found += checkpoints.glob(f"{REPLACED}*")
    pointer = checkpoints / POINTER
    try:
        named = checkpoints / pointer.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        named = None
    if named in found:
        found.remove(named)
        found.insert(0, named)
    elif found:
        _log.warning("%s is missing or names no checkpoint; looking for the newest one", pointer)
    return found


def complete_steps(checkpoints: Path) -> dict[int, Path]:
    """Complete checkpoints by step."""
    found = {}
    for folder in checkpoints.glob("step-*"):
        try:
            found[read_record(folder).state.step] = folder
        except CheckpointError:
            continue
    return found
