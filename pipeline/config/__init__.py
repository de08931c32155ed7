"""The only schema: every setting of a run, its type, default, unit, and limits. Layer 0; imports nothing heavy.

A run is described by one YAML file plus ``key.sub=value`` overrides; both are parsed by the same strict rules:

    cfg = load("configs/emoji_smoke.yaml", ["optim.lr=1e-3", "train.steps=10"])
    cfg.optim.lr            # 0.001, a float although YAML 1.1 would have read "1e-3" as a string
    print(dump(cfg))        # YAML that loads to an equal RunConfig

Each part of the program receives only its slice (``cfg.optim``, ``cfg.data``, ...), and each slice has a file here: its
fields, the ranges of its numbers (``RANGES``), and what must hold between its settings (``rules``). A new setting is a field
with a line that says what it means, and one reader; a test fails if nothing reads it. The parsing itself lives in
``strict.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import strict
from pipeline.config import augment as _augment
from pipeline.config import checkpoint as _checkpoint
from pipeline.config import data as _data
from pipeline.config import model as _model
from pipeline.config import objective as _objective
from pipeline.config import training as _training
from pipeline.config import watching as _watching
from pipeline.config.augment import AugmentConfig, TextConfig, ViewConfig
from pipeline.config.checkpoint import CheckpointConfig
from pipeline.config.data import DataConfig, FilterConfig, SourceConfig, data_sources
from pipeline.config.limits import INFINITY, Rule, check_ranges, check_rules
from pipeline.config.model import ModelConfig
from pipeline.config.objective import ObjectiveConfig, WeightConfig
from pipeline.config.training import EngineConfig, NumbersConfig, OptimConfig, Precision, TrainConfig
from pipeline.config.watching import EvalConfig, LogConfig
from pipeline.errors import ConfigError

__all__ = [
    "AugmentConfig",
    "CheckpointConfig",
    "DataConfig",
    "EngineConfig",
    "EvalConfig",
    "FilterConfig",
    "LogConfig",
    "ModelConfig",
    "NumbersConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "Precision",
    "RunConfig",
    "SourceConfig",
    "TextConfig",
    "TrainConfig",
    "ViewConfig",
    "WeightConfig",
    "check",
    "data_sources",
    "dump",
    "from_tree",
    "load",
    "micro_batch_size",
]


@dataclass(frozen=True)
class RunConfig:
    """One run. ``runs_dir/name`` is its folder; a run whose folder has a checkpoint resumes from it."""

    name: str
    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    seed: int = 0
    runs_dir: str = "runs"
    resume_from: str | None = None
    """Checkpoint (a folder or a URL) to start from while this run has none of its own; missing is an error."""
    augment: AugmentConfig = AugmentConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    engine: EngineConfig = EngineConfig()
    numbers: NumbersConfig = NumbersConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()

    @property
    def run_dir(self) -> Path:
        """Folder that holds everything this run writes."""
        return Path(self.runs_dir) / self.name


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply overrides (``key.sub=value``, or further YAML files) in order, check everything.

    Raises:
        ConfigError: missing file, unknown or duplicate key, wrong type, value out of range, impossible combination.
    """
    tree = strict.read_yaml(path)
    for override in overrides:
        strict.apply_override(tree, override)
    return from_tree(tree)


def from_tree(tree: dict[str, Any]) -> RunConfig:
    """Build and check a ``RunConfig`` from nested dicts, as a YAML parser gives them."""
    cfg = strict.build(RunConfig, tree)
    check(cfg)
    return cfg


def dump(cfg: RunConfig) -> str:
    """The resolved configuration as YAML; ``load`` of it gives an equal ``RunConfig``."""
    return strict.to_yaml(cfg)


def micro_batch_size(global_batch_size: int, world_size: int, micro_batches: int = 1) -> int:
    """Pairs per rank and forward pass.

    Raises:
        ConfigError: when the global batch does not divide evenly, naming the nearest sizes that do.
    """
    parts = world_size * micro_batches
    if global_batch_size % parts:
        below = global_batch_size // parts * parts
        nearest = ", ".join(str(size) for size in (below, below + parts) if size)
        over = f"{world_size} ranks" + (f" in {micro_batches} micro-batches each" if micro_batches > 1 else "")
        raise ConfigError(
            f"train.global_batch_size = {global_batch_size} does not divide over {over} "
            f"(remainder {global_batch_size % parts}); use one of: {nearest}"
        )
    return global_batch_size // parts


RANGES = {
    "seed": (0.0, INFINITY),
    **_checkpoint.RANGES,
    **_augment.RANGES,
    **_data.RANGES,
    **_model.RANGES,
    **_objective.RANGES,
    **_training.RANGES,
    **_watching.RANGES,
}


def check(cfg: RunConfig) -> None:
    """Refuse values out of range and combinations that cannot work, before anything is started."""
    check_ranges(cfg, RANGES)
    check_rules(
        _rules(cfg)
        + _checkpoint.rules(cfg.checkpoint)
        + _augment.rules(cfg.augment)
        + _data.rules(cfg.data)
        + _model.rules(cfg.model)
        + _objective.rules(cfg.objective)
        + _training.rules(cfg.optim, cfg.train)
        + _watching.rules(cfg.eval, cfg.checkpoint)
    )


def _rules(cfg: RunConfig) -> list[Rule]:
    """What must hold between slices."""
    return [
        (Path(cfg.name).name == cfg.name and cfg.name not in ("", ".."), f"name = {cfg.name!r}: use one folder name"),
        (
            cfg.engine.offload in ("none", "cpu") or cfg.engine.offload.startswith("/"),
            f"engine.offload = {cfg.engine.offload}: use none, cpu, or the absolute path of a folder on a local disk",
        ),
        (
            cfg.engine.zero_stage >= _stage_for(cfg.engine.offload),
            f"engine.offload = {cfg.engine.offload} with engine.zero_stage = {cfg.engine.zero_stage}: optimizer state goes to "
            f"the CPU from stage 1 on, and to a disk at stage 3 only",
        ),
        (
            not (cfg.model.compile and cfg.engine.zero_stage == 3),
            "model.compile = true with engine.zero_stage = 3: parameters are gathered by hooks that compilation bypasses; "
            "use a stage up to 2, or compile = false",
        ),
    ]


def _stage_for(offload: str) -> int:
    return {"none": 0, "cpu": 1}.get(offload, 3)
