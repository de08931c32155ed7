"""What a run says: a log for people, ``metrics.jsonl`` as the source of truth, TensorBoard and W&B as views of it.

Only rank 0 writes. ``metrics.jsonl`` holds one JSON object a line: a record with ``step``, or an ``event``:

    {"step": 10, "loss": 4.1, "lr": 0.0005, "logit_scale": 14.3, "grad_norm": 1.2, "samples_per_second": 310.0, ...}
    {"event": "resume", "step": 10}

Steps are monotone over any number of restarts: records that a lost process wrote after the checkpoint are removed when the
run resumes from it, because those steps are about to happen again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.config import RunConfig
from pipeline.dist import World

METRICS = "metrics.jsonl"


def get_logger(world: World) -> logging.Logger:
    """The project's logger: everything from rank 0, warnings and worse from the others, each line naming its rank."""
    logger = logging.getLogger("unisphere")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(f"%(asctime)s rank {world.rank} %(levelname).1s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(logging.INFO if world.is_main else logging.WARNING)
    return logger


class MetricsLog:
    """Writes a run's records; does nothing on other ranks than 0."""

    def __init__(self, cfg: RunConfig, world: World, start_step: int) -> None:
        """Continue the run's log after ``start_step`` completed steps (0: a new one)."""
        self._main = world.is_main
        self._views: list[Any] = []
        self._open = contextlib.ExitStack()
        if not self._main:
            return
        path = cfg.run_dir / METRICS
        _forget_after(path, start_step)
        self._file = path.open("a", encoding="utf-8", buffering=1)  # open as long as the run
        self._open.callback(self._file.close)
        if cfg.log.tensorboard:
            self._views.append(_tensorboard_view(cfg, start_step, self._open))
        if cfg.log.wandb_project is not None:
            self._views += _wandb_view(cfg.log.wandb_project, cfg, get_logger(world))
        self._bar = tqdm(
            total=cfg.train.steps, initial=start_step, unit="step", desc=cfg.name, mininterval=1.0, dynamic_ncols=True
        )
        self._open.callback(self._bar.close)
        if start_step:
            self.event("resume", step=start_step)

    def record(self, step: int, values: dict[str, float]) -> None:
        """Write the scalars of one step everywhere."""
        if not self._main:
            return
        self._write({"step": step, **values})
        self._bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
        for view in self._views:
            view(step, values)

    def event(self, kind: str, **details: Any) -> None:
        """Write something that happened, such as a resume or an evaluation, to ``metrics.jsonl``."""
        if self._main:
            self._write({"event": kind, **details})

    def advance(self) -> None:
        """One more step on the progress bar."""
        if self._main:
            self._bar.update()

    def close(self) -> None:
        """Flush and close everything."""
        self._open.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records and events of a ``metrics.jsonl``; a last line cut short by a crash is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def _forget_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [record for record in read_metrics(path) if record.get("step", 0) <= step] if step else []
    temporary = path.with_suffix(".writing")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    os.replace(temporary, path)


def _tensorboard_view(cfg: RunConfig, start_step: int, opened: contextlib.ExitStack) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(cfg.run_dir / "tensorboard"), purge_step=start_step or None, flush_secs=10)
    opened.callback(writer.close)

    def to_tensorboard(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return to_tensorboard


def _wandb_view(project: str, cfg: RunConfig, logger: logging.Logger) -> list[Any]:
    """The W&B view, or nothing: a logging service that fails must not take the run with it."""
    try:
        import dataclasses

        import wandb

        run = wandb.init(
            project=project,
            name=cfg.name,
            id=cfg.name,
            resume="allow",
            dir=str(cfg.run_dir),
            config=dataclasses.asdict(cfg),
        )
    except Exception as error:
        logger.warning("W&B is off for this run, training goes on: %s", error)
        return []

    def to_wandb(step: int, values: dict[str, float]) -> None:
        try:
            run.log(values, step=step)
        except Exception as error:
            logger.warning("W&B lost step %d, training goes on: %s", step, error)

    return [to_wandb]
