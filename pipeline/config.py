"""The only schema: every setting of a run, its type, default, unit, and limits. Layer 0; imports nothing heavy.

A run is described by one YAML file plus ``key.sub=value`` overrides; both are parsed by the same strict rules:

    cfg = load("configs/emoji_smoke.yaml", ["optim.lr=1e-3", "train.steps=10"])
    cfg.optim.lr            # 0.001, a float although YAML 1.1 would have read "1e-3" as a string
    print(dump(cfg))        # YAML that loads to an equal RunConfig

Each part of the program receives only its slice (``cfg.optim``, ``cfg.data``, ...). A new setting is a field here, with a
line that says what it means, and one reader; a test fails if nothing reads it. The parsing itself lives in ``strict.py``.
"""

from __future__ import annotations

import functools
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline import strict
from pipeline.errors import ConfigError

Precision = Literal["auto", "bf16", "fp16", "fp32"]


@dataclass(frozen=True)
class DataConfig:
    """Which samples are read, and what happens to those that cannot be."""

    train: str
    """Folder with ``manifest.jsonl``, or shard paths with braces: ``shards/cc3m-{000000..000331}.tar``."""
    workers_per_rank: int = 2
    """Loader processes per rank; 0 loads in the training process."""
    prefetch_batches: int = 4
    """Batches that each worker keeps ready."""
    shuffle_window: int = 100_000
    """Samples shuffled together after the shards were shuffled; larger mixes better, smaller touches fewer shards."""
    max_bad_fraction: float = 0.01
    """Largest tolerated fraction of undecodable samples; past it the run stops on every rank."""
    max_image_pixels: int = 64_000_000
    """Images with more pixels are refused before they are decoded (decompression bombs)."""
    max_member_bytes: int = 64_000_000
    """Samples whose members take more bytes than this are refused before they are read."""


@dataclass(frozen=True)
class AugmentConfig:
    """The random view of a training image. Each range is drawn uniformly, each probability independently."""

    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Area of the random resized crop as a fraction of the image."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    """Aspect ratio (width / height) of that crop, drawn log-uniformly."""
    flip_probability: float = 0.0
    jitter_probability: float = 0.0
    brightness: float = 0.0
    """Factor drawn from [1 - x, 1 + x]; likewise contrast and saturation."""
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    """Shift drawn from [-x, x] in turns of the colour wheel, at most 0.5."""
    grayscale_probability: float = 0.0


@dataclass(frozen=True)
class ModelConfig:
    """The two towers: an open_clip architecture by name, or its configuration inline. Exactly one of the two."""

    architecture: str | None = None
    """Name that ``open_clip.list_models()`` knows, for example ``ViT-B-32``."""
    inline: dict[str, Any] | None = None
    """``embed_dim``, ``vision_cfg``, ``text_cfg`` and further keys of an open_clip model file."""
    init_weights: str | None = None
    """``.safetensors`` file (an export of ours or open_clip's) to start from; None starts from random weights."""
    patch_dropout: float | None = None
    """Fraction of image patches dropped while training; None keeps the architecture's own value."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    compile: bool = False
    """``torch.compile`` both towers; not possible with ZeRO stage 3."""
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class WeightConfig:
    """How much a loss term counts over a run. These keys stand among the term's own settings."""

    weight: float = 1.0
    schedule: Literal["constant", "linear", "cosine", "inverse_epoch"] = "constant"
    """``linear`` and ``cosine`` go from weight to final_weight over the run; ``inverse_epoch`` is weight / (epoch + 1)."""
    final_weight: float = 0.0


@dataclass(frozen=True)
class ObjectiveConfig:
    """The loss: which terms, with which weights. Temperature = 1 / logit scale."""

    terms: dict[str, dict[str, Any]] = field(default_factory=lambda: {"clip": {}})
    """Term name to its settings, see ``losses/terms``; weights and schedules as in ``WeightConfig``."""

    init_temperature: float = 0.07
    min_temperature: float = 0.01
    """Bound that holds in every forward pass, whatever the optimizer did to the parameter."""
    learn_temperature: bool = True
    tile: int = 512
    """Rows and columns of a tile of cosines; changes memory and speed only."""
    gather_dtype: Literal["fp32", "bf16"] = "fp32"
    """What embeddings travel between ranks in; gradients return in fp32 either way."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with decoupled weight decay; no decay on biases, norms, and scalars. Linear warm-up, then cosine."""

    lr: float = 5e-4
    min_lr: float = 0.0
    warmup_steps: int = 2000
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.2
    grad_clip_norm: float | None = 1.0
    """Largest global gradient norm; None never clips."""


@dataclass(frozen=True)
class EngineConfig:
    """How DeepSpeed runs the model."""

    zero_stage: int = 1
    """0 replicates everything; 1 shards optimizer state, 2 also gradients, 3 also parameters."""
    precision: Precision = "auto"
    """``auto``: bf16 on GPUs that have it, fp16 on older ones, fp32 on the CPU; the choice and its reason are logged."""
    collective_timeout_seconds: int = 600
    """A collective that waits longer fails on every rank, instead of hanging for torch's default half hour."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Further DeepSpeed settings, merged into the derived ones; unknown or derived keys are refused."""


@dataclass(frozen=True)
class TrainConfig:
    steps: int
    """Optimizer steps of the whole run."""
    global_batch_size: int
    """Pairs per step over all ranks; the batch per rank is derived and must divide evenly."""
    micro_batches: int = 1
    """Forward passes per step and rank. More take less memory for activations and one more forward pass of the towers;
    negatives stay those of the whole batch, so loss and gradients do not change."""


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = 1000
    """0 saves only at the end."""
    keep_last: int = 3
    """Older checkpoints are deleted once a newer one is complete; 0 keeps all."""


@dataclass(frozen=True)
class EvalConfig:
    sets: tuple[str, ...] = ()
    """Folders in CLIP_benchmark's WebDataset layout (``classnames.txt``, ``test/0.tar``, ...)."""
    batch_size_per_rank: int = 256
    every_steps: int = 0
    """Evaluate the checkpoint of every so many steps, a multiple of ``checkpoint.every_steps``; 0 only the last one."""


@dataclass(frozen=True)
class LogConfig:
    every_steps: int = 10
    term_gradients: bool = False
    """Also log each loss term's own gradient norm at the embeddings; costs one more pass over the tiles per term and record."""
    tensorboard: bool = True
    wandb_project: str | None = None
    """Also log to Weights & Biases under this project; a failure there is reported and never fatal."""


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
    """Checkpoint folder to start from instead of the newest one of this run; missing is an error."""
    augment: AugmentConfig = AugmentConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    engine: EngineConfig = EngineConfig()
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


_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, math.inf),
    "data.workers_per_rank": (0, math.inf),
    "data.prefetch_batches": (1, math.inf),
    "data.shuffle_window": (1, math.inf),
    "data.max_bad_fraction": (0, 1),
    "data.max_image_pixels": (1, math.inf),
    "data.max_member_bytes": (1, math.inf),
    "augment.flip_probability": (0, 1),
    "augment.jitter_probability": (0, 1),
    "augment.brightness": (0, 1),
    "augment.contrast": (0, 1),
    "augment.saturation": (0, 1),
    "augment.hue": (0, 0.5),
    "augment.grayscale_probability": (0, 1),
    "model.patch_dropout": (0, 1),
    "objective.tile": (1, math.inf),
    "optim.lr": (math.ulp(0.0), math.inf),
    "optim.beta1": (0, 1),
    "optim.beta2": (0, 1),
    "optim.eps": (0, math.inf),
    "optim.weight_decay": (0, math.inf),
    "optim.grad_clip_norm": (math.ulp(0.0), math.inf),
    "engine.zero_stage": (0, 3),
    "engine.collective_timeout_seconds": (1, math.inf),
    "train.steps": (1, math.inf),
    "train.global_batch_size": (2, math.inf),
    "train.micro_batches": (1, math.inf),
    "checkpoint.every_steps": (0, math.inf),
    "checkpoint.keep_last": (0, math.inf),
    "eval.batch_size_per_rank": (1, math.inf),
    "eval.every_steps": (0, math.inf),
    "log.every_steps": (1, math.inf),
}
"""Smallest and largest value of every number that stands alone; ``ulp(0)`` means positive."""


