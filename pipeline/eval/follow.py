"""Evaluating a run while it trains: every checkpoint as it appears, by another job.

    unisphere eval runs/x --follow        evaluates each checkpoint that has no results yet, until the run is complete

Nothing is remembered but the results themselves: stopped at any moment and started again, it goes on with what is missing. A
checkpoint that the run deletes while it is being read is passed over, and said so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline import config, dist
from pipeline.checkpoint.find import complete_steps
from pipeline.config import EvalConfig
from pipeline.dist import World
from pipeline.errors import CheckpointError
from pipeline.eval.evaluate import evaluate
from pipeline.eval.results import describe, read_results
from pipeline.eval.target import load
from pipeline.eval.together import all_or_none

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0


def follow(
    run: Path,
    sets: Sequence[str],
    world: World,
    device: torch.device,
    *,
    batch_size: int,
    asked: EvalConfig,
    out: Path,
    poll_seconds: float = POLL_SECONDS,
) -> list[dict[str, Any]]:
    """Evaluate every checkpoint of ``run`` that has no results in ``out`` yet, oldest first; every rank calls it.

    Returns when the run's last step is evaluated, with this call's results. ``sets`` are addresses, ``asked`` is what
    ``evaluate`` is asked for.
    """
    total = config.load(run / "config.yaml").train.steps
    results: list[dict[str, Any]] = []
    passed_over: set[int] = set()
    while True:
        # Rank 0 looks, so that all ranks see the same.
        step, folder = dist.broadcast_object(next_checkpoint(run, out, sets, passed_over) if world.is_main else (0, None))
        if folder is None:
            if dist.broadcast_object(world.is_main and total in seen_steps(out, sets) | passed_over):
                return results
            time.sleep(poll_seconds)
            continue
        try:
            target = all_or_none(lambda: load(folder, device), world)  # noqa: B023  # called at once
        except CheckpointError as error:
            passed_over.add(step)
            log.warning("%s is passed over: %s", folder, error)
            continue
        found = evaluate(
            target.subject,
            sets,
            world,
            device,
            batch_size=batch_size,
            asked=asked,
            source=target.source,
            out=out,
            progress=False,
        )
        results += found
        if world.is_main:
            print(f"{folder.name}\n" + "\n".join(describe(result) for result in found), flush=True)


def next_checkpoint(run: Path, out: Path, sets: Sequence[str], passed_over: set[int]) -> tuple[int, Path | None]:
    """Step and folder of the oldest complete checkpoint without results for all of ``sets``."""
    seen = seen_steps(out, sets) | passed_over
    missing = {step: folder for step, folder in complete_steps(run / "checkpoints").items() if step not in seen}
    return min(missing.items(), default=(0, None))


def seen_steps(out: Path, sets: Sequence[str]) -> set[int]:
    """Steps for which ``out`` has a result, or an error, for each of ``sets``."""
    names = {Path(folder).name for folder in sets}
    found: dict[int, set[str]] = {}
    for result in read_results(out):
        found.setdefault(result.get("step") or -1, set()).add(result["set"])
    return {step for step, having in found.items() if names <= having}
