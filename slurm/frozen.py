"""A job's own copy of code and settings, so that editing the repository does not change a job that waits or is requeued.

    runs/NAME/jobs/41234567/
        code/pipeline ...     what the ranks import
        config.yaml           the complete settings of the run, overrides applied
        job.json              how it was asked for, for people

Made by the first start of a job (or at submission, by ``unisphere launch``) and used by every later one.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import config
from pipeline.config import RunConfig

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("pipeline", "slurm")


@dataclass(frozen=True)
class Frozen:
    """Where a job's copy lies."""

    folder: Path

    @property
    def code(self) -> Path:
        """First entry of the ranks' import path."""
        return self.folder / "code"

    @property
    def config(self) -> Path:
        """The settings file of the ranks."""
        return self.folder / "config.yaml"

    def environment(self) -> dict[str, str]:
        """Variables that make Python import the copy; together with ``python -P``, which keeps the current folder out."""
        return {"PYTHONPATH": str(self.code)}


def freeze(cfg: RunConfig, job: str, asked: dict[str, Any], source: Path = REPOSITORY) -> Frozen:
    """The copy of a job, made now unless an earlier start made it.

    Args:
        cfg: the run's settings.
        job: the folder's name, the job's id.
        asked: what ``job.json`` shall say.
        source: the repository.
    """
    folder = (cfg.run_dir / "jobs" / job).absolute()
    if folder.is_dir():
        return Frozen(folder)
    making = folder.with_name(f".{job}-{os.getpid()}")
    for package in PACKAGES:
        shutil.copytree(source / package, making / "code" / package, ignore=shutil.ignore_patterns("__pycache__"))
    (making / "config.yaml").write_text(config.dump(cfg), encoding="utf-8")
    (making / "job.json").write_text(json.dumps({**asked, "python": sys.executable}, indent=1) + "\n", encoding="utf-8")
    making.rename(folder)
    return Frozen(folder)