def check(cfg: RunConfig) -> None:
    """Refuse values out of range and combinations that cannot work, before anything is started."""
    for path, (low, high) in _RANGES.items():
        value: Any = functools.reduce(getattr, path.split("."), typing.cast(Any, cfg))
        if value is not None and not low <= value <= high:
            limit = f"within [{low}, {high}]" if high < math.inf else "positive" if 0 < low < 1 else f"at least {low}"
            raise ConfigError(f"{path} = {value}: must be {limit}")
    for holds, message in _combinations(cfg):
        if not holds:
            raise ConfigError(message)


def _combinations(cfg: RunConfig) -> list[tuple[bool, str]]:
    optim, objective, augment = cfg.optim, cfg.objective, cfg.augment
    eval_every, save_every = cfg.eval.every_steps, cfg.checkpoint.every_steps
    return [
        (Path(cfg.name).name == cfg.name and cfg.name not in ("", ".."), f"name = {cfg.name!r}: use one folder name"),
        (
            (cfg.model.architecture is None) != (cfg.model.inline is None),
            "model: give exactly one of architecture, inline",
        ),
        (
            not (cfg.model.compile and cfg.engine.zero_stage == 3),
            "model.compile = true with engine.zero_stage = 3: parameters are gathered by hooks that compilation bypasses; "
            "use a stage up to 2, or compile = false",
        ),
        (
            0 <= optim.min_lr <= optim.lr,
            f"optim.min_lr = {optim.min_lr}: must be within [0, optim.lr = {optim.lr}]",
        ),
        (
            0 <= optim.warmup_steps <= cfg.train.steps,
            f"optim.warmup_steps = {optim.warmup_steps}: must be within [0, train.steps = {cfg.train.steps}]",
        ),
        (
            0 < objective.min_temperature <= objective.init_temperature <= 1,
            f"objective: need 0 < min_temperature <= init_temperature <= 1, got min_temperature = "
            f"{objective.min_temperature}, init_temperature = {objective.init_temperature}",
        ),
        (
            0 < augment.crop_scale[0] <= augment.crop_scale[1] <= 1,
            f"augment.crop_scale = {augment.crop_scale}: need 0 < low <= high <= 1",
        ),
        (
            0 < augment.crop_ratio[0] <= augment.crop_ratio[1],
            f"augment.crop_ratio = {augment.crop_ratio}: need 0 < low <= high",
        ),
        (
            eval_every == 0 or (save_every > 0 and eval_every % save_every == 0),
            f"eval.every_steps = {eval_every}: checkpoints are evaluated, so it must be a multiple of "
            f"checkpoint.every_steps = {save_every}",
        ),
    ]
