"""Whether starting a run again leads anywhere: ``starts.jsonl`` in its folder, a line per start and per orderly end.

    {"start": 0}  {"start": 40}  {"start": 40}  {"end": "stopped", "step": 52}  {"start": 52}

A requeued job, torchrun's restarts, and a loop in a shell all start a run again after it died. That is right as long as each
start gets further than the one before. Where ``limit`` starts in a row began at the same step and died, something is wrong that
one more start will not cure, and the next one says so instead of taking the machines again.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from pipeline import dist
from pipeline.dist import World
from pipeline.errors import NoProgress

STARTS = "starts.jsonl"


def begin(run_dir: Path, step: int, world: World, *, limit: int) -> None:
    """Note a start from ``step`` completed steps; every rank calls it.

    Raises:
        NoProgress: on every rank; the last ``limit`` starts (0: any number) began at this step too, and died.
    """
    path, died = run_dir / STARTS, 0
    if world.is_main:
        died = died_at(read(path), step)
    died = dist.broadcast_object(died)
    if limit and died >= limit:
        raise NoProgress(
            f"{died} starts in a row continued {run_dir} from step {step} and died before they saved anything new; one more "
            f"would do the same. Find out why they died (their logs say so), then delete {path} to start again"
        )
    if world.is_main:
        _add(path, {"start": step})


def end(run_dir: Path, step: int, world: World, how: str) -> None:
    """Note that a start came to an orderly end: it finished, or it saved and stopped because it was asked to."""
    if world.is_main:
        _add(run_dir / STARTS, {"end": how, "step": step})


def died_at(lines: list[dict[str, object]], step: int) -> int:
    """How many of the last starts began at ``step`` and have no end.

    >>> died_at([{"start": 0}, {"start": 40}, {"start": 40}], 40)
    2
    """
    count = 0
    for line in reversed(lines):
        if line.get("start") != step:
            break
        count += 1
    return count


def read(path: Path) -> list[dict[str, object]]:
    """The file's lines; a last one cut short by a crash is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def _add(path: Path, line: dict[str, object]) -> None:
    """Add a line, if the disk takes it: a full one must not end a run that could go on."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        logging.getLogger("unisphere").warning("%s cannot be written: %s", path, error)
