"""What a saved run is on disk, how it gets there beside the training, and how to find it again.

    runs/NAME/
        generations/00001.json        which starts of the run there were; the last one may write
        checkpoints/
            step-00000040/
                model.safetensors     the whole model, fp32, our names: all that evaluation and export ever read
                ema.safetensors       the averaged weights, the same way, where engine.ema_decay is set
                shards/00001-of-00004.safetensors   that rank's share of weights, moments and averages, by name and range
                state.json            TrainState, the settings that a resume must not change, every file's size and hash
            latest                    the name of the newest complete checkpoint

    state.py        TrainState, pinned settings            saver.py       Saver: begin, poll, wait
    files.py        hashes, fsync, safetensors             publish.py     complete, visible, older ones deleted
    shards.py       any range back from any ranks' files   find.py        newest, read_state, read_weights, verify
    resume.py       which one, is it whole                 retention.py   which ones stay
    generation.py   who may write                          remote.py      copies under s3:// and the like

Reading one needs no process group, no GPU and no DeepSpeed. docs/checkpoints.md says what happens at each moment of a crash.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.checkpoint.files import file_sha256
from pipeline.checkpoint.find import newest, read_record, read_state, read_weights, verify
from pipeline.checkpoint.generation import Generation
from pipeline.checkpoint.publish import write_weights
from pipeline.checkpoint.resume import restore, resume
from pipeline.checkpoint.saver import Saver
from pipeline.checkpoint.state import (
    AVERAGED,
    POINTER,
    STATE,
    WEIGHTS,
    Record,
    TrainState,
    check_same_settings,
    pinned_settings,
)
from pipeline.config import CheckpointConfig
from pipeline.dist import World
from pipeline.pieces import Saveable

__all__ = [
    "AVERAGED",
    "POINTER",
    "STATE",
    "WEIGHTS",
    "Generation",
    "Record",
    "Saver",
    "TrainState",
    "check_same_settings",
    "file_sha256",
    "newest",
    "pinned_settings",
    "read_record",
    "read_state",
    "read_weights",
    "restore",
    "resume",
    "save",
    "verify",
    "write_weights",
]


def save(run_dir: Path, engine: Saveable, state: TrainState, *, world: World, keep_last: int) -> Path:
    """Write one complete checkpoint and wait for it; every rank, together. A training uses a ``Saver``.

    Args:
        keep_last: older checkpoints beyond this many are deleted afterwards; 0 keeps all.

    Raises:
        CheckpointError: on every rank, if it could not be written; older ones are untouched.
    """
    return Saver(CheckpointConfig(keep_last=keep_last), run_dir, engine, world=world).save(state)
