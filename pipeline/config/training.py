"""How weights move and where they are kept: optimizer, engine, steps, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.config.limits import INFINITY, POSITIVE, Ranges, Rule

Precision = Literal["auto", "bf16", "fp16", "fp32"]


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


RANGES: Ranges = {
    "optim.lr": (POSITIVE, INFINITY),
    "optim.beta1": (0, 1),
    "optim.beta2": (0, 1),
    "optim.eps": (0, INFINITY),
    "optim.weight_decay": (0, INFINITY),
    "optim.grad_clip_norm": (POSITIVE, INFINITY),
    "engine.zero_stage": (0, 3),
    "engine.collective_timeout_seconds": (1, INFINITY),
    "train.steps": (1, INFINITY),
    "train.global_batch_size": (2, INFINITY),
    "train.micro_batches": (1, INFINITY),
    "checkpoint.every_steps": (0, INFINITY),
    "checkpoint.keep_last": (0, INFINITY),
}


def rules(optim: OptimConfig, train: TrainConfig) -> list[Rule]:
    """Combinations of these settings that must hold."""
    return [
        (
            0 <= optim.min_lr <= optim.lr,
            f"optim.min_lr = {optim.min_lr}: must be within [0, optim.lr = {optim.lr}]",
        ),
        (
            0 <= optim.warmup_steps <= train.steps,
            f"optim.warmup_steps = {optim.warmup_steps}: must be within [0, train.steps = {train.steps}]",
        ),
    ]
