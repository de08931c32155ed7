"""What a run says: a log for people, ``metrics.jsonl`` as the source of truth, TensorBoard and W&B as views of it.

Only rank 0 writes. ``metrics.jsonl`` holds one JSON object a line: a record with ``step``, or an ``event``:

    {"step": 10, "loss": 4.1, "lr": 0.0005, "logit_scale": 14.3, "grad_norm": 1.2, "samples_per_second": 310.0, ...}
    {"event": "resume", "step": 10}

Steps are monotone over any number of restarts: records that a lost process wrote after the checkpoint are removed when the
run resumes from it, because those steps are about to happen again.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import math
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.config import RunConfig
from pipeline.dist import World

METRICS = "metrics.jsonl"
WANDB_ID = "wandb.id"
WANDB_SECONDS = 30.0
"""How long W&B may take to begin, and to finish, before training goes on without it."""
LOGGER = "unisphere"


def get_logger(world: World) -> logging.Logger:
    """The project's logger: everything from rank 0, warnings and worse from the others, each line naming its rank."""
    logger = logging.getLogger(LOGGER)
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
        self._path, self._total = cfg.run_dir / METRICS, cfg.train.steps
        self._logger = get_logger(world)
        self._lines = Lines(self._path, start_step, self._logger)
        self._open.callback(self._lines.close)
        if cfg.log.tensorboard:
            self._views.append(_tensorboard_view(cfg, start_step, self._open))
        if cfg.log.wandb_project is not None:
            self._views += _wandb_view(cfg.log.wandb_project, cfg, start_step, self._logger, self._open)
        self._bar = tqdm(
            total=cfg.train.steps,
            initial=start_step,
            unit="step",
            desc=cfg.name,
            mininterval=1.0,
            dynamic_ncols=True,
            disable=None,  # where nobody watches a bar move there is a line per record
        )
        self._open.callback(self._bar.close)
        if start_step:
            self.event("resume", step=start_step)

    def record(self, step: int, values: dict[str, float], **details: Any) -> None:
        """Write the scalars of one step everywhere; ``details`` to ``metrics.jsonl`` only."""
        if not self._main:
            return
        self._write({"step": step, **values, **details})
        self._bar.set_postfix_str(describe(values), refresh=False)
        if self._bar.disable:
            self._logger.info("step %d of %d · %s", step, self._total, describe(values))
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

    def go_back(self, step: int) -> None:
        """Forget the records after ``step``: those steps happen again, with other data."""
        if not self._main:
            return
        self._lines.go_back(step)
        self._bar.update(step - self._bar.n)
        self.event("rollback", step=step)

    def close(self) -> None:
        """Flush and close everything."""
        self._open.close()

    def _write(self, record: dict[str, Any]) -> None:
        # JSON knows no NaN and no infinity: a step that was skipped has null there.
        plain = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()}
        self._lines.add(json.dumps(plain))


class Lines:
    """A text file that grows by whole lines, also through a full disk: what cannot be written now is written later."""

    def __init__(self, path: Path, step: int, logger: logging.Logger) -> None:
        """Continue the records of ``path`` after ``step`` completed steps (0: a new file)."""
        self._path, self._logger, self._failed = path, logger, False
        self._open(step)

    def go_back(self, step: int) -> None:
        """Forget the records after ``step``, and what waits to be written."""
        self._file.close()
        self._open(step)

    def _open(self, step: int) -> None:
        _forget_after(self._path, step)
        self._unwritten = b""
        self._file = self._path.open("ab", buffering=0)  # open as long as the run

    def add(self, line: str) -> None:
        """Write a line, and before it those that had to wait. A disk that is full stops no training."""
        self._unwritten += line.encode() + b"\n"
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            if not self._failed:
                self._logger.warning("%s cannot be written, its lines wait, training goes on: %s", self._path, error)
            self._failed = True
            return
        self._failed = False

    def close(self) -> None:
        """Close the file, if possible with everything in it."""
        if self._unwritten:
            self.add("")
        self._file.close()


def describe(values: dict[str, float]) -> str:
    """The figures that a person looks at while a run goes on, in a line."""
    parts = [f"loss {values['loss']:.4f}"]
    if "samples_per_second" in values:
        parts.append(f"{values['samples_per_second']:.0f} pairs/s")
    if "mfu" in values:
        parts.append(f"MFU {values['mfu']:.0%}")
    if values.get("data_wait_share", 0) > 0.1:
        parts.append(f"waits {values['data_wait_share']:.0%} for data")
    if "eta_seconds" in values:
        parts.append(f"{datetime.timedelta(seconds=round(values['eta_seconds']))} to go")
    return " · ".join(parts)


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


def _wandb_view(
    project: str, cfg: RunConfig, start_step: int, logger: logging.Logger, opened: contextlib.ExitStack
) -> list[Any]:
    """The W&B view, or nothing: a logging service that fails, or does not answer, must not take the run with it.

    A run that goes on after ``start_step`` goes on at W&B too, under the name that its folder holds; one that starts over is a
    new one there, as its ``metrics.jsonl`` is.
    """
    try:
        import dataclasses

        import wandb

        run = wandb.init(
            project=project,
            name=cfg.name,
            id=_wandb_id(cfg.run_dir / WANDB_ID, start_step),
            resume="allow",
            dir=str(cfg.run_dir),
            config=dataclasses.asdict(cfg),
            settings={"init_timeout": WANDB_SECONDS, "finish_timeout": WANDB_SECONDS},
        )
    except Exception as error:
        logger.warning("W&B is off for this run, training goes on: %s", error)
        return []
    lost = False

    def to_wandb(step: int, values: dict[str, float]) -> None:
        nonlocal lost
        try:
            run.log(values, step=step)
        except Exception as error:
            if not lost:  # once: the next ones will fail for the same reason
                logger.warning("W&B loses records from step %d on, training goes on: %s", step, error)
            lost = True

    def finish() -> None:
        try:
            run.finish()
        except Exception as error:
            logger.warning("W&B may lack the last records, training goes on: %s", error)

    opened.callback(finish)
    return [to_wandb]


def _wandb_id(path: Path, start_step: int) -> str:
    """The name of this run at W&B: kept in the run's folder from its first step on."""
    if start_step and path.exists():
        return path.read_text(encoding="utf-8").strip()
    new = secrets.token_hex(4)
    path.write_text(new + "\n", encoding="utf-8")
    return new
