"""A run's folder as a value: what was asked for, what it ran on, what was measured while it trained and afterwards.

run = read_run(Path("runs/x"))
run.name, run.settings["train"]["steps"], run.curve("loss")      # ([10, 20, ...], [4.1, 3.9, ...])
run.newest("eval-style")["zero_shot"]["accuracy@1"]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import strict
from pipeline.errors import DataError
from pipeline.eval.results import read_results
from pipeline.logs import METRICS, read_metrics

MAX_POINTS = 300
"""Points of a curve; longer ones are averaged over stretches of equal length."""


@dataclass(frozen=True)
class Run:
    """One run as its folder tells it."""

    folder: Path
    name: str
    settings: dict[str, Any]
    starts: tuple[dict[str, Any], ...]
    """Provenance of every start: time, host, packages, devices, commit."""
    metrics: tuple[dict[str, Any], ...]
    events: tuple[dict[str, Any], ...]
    results: tuple[dict[str, Any], ...]
    """Evaluations without those that failed, oldest first; the newest counts where one was repeated."""
    failures: tuple[dict[str, Any], ...]

    def numbers(self) -> list[str]:
        """Names of all numbers recorded while training, in the order in which they first appear."""
        return list(dict.fromkeys(key for row in self.metrics for key in row if key != "step"))

    def curve(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of one number; long curves averaged."""
        points = [(row["step"], row[key]) for row in self.metrics if isinstance(row.get(key), (int, float))]
        stretch = -(-len(points) // MAX_POINTS)
        groups = [points[start : start + stretch] for start in range(0, len(points), max(1, stretch))]
        steps = [sum(step for step, _ in group) / len(group) for group in groups]
        return steps, [sum(value for _, value in group) / len(group) for group in groups]

    def turns(self) -> list[tuple[str, int]]:
        """Where it did not simply go on: what happened, and after which step."""
        words = {"resume": "resumed", "rollback": "went back"}
        return [(words[event["event"]], event["step"]) for event in self.events if event["event"] in words and "step" in event]

    def sets(self) -> list[str]:
        """Names of the sets it was evaluated on."""
        return list(dict.fromkeys(result["set"] for result in self.results))

    def newest(self, name: str) -> dict[str, Any] | None:
        """The result on a set at the latest step."""
        found = [result for result in self.results if result["set"] == name]
        return max(found, key=lambda result: result.get("step") or 0, default=None)

    def over_time(self, name: str) -> list[dict[str, Any]]:
        """The results on a set by step, one for each."""
        by_step = {result.get("step") or 0: result for result in self.results if result["set"] == name}
        return [by_step[step] for step in sorted(by_step)]


def read_run(folder: Path) -> Run:
    """Read a run's folder.

    Raises:
        DataError: it is no run's folder, or a file of it cannot be read.
    """
    if not (folder / "config.yaml").is_file():
        raise DataError(f"{folder} is not a run's folder: config.yaml is missing; give runs/NAME")
    settings = strict.read_yaml(folder / "config.yaml")
    rows = read_metrics(folder / METRICS) if (folder / METRICS).exists() else []
    results = read_results(folder / "eval.jsonl")
    return Run(
        folder=folder,
        name=str(settings.get("name", folder.name)),
        settings=settings,
        starts=tuple(_lines(folder / "run.json")),
        metrics=tuple(row for row in rows if "step" in row and "event" not in row),
        events=tuple(row for row in rows if "event" in row),
        results=tuple(result for result in results if "error" not in result),
        failures=tuple(result for result in results if "error" in result),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def sets_of(runs: Sequence[Run]) -> list[str]:
    """Names of the sets that any of the runs was evaluated on."""
    return list(dict.fromkeys(name for run in runs for name in run.sets()))
