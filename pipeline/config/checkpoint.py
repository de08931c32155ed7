"""When a run is saved, which checkpoints stay, and where they are copied to."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.limits import INFINITY, Ranges, Rule


@dataclass(frozen=True)
class CheckpointConfig:
    """A run is also saved when a signal asks for it, ahead of the job's time limit, and at its end."""

    every_steps: int = 1000
    """0: not by the count of steps."""
    every_minutes: float = 0.0
    """Save when this much time has passed since the last save; 0: not by the clock."""
    seconds_before_limit: float = 120.0
    """Save and stop this long before the job's time limit, where the launcher states one."""
    background: bool = True
    """Copy the state within the step and write it beside the following ones; false waits until everything is on disk."""
    keep_last: int = 3
    """Older checkpoints are deleted once a newer one is complete; 0 keeps all."""
    keep_every_steps: int = 0
    """Also keep those whose step is a multiple of this; 0 keeps none for that reason."""
    best_metric: str | None = None
    """Also keep the one with the best value of this figure, for example ``emoji/top1``; see docs/checkpoints.md for names."""
    best_is_highest: bool = True
    """Whether more of ``best_metric`` is better; false for losses."""
    upload: str | None = None
    """Copy complete checkpoints under this URL (``s3://bucket/folder``, or any that fsspec knows); a run that has none in its
    own folder resumes from there."""


RANGES: Ranges = {
    "checkpoint.every_steps": (0, INFINITY),
    "checkpoint.every_minutes": (0, INFINITY),
    "checkpoint.seconds_before_limit": (0, INFINITY),
    "checkpoint.keep_last": (0, INFINITY),
    "checkpoint.keep_every_steps": (0, INFINITY),
}


def rules(checkpoint: CheckpointConfig) -> list[Rule]:
    """Combinations of these settings that must hold."""
    return [
        (
            checkpoint.upload is None or "://" in checkpoint.upload,
            f"checkpoint.upload = {checkpoint.upload}: give a URL such as s3://bucket/folder",
        ),
    ]
