"""What a run writes: rank 0 only, monotone over restarts, and never stopped by a view that fails."""

from __future__ import annotations

import json
import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from pipeline import logs
from pipeline.config import RunConfig, dump
from pipeline.dist import World
from tests.distributed import run_ranks
from tests.peers import run_peer
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


@pytest.mark.parametrize("fails_at", ["import", "init", "log", "finish"])
def test_a_failing_wandb_is_reported_and_never_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str) -> None:
    """A stand-in package whose service is down at one of the four moments."""

    def down(*_: Any, **__: Any) -> None:
        raise ConnectionError("the service is down")

    def up(*_: Any, **__: Any) -> None:
        return None

    run = types.SimpleNamespace(log=down if fails_at == "log" else up, finish=down if fails_at == "finish" else up)
    package = types.SimpleNamespace(init=down if fails_at == "init" else lambda **_: run)
    monkeypatch.setitem(sys.modules, "wandb", None if fails_at == "import" else package)
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(logging.getLogger("unisphere"), "handlers", [handler])
    cfg = config(tmp_path, log__wandb_project="p")
    log = logs.MetricsLog(cfg, World(), 0)
    log.record(1, VALUES)
    log.record(2, VALUES)
    log.close()
    assert len(said) == 1 and "training goes on" in said[0], "said once, not at every record"
    assert logs.read_metrics(cfg.run_dir / logs.METRICS) == [{"step": 1, **VALUES}, {"step": 2, **VALUES}]


def test_wandb_gets_the_same_scalars_and_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in package that remembers: two processes of one run, then a run that starts over."""
    begun: list[dict[str, Any]] = []
    logged: list[tuple[int, dict[str, float]]] = []
    ended: list[bool] = []

    def init(**given: Any) -> Any:
        begun.append(given)
        log = lambda values, step: logged.append((step, values))  # noqa: E731
        return types.SimpleNamespace(log=log, finish=lambda: ended.append(True))

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    cfg = config(tmp_path, log__wandb_project="p")
    for start, step in ((0, 1), (1, 2), (0, 1)):
        log = logs.MetricsLog(cfg, World(), start)
        log.record(step, VALUES)
        log.close()
    assert logged == [(1, VALUES), (2, VALUES), (1, VALUES)]
    assert len(ended) == 3
    assert begun[0]["id"] == begun[1]["id"] != begun[2]["id"], "resumed, and then started over"
    assert all(given["project"] == "p" and given["name"] == "run" and given["resume"] == "allow" for given in begun)
    assert begun[0]["config"]["train"]["steps"] == 10
    assert all(given["settings"]["init_timeout"] <= 60 for given in begun), "a service that is away holds nothing up for long"


OFFLINE = """
import glob, json, sys
from pathlib import Path
from pipeline import logs
from pipeline.config import load
from pipeline.dist import World
cfg = load(Path(sys.argv[1]))
for start, steps in ((0, (1, 2)), (2, (3,))):
    log = logs.MetricsLog(cfg, World(), start)
    for step in steps:
        log.record(step, {"loss": 5.0 - step, "lr": 0.1})
    log.close()
from wandb.proto import wandb_internal_pb2

def records(data):  # LevelDB's log format after a header of 7 bytes: blocks of 32 KiB with pieces (sum 4, length 2, type 1)
    place, whole = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # complete, or the last piece
            yield whole
            whole = b""

for path in sorted(glob.glob(str(cfg.run_dir / "wandb" / "offline-run-*" / "*.wandb"))):
    ident, rows = "", []
    for piece in records(Path(path).read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(piece)
        ident = record.run.run_id or ident
        if record.HasField("history"):
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append([items["_step"], items["loss"], items["lr"]])
    print(json.dumps([ident, rows]))
"""


@pytest.mark.slow  # needs the peers' environment, which `make test-slow` builds
def test_wandb_itself_keeps_the_run_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(tmp_path, log__wandb_project="p")
    (tmp_path / "config.yaml").write_text(dump(cfg))
    monkeypatch.setenv("WANDB_MODE", "offline")
    printed = run_peer(OFFLINE, str(tmp_path / "config.yaml"))
    found = [json.loads(line) for line in printed.splitlines() if line.startswith("[")]
    assert [rows for _, rows in found] == [[[1, 4.0, 0.1], [2, 3.0, 0.1]], [[3, 2.0, 0.1]]]
    assert found[0][0] == found[1][0] == (cfg.run_dir / logs.WANDB_ID).read_text().strip(), "one run in two parts"


def full_disk(world: World, path: Path) -> tuple[list[str], list[str]]:
    """Lines written while files of this process may not grow, and after that."""
    import resource

    lines = logs.Lines(path, 0, logs.get_logger(world))
    lines.add("a" * 40)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, resource.RLIM_INFINITY))
    lines.add("b" * 40)
    lines.add("c" * 40)
    during = path.read_text().split("\n")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    lines.add("d")
    lines.close()
    return during, path.read_text().split("\n")


def test_lines_that_a_full_disk_refuses_are_written_later_and_stay_whole(tmp_path: Path) -> None:
    ((during, after),) = run_ranks(full_disk, 1, tmp_path / "lines")
    assert during == ["a" * 40, "b" * 19]
    assert after == ["a" * 40, "b" * 40, "c" * 40, "d", ""]


def test_a_record_in_words() -> None:
    assert logs.describe({"loss": 1.23456}) == "loss 1.2346"
    figures = {"loss": 1.0, "samples_per_second": 310.4, "mfu": 0.412, "data_wait_share": 0.5, "eta_seconds": 7384.2}
    assert logs.describe(figures) == "loss 1.0000 · 310 pairs/s · MFU 41% · waits 50% for data · 2:03:04 to go"


def test_a_number_that_is_not_finite_is_null_in_the_file(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    log = logs.MetricsLog(cfg, World(), 0)
    log.record(1, {"loss": float("nan"), "grad_norm": float("inf"), "lr": 0.1})
    log.close()
    assert (cfg.run_dir / logs.METRICS).read_text() == '{"step": 1, "loss": null, "grad_norm": null, "lr": 0.1}\n'


def test_going_back_forgets_what_was_logged_since(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    log = logs.MetricsLog(cfg, World(), 0)
    for step in (1, 2, 3):
        log.record(step, VALUES)
    log.go_back(1)
    log.record(2, {"loss": 7.0})
    log.close()
    assert logs.read_metrics(cfg.run_dir / logs.METRICS) == [
        {"step": 1, **VALUES},
        {"event": "rollback", "step": 1},
        {"step": 2, "loss": 7.0},
    ]
