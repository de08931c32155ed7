"""What a run writes: rank 0 only, monotone over restarts, and never stopped by a view that fails."""

from __future__ import annotations

import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from pipeline import logs
from pipeline.config import RunConfig
from pipeline.dist import World
from tests.runs import run_config

VALUES = {"loss": 1.5, "lr": 0.1}


def config(tmp_path: Path, **changes: Any) -> RunConfig:
    cfg = run_config(tmp_path, **changes)
    cfg.run_dir.mkdir(parents=True)
    return cfg


def test_records_and_events_are_lines_of_json(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    log = logs.MetricsLog(cfg, World(), 0)
    log.record(1, VALUES)
    log.event("eval", step=1)
    log.close()
    assert logs.read_metrics(cfg.run_dir / logs.METRICS) == [{"step": 1, **VALUES}, {"event": "eval", "step": 1}]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    log = logs.MetricsLog(cfg, World(1, 2, 1, 2), 0)
    log.record(1, VALUES)
    log.advance()
    log.close()
    assert not list(cfg.run_dir.iterdir())


def test_a_resumed_log_forgets_what_was_lost_and_a_line_cut_short(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    (cfg.run_dir / logs.METRICS).write_text('{"step": 1, "loss": 1}\n{"step": 2, "loss": 2}\n{"step": 3, "lo')
    logs.MetricsLog(cfg, World(), 1).close()
    assert logs.read_metrics(cfg.run_dir / logs.METRICS) == [{"step": 1, "loss": 1}, {"event": "resume", "step": 1}]


def test_a_run_that_starts_over_starts_an_empty_log(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    (cfg.run_dir / logs.METRICS).write_text('{"step": 1, "loss": 1}\n')
    logs.MetricsLog(cfg, World(), 0).close()
    assert logs.read_metrics(cfg.run_dir / logs.METRICS) == []


def test_tensorboard_gets_the_same_scalars(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = config(tmp_path, log__tensorboard=True)
    log = logs.MetricsLog(cfg, World(), 0)
    log.record(3, VALUES)
    log.close()
    events = EventAccumulator(str(cfg.run_dir / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 1.5)]


@pytest.mark.parametrize("fails_at", ["import", "init", "log"])
def test_a_failing_wandb_is_reported_and_never_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str) -> None:
    """A stand-in package whose service is down at one of the three moments."""

    def down(*_: Any, **__: Any) -> None:
        raise ConnectionError("the service is down")

    run = types.SimpleNamespace(log=down)
    package = types.SimpleNamespace(init=down if fails_at == "init" else lambda **_: run)
    monkeypatch.setitem(sys.modules, "wandb", None if fails_at == "import" else package)
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(logging.getLogger("unisphere"), "handlers", [handler])
    cfg = config(tmp_path, log__wandb_project="p")
    log = logs.MetricsLog(cfg, World(), 0)
    log.record(1, VALUES)
    log.close()
    assert len(said) == 1 and "training goes on" in said[0]
    assert logs.read_metrics(cfg.run_dir / logs.METRICS) == [{"step": 1, **VALUES}]
