"""An engine whose whole state is one vector per rank share, and a small run to save it for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from pipeline import checkpoint, config
from pipeline.checkpoint import TrainState
from pipeline.config import RunConfig
from pipeline.dist import World
from pipeline.pieces import Piece, Reader, Snapshot, share

TREE: dict[str, Any] = {
    "name": "run",
    "data": {"train": "shards"},
    "model": {"architecture": "ViT-B-32"},
    "train": {"steps": 9, "global_batch_size": 4},
    "optim": {"warmup_steps": 0},
}
SETTINGS = checkpoint.pinned_settings(config.from_tree(TREE), World(), "fp32")


def run_config(tmp_path: Path, **changes: Any) -> RunConfig:
    """A run under ``tmp_path``; ``changes`` replace whole groups or single top-level settings."""
    return config.from_tree({**TREE, "runs_dir": str(tmp_path), **changes})


def state(step: int) -> TrainState:
    """A run after ``step`` steps."""
    return TrainState(step, step * 4, SETTINGS)


class FakeEngine:
    """``size`` equal weights and a moment, cut over ranks; an average too where asked for."""

    on_disk = False

    def __init__(self, value: float = 0.0, world: World | None = None, *, size: int = 10, averaged: bool = False) -> None:
        self.world, self.size, self.updates = world or World(), size, 0
        low, high = share(size, self.world.rank, self.world.size)
        self.held = {kind: torch.full((high - low,), value) for kind in ("weight", "exp_avg", *(["ema"] if averaged else []))}
        self.low = low

    @property
    def value(self) -> float:
        """The number that every weight and moment is, on this rank."""
        numbers = {float(x) for values in self.held.values() for x in values}
        assert len(numbers) == 1, numbers
        return numbers.pop()

    def snapshot(self) -> Snapshot:
        """This rank's cut."""
        pieces = [Piece(kind, "w", (self.size,), self.low, values) for kind, values in self.held.items()]
        return Snapshot(pieces, {"updates": self.updates}, {"w": (self.size,)})

    def restore(self, reader: Reader) -> None:
        """Read this rank's cut."""
        for piece in self.snapshot().pieces:
            reader.fill(piece)
        self.updates = int(reader.scalars["updates"])


def save(run: Path, step: int, engine: Any = None, keep_last: int = 0) -> Path:
    """A complete checkpoint of ``step``, whose weights are all ``step``."""
    return checkpoint.save(run, engine or FakeEngine(step), state(step), world=World(), keep_last=keep_last)


def names(run: Path) -> list[str]:
    """Checkpoint folders, hidden ones too."""
    return sorted(path.name for path in (run / "checkpoints").iterdir() if path.is_dir())


def set_pointer(run: Path, name: str) -> None:
    """Write ``latest`` by hand."""
    (run / "checkpoints" / "latest").write_text(name + "\n")


def with_step(step: int, **changes: Any) -> TrainState:
    """``state(step)`` with other fields."""
    return dataclasses.replace(state(step), **changes)
