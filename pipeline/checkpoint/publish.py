"""From the files of all ranks to a complete checkpoint: what rank 0 does when every shard is on the disk.

What happens, and what it means to die right after it:

1  ranks write ``.writing-step-N-gG/shards``    the next save deletes the folder
2  model.safetensors, ema.safetensors           the same
3  state.json, with the hash of every file      the same
4  one of the same step steps aside             it is used from there, if it is the newest
5  the folder is renamed to ``step-N``          it is complete; ``latest`` names the one before, which is used
6  ``latest`` is replaced                       done
7  older ones are deleted, state.json first     an incomplete folder, which nobody uses and the next save deletes
8  the copy under ``checkpoint.upload``         an unfinished set there, which nobody uses; the next save is copied
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pipeline.checkpoint.files import Entry, Layout, raw, replace_text, sync, write, write_text
from pipeline.checkpoint.find import complete_steps
from pipeline.checkpoint.remote import Remote
from pipeline.checkpoint.retention import best_step, superseded
from pipeline.checkpoint.shards import Shards, write_whole
from pipeline.checkpoint.state import AVERAGED, POINTER, REPLACED, SHARDS, STATE, WEIGHTS, Record, TrainState
from pipeline.config import CheckpointConfig
from pipeline.errors import CheckpointError
from pipeline.pieces import Snapshot

FIGURES = "figures.jsonl"
_VISIBLE_WITHIN_SECONDS = 60.0


@dataclass(frozen=True)
class Draft:
    """A checkpoint that is being written."""

    writing: Path
    folder: Path
    record: Record
    """Complete but for ``files``."""
    shapes: dict[str, tuple[int, ...]]

    @staticmethod
    def of(checkpoints: Path, record: Record, snapshot: Snapshot) -> Draft:
        """Where a checkpoint is written, and what it will be called."""
        folder = checkpoints / f"step-{record.state.step:08d}"
        return Draft(checkpoints / f".writing-{folder.name}-g{record.generation}", folder, record, snapshot.shapes)

    def shard(self, rank: int) -> str:
        """The name of a rank's file within the checkpoint."""
        return f"{SHARDS}/{rank:05d}-of-{self.record.world_size:05d}.safetensors"


def start(draft: Draft) -> None:
    """Make the folder that ranks write in, and clear away what lost processes left behind."""
    checkpoints = draft.writing.parent
    for left in [*checkpoints.glob(".writing-*"), *checkpoints.glob(".arriving-*")]:
        shutil.rmtree(left, ignore_errors=True)
    (draft.writing / SHARDS).mkdir(parents=True)


def publish(draft: Draft, entries: list[Entry], check: Callable[[], None]) -> tuple[Path, Record]:
    """Make the checkpoint complete and visible.

    Args:
        draft: whose shards are all written.
        entries: of the shards, in rank order.
        check: raises if this start may not write any more.

    Returns:
        The checkpoint's folder and record.
    """
    files = {draft.shard(rank): entry for rank, entry in enumerate(entries)}
    for name, entry in files.items():
        _await_visible(draft.writing / name, entry)
    shards = Shards([draft.writing / name for name in files], draft.record.scalars)
    files[WEIGHTS] = write_whole(draft.writing / WEIGHTS, shards, draft.shapes, averaged=False)
    if "ema" in shards.kinds():
        files[AVERAGED] = write_whole(draft.writing / AVERAGED, shards, draft.shapes, averaged=True)
    state = dataclasses.replace(draft.record.state, weights_sha256=files[WEIGHTS].sha256)
    record = dataclasses.replace(draft.record, state=state, files=files)
    write_text(draft.writing / STATE, record.dump())
    sync(draft.writing / SHARDS)
    sync(draft.writing)
    check()
    checkpoints = draft.folder.parent
    if draft.folder.exists():  # made before a resume from an older one; it may be the only one, so it steps aside first
        aside = checkpoints / f"{REPLACED}{draft.folder.name}"
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(draft.folder, aside)
    os.replace(draft.writing, draft.folder)
    sync(checkpoints)
    check()
    replace_text(checkpoints / POINTER, draft.folder.name + "\n")
    for replaced in checkpoints.glob(f"{REPLACED}*"):
        delete(replaced)
    return draft.folder, record


def _await_visible(path: Path, entry: Entry) -> None:
    """Wait until a file that another node has closed is seen here; shared file systems may take seconds to show it."""
    deadline = time.monotonic() + _VISIBLE_WITHIN_SECONDS
    while not path.is_file() or path.stat().st_size != entry.bytes:
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"{path} was written by its rank ({entry.bytes} bytes) but is not seen by rank 0 after "
                f"{_VISIBLE_WITHIN_SECONDS:.0f} s; runs_dir must be on a file system that all nodes share"
            )
        os.scandir(path.parent).close()  # asks the server anew
        time.sleep(0.05)


def delete(folder: Path) -> None:
    """Remove a checkpoint, its state first: what is left of it after a crash does not claim to be complete."""
    (folder / STATE).unlink(missing_ok=True)
    shutil.rmtree(folder)


def retain(checkpoints: Path, cfg: CheckpointConfig) -> list[str]:
    """Delete what ``cfg`` does not keep, and what a crash left of an earlier deletion. Returns the names that went.

    Only complete checkpoints count as kept; damaged ones with a ``state.json`` are left for people to look at.
    """
    for remains in checkpoints.glob("step-*"):
        if remains.is_dir() and not (remains / STATE).exists():
            shutil.rmtree(remains)
    complete, best = complete_steps(checkpoints), None
    if cfg.best_metric is not None:
        best = best_step(read_figures(checkpoints, cfg.best_metric), complete, highest=cfg.best_is_highest)
    gone = superseded(complete, last=cfg.keep_last, every=cfg.keep_every_steps, best=best)
    for step in gone:
        delete(complete[step])
    return [complete[step].name for step in gone]


def copy_out(remote: Remote, folder: Path, record: Record, gone: list[str], check: Callable[[], None]) -> None:
    """Copy a checkpoint to its remote, then delete there what was deleted here; ``check`` as in ``publish``."""
    check()
    remote.upload(folder, record)
    for name in gone:
        if name in remote.complete():
            remote.delete(name)


def note_figures(checkpoints: Path, step: int, figures: dict[str, float]) -> None:
    """Remember what a checkpoint was measured to be worth, for ``checkpoint.best_metric``."""
    with open(checkpoints / FIGURES, "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **figures}) + "\n")


def read_figures(checkpoints: Path, name: str) -> dict[int, float]:
    """One figure by step, the last measurement of each."""
    path, found = checkpoints / FIGURES, {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            values = json.loads(line)
        except ValueError:  # cut short by a crash
            continue
        if name in values:
            found[int(values["step"])] = float(values[name])
    return found


def write_weights(folder: Path, weights: Mapping[str, Tensor], state: TrainState) -> None:
    """Make an existing folder readable by ``read_weights`` and ``read_state``: weights without anything to resume from."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    layout = Layout.of({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()})
    entry = write(folder / WEIGHTS, [layout.header, *(raw(tensors[name]) for name in layout.places)])
    record = Record(dataclasses.replace(state, weights_sha256=entry.sha256), 0, 0, {}, {WEIGHTS: entry})
    write_text(folder / STATE, record.dump())
