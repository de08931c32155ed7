"""Continuing a run: which checkpoint, is it whole, and does it belong to these settings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pipeline import dist
from pipeline.checkpoint.find import newest, read_record, verify
from pipeline.checkpoint.remote import Remote
from pipeline.checkpoint.shards import Shards
from pipeline.checkpoint.state import SHARDS, TrainState, check_same_settings
from pipeline.config import RunConfig
from pipeline.dist import World
from pipeline.errors import CheckpointError
from pipeline.pieces import Saveable

T = TypeVar("T")
_log = logging.getLogger("unisphere")


def resume(cfg: RunConfig, engine: Saveable, settings: dict[str, Any], *, world: World) -> TrainState | None:
    """Continue from the run's newest checkpoint, else from ``cfg.resume_from``, else from its copy; None: a new run.

    Rank 0 chooses and compares every byte with the hashes, so that all ranks agree, then each rank reads the ranges it needs.
    It may be called again later, to go back to the last checkpoint.

    Raises:
        CheckpointError: on every rank; the checkpoint is missing, damaged beyond falling back, or saved under other settings.
    """
    folder = _from_main(world, lambda: _choose(cfg))
    if folder is None:
        return None
    record = read_record(folder)
    check_same_settings(record.state, settings, folder)
    restore(engine, folder)
    _log.info("continuing %s at step %d, saved on %d ranks", folder.parent.parent.name, record.state.step, record.world_size)
    return record.state


def restore(engine: Saveable, folder: Path) -> None:
    """Bring an engine to a checkpoint's state, whoever saved it; every rank, together.

    Raises:
        CheckpointError: it is incomplete, or holds the state of another model.
    """
    record = read_record(folder)
    paths = [folder / name for name in sorted(record.files) if name.startswith(SHARDS)]
    if not paths:
        raise CheckpointError(f"{folder} holds weights and nothing to resume from; start from them with model.init_weights")
    engine.restore(Shards(paths, record.scalars))


def _choose(cfg: RunConfig) -> Path | None:
    own = newest(cfg.run_dir, deep=True)
    if own is None and cfg.resume_from is not None:
        return _given(cfg.resume_from, cfg.run_dir / "checkpoints")
    if own is None and cfg.checkpoint.upload is not None:
        own = Remote(cfg.checkpoint.upload, cfg.name).fetch(cfg.run_dir / "checkpoints")
    elif cfg.resume_from is not None:  # a run that is started again must not fall back to where it once began
        _log.warning("resume_from = %s is not used: this run has a checkpoint of its own, %s", cfg.resume_from, own)
    return own


def _given(source: str, checkpoints: Path) -> Path:
    """The checkpoint that ``resume_from`` names, compared byte by byte."""
    if "://" not in source:
        verify(Path(source))
        return Path(source)
    run, _, name = source.rstrip("/").rpartition("/")
    remote = Remote(*run.rsplit("/", 1))
    if name not in remote.complete():
        raise CheckpointError(f"resume_from = {source} is no complete checkpoint")
    return remote.fetch_one(name, checkpoints)


def _from_main(world: World, action: Callable[[], T]) -> T:
    """What ``action`` gives on rank 0, on every rank; or its error on every rank."""
    result: T | None = None
    failure = ""
    if world.is_main:
        try:
            result = action()
        except (CheckpointError, OSError) as error:
            failure = str(error)
    result, failure = dist.broadcast_object((result, failure))
    if failure:
        raise CheckpointError(failure)
    return result
