"""How weights move: optimizer, engine, steps."""

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
    heartbeat_seconds: float = 5.0
    """How often each rank shows that it is alive. One that misses six beats is taken for lost: the others name it and leave."""
    stall_seconds: float = 300.0
    """A step that takes longer makes every rank write its stacks and name the late one; keep it below the time-out above."""
    offload: str = "none"
    """Where optimizer state lives: ``none`` (with the model), ``cpu``, or a folder on a local disk (stage 3 only)."""
    ema_decay: float | None = None
    """Also keep an exponential moving average of the weights, with this decay per step once warm; 0.9999 suits long runs."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Further DeepSpeed settings, merged into the derived ones; unknown or derived keys are refused. With any about how
    gradients are reduced (``zero_optimization``, say) DeepSpeed's own reduction replaces this project's at stages 1 and 2."""


@dataclass(frozen=True)
class TrainConfig:
    steps: int
    """Optimizer steps of the whole run."""
    global_batch_size: int
    """Pairs per step over all ranks; the batch per rank is derived and must divide evenly."""
    micro_batches: int = 1
    """Forward passes per step and rank. More take less memory for activations and one more forward pass of the towers;
    negatives stay those of the whole batch, so loss and gradients do not change."""
    time_limit_minutes: float | None = None
    """Save, stop and ask to be started again after so long; None leaves that to signals and to the launcher's own limit."""
    max_starts_without_progress: int = 2
    """So many starts in a row may die before they save anything new; the next one refuses to start. 0 never refuses."""


@dataclass(frozen=True)
class NumbersConfig:
    """What happens at a step whose loss or gradient is not finite. It never reaches the weights: the step is skipped."""

    max_skips_in_a_row: int = 8
    """After so many the weights are suspected: the run goes back to its last checkpoint and leaves out the batches since."""
    max_rollbacks: int = 1
    """The run stops, on every rank with the same exit code, when it would have to go back more often than this."""
    max_grad_norm: float | None = None
    """Also skip steps whose gradient norm, before clipping, is larger than this; None skips only what is not finite."""
    spike_factor: float = 10.0
    """Count a gradient norm this many times the average of recent steps as a spike in the log; nothing else follows from it."""


RANGES: Ranges = {
    "optim.lr": (POSITIVE, INFINITY),
    "optim.beta1": (0, 1),
    "optim.beta2": (0, 1),
    "optim.eps": (0, INFINITY),
    "optim.weight_decay": (0, INFINITY),
    "optim.grad_clip_norm": (POSITIVE, INFINITY),
    "engine.zero_stage": (0, 3),
    "engine.collective_timeout_seconds": (1, INFINITY),
    "engine.ema_decay": (0, 1),
    "engine.heartbeat_seconds": (POSITIVE, INFINITY),
    "engine.stall_seconds": (POSITIVE, INFINITY),
    "train.steps": (1, INFINITY),
    "train.time_limit_minutes": (POSITIVE, INFINITY),
    "train.max_starts_without_progress": (0, INFINITY),
    "numbers.max_skips_in_a_row": (1, INFINITY),
    "numbers.max_rollbacks": (0, INFINITY),
    "numbers.max_grad_norm": (POSITIVE, INFINITY),
    "numbers.spike_factor": (1, INFINITY),
    "train.global_batch_size": (2, INFINITY),
    "train.micro_batches": (1, INFINITY),
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
