"""Which jobs worked on a run: one small file per job beside the run, so that people need no job numbers.

runs/NAME/jobs/41234567.json    {"job": "41234567", "kind": "pretrain", "output": "/.../unisphere-41234567.out", ...}
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Record:
    """One job of a run."""

    job: str
    kind: str
    output: str
    """The file that takes what the job prints, over all its starts."""


def write(run_dir: Path, record: Record) -> None:
    """Note a job, again where it is noted already; complete or not at all."""
    folder = run_dir / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{record.job}.{os.getpid()}"
    partial.write_text(json.dumps(dataclasses.asdict(record)) + "\n", encoding="utf-8")
    partial.replace(folder / f"{record.job}.json")


def read_all(run_dir: Path) -> list[Record]:
    """All jobs of a run, oldest first."""
    files = sorted((run_dir / "jobs").glob("[0-9]*.json"), key=lambda path: path.stat().st_mtime)
    return [Record(**json.loads(path.read_text(encoding="utf-8"))) for path in files]
