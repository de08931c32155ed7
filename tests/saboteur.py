"""Faults for tests, planted inside a rank: a thread that waits for a step to be logged, and then does something to its process.

def faulty(world, cfg, stderr):
    if world.rank == 1:
        at_step(cfg, 4, lambda: os.kill(os.getpid(), signal.SIGKILL))
    return outcome(cfg, world)
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import logs
from pipeline.config import RunConfig
from pipeline.dist import World
from pipeline.errors import PipelineError
from pipeline.train import train


def at_step(cfg: RunConfig, step: int, action: Callable[[], Any]) -> None:
    """Do ``action`` once the run has logged ``step`` in this start; the run must log every step."""
    path = cfg.run_dir / logs.METRICS
    before = len(logs.read_metrics(path)) if path.exists() else 0

    def wait() -> None:
        while not path.exists() or not any(r.get("step", 0) >= step and "loss" in r for r in logs.read_metrics(path)[before:]):
            time.sleep(0.01)
        action()

    threading.Thread(target=wait, daemon=True).start()


def send(*numbers: signal.Signals) -> Callable[[], None]:
    """Send signals to this process, a moment apart."""

    def action() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.05)

    return action


def outcome(cfg: RunConfig, world: World) -> tuple[str, int, str]:
    """Train; how it ended: the error's name, the exit code, and the message."""
    try:
        train(cfg, world)
    except PipelineError as error:
        return type(error).__name__, error.exit_code, str(error)
    return "done", 0, ""


def stderr_into(folder: Path, rank: int) -> None:
    """From here on what this process writes to stderr goes to a file."""
    folder.mkdir(exist_ok=True, parents=True)
    file = os.open(folder / f"stderr-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 2)
