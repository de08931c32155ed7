"""What is measured and recorded: evaluation and logs."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.config.checkpoint import CheckpointConfig
from pipeline.config.limits import INFINITY, POSITIVE, Ranges, Rule


@dataclass(frozen=True)
class EvalConfig:
    sets: tuple[str, ...] = ()
    """Folders or URLs in CLIP_benchmark's WebDataset layout (``classnames.txt``, ``test/0.tar``, ...), names of sets below
    ``root`` (``wds/imagenet1k``), or collections of them (``datacomp``, ``vtab+``)."""
    root: str | None = None
    """Folder or URL below which named sets lie."""
    templates: str = "set"
    """Prompts of classes: the set's own, ``openai``, ``simple``, a text file, or a JSON file of sentences for each class."""
    classnames: str = "set"
    """Names of classes: the set's own, ``openai`` (ImageNet), or a text file."""
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Sets that are compared: a name, and the names of sets, the first of which is what the others are measured against."""
    max_samples: int | None = None
    """Evaluate only so many samples of each set while training, at even distances; ``unisphere eval`` takes all."""
    captioned: int = 0
    """Write captions for so many images of each captioned set with a captioning model, and score them."""
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
    "eval.max_samples": (1, INFINITY),
    "eval.captioned": (0, INFINITY),
    "log.every_steps": (1, INFINITY),
    "log.peak_tflops": (POSITIVE, INFINITY),
}


def rules(evaluation: EvalConfig, checkpoint: CheckpointConfig) -> list[Rule]:
    """Combinations of these settings that must hold."""
    small = [name for name, sets in evaluation.groups.items() if not isinstance(sets, list | tuple) or len(sets) < 2]
    return [
        (not small, f"eval.groups: {', '.join(small)} must be a list of at least two sets, the reference first"),
        (
            evaluation.every_steps == 0
            or (checkpoint.every_steps > 0 and evaluation.every_steps % checkpoint.every_steps == 0),
            f"eval.every_steps = {evaluation.every_steps}: checkpoints are evaluated, so it must be a multiple of "
            f"checkpoint.every_steps = {checkpoint.every_steps}",
        ),
    ]
