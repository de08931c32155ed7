"""What is measured and recorded: evaluation and logs."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.checkpoint import CheckpointConfig
from pipeline.config.limits import INFINITY, POSITIVE, Ranges, Rule


@dataclass(frozen=True)
class EvalConfig:
    sets: tuple[str, ...] = ()
    """Folders in CLIP_benchmark's WebDataset layout (``classnames.txt``, ``test/0.tar``, ...)."""
    batch_size_per_rank: int = 256
    every_steps: int = 0
    """Evaluate the checkpoint of every so many steps, a multiple of ``checkpoint.every_steps``; 0 only the last one."""
    at_end: bool = True
    """Evaluate the last checkpoint before the training ends; false leaves that to another job."""


@dataclass(frozen=True)
class LogConfig:
    every_steps: int = 10
    term_gradients: bool = False
    """Also log each loss term's own gradient norm at the embeddings; costs one more pass over the tiles per term and record."""
    tensorboard: bool = True
    wandb_project: str | None = None
    """Also log to Weights & Biases under this project; a failure there is reported and never fatal."""
    peak_tflops: float | None = None
    """Dense peak of one device in its precision, 1e12 operations a second; None knows the common GPUs, and no CPU."""


RANGES: Ranges = {
    "eval.batch_size_per_rank": (1, INFINITY),
    "eval.every_steps": (0, INFINITY),
    "log.every_steps": (1, INFINITY),
    "log.peak_tflops": (POSITIVE, INFINITY),
}


def rules(evaluation: EvalConfig, checkpoint: CheckpointConfig) -> list[Rule]:
    """Combinations of these settings that must hold."""
    return [
        (
            evaluation.every_steps == 0
            or (checkpoint.every_steps > 0 and evaluation.every_steps % checkpoint.every_steps == 0),
            f"eval.every_steps = {evaluation.every_steps}: checkpoints are evaluated, so it must be a multiple of "
            f"checkpoint.every_steps = {checkpoint.every_steps}",
        ),
    ]
