"""Ranks that are signalled, killed, held up, or compute nonsense: what follows, and that a new start continues equally."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from pipeline import checkpoint, config, logs
from pipeline.config import RunConfig
from pipeline.dist import World
from pipeline.errors import EXIT_REQUEUE
from pipeline.watching import starts
from tests.distributed import RanksFailed, run_ranks
from tests.runs import losses, run_config, write_shards
from tests.saboteur import at_step, outcome, send, stderr_into

QUICK = {"engine__heartbeat_seconds": 0.3}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run of two ranks; its folder also has the shards."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_shards(folder / "shards")
    cfg = run_config(folder)
    assert run_ranks(outcome_of, 2, cfg) == [("done", 0, "")] * 2
    return cfg


def outcome_of(world: World, cfg: RunConfig) -> tuple[str, int, str]:
    return outcome(cfg, world)


def like(undisturbed: RunConfig, tmp_path: Path, **changes: Any) -> RunConfig:
    """The same run, to be disturbed, in a folder of its own."""
    return run_config(tmp_path, data__train=undisturbed.data.train, **changes)


def assert_same_end(cfg: RunConfig, undisturbed: RunConfig) -> None:
    """Losses and samples of every step and the last weights, bitwise."""
    assert losses(cfg) == losses(undisturbed)
    assert keys(cfg) == keys(undisturbed)
    ends = [checkpoint.newest(run.run_dir) for run in (cfg, undisturbed)]
    mine, theirs = (checkpoint.read_weights(end) for end in ends if end is not None)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def keys(cfg: RunConfig) -> dict[int, int]:
    return {r["step"]: r["keys"] for r in logs.read_metrics(cfg.run_dir / logs.METRICS) if "loss" in r}


def signalled(
    world: World, cfg: RunConfig, ranks: tuple[int, ...], numbers: tuple[signal.Signals, ...]
) -> tuple[str, int, str]:
    if world.rank in ranks:
        at_step(cfg, 3, send(*numbers))
    return outcome(cfg, world)


@pytest.mark.parametrize(
    ("ranks", "numbers"),
    [
        pytest.param((0,), (signal.SIGTERM,), marks=pytest.mark.slow),
        ((1,), (signal.SIGUSR1,)),
        ((0, 1), (signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM)),
    ],
)
def test_a_signal_to_any_ranks_leads_to_one_save_and_the_requeue_code(
    undisturbed: RunConfig, tmp_path: Path, ranks: tuple[int, ...], numbers: tuple[signal.Signals, ...]
) -> None:
    cfg = like(undisturbed, tmp_path, checkpoint__every_steps=0)
    ends = run_ranks(signalled, 2, cfg, ranks, numbers)
    assert {(name, code) for name, code, _ in ends} == {("Stopped", EXIT_REQUEUE)}
    assert all(numbers[0].name in ends[rank][2] for rank in ranks)
    (saved,) = (cfg.run_dir / "checkpoints").glob("step-*")
    assert checkpoint.read_state(saved).step == max(losses(cfg)) < 10
    assert starts.read(cfg.run_dir / starts.STARTS)[-1]["end"] == "stopped"
    assert run_ranks(outcome_of, 2, cfg) == [("done", 0, "")] * 2
    assert_same_end(cfg, undisturbed)


def test_a_time_limit_saves_and_stops_before_it(undisturbed: RunConfig, tmp_path: Path) -> None:
    cfg = like(undisturbed, tmp_path, train__time_limit_minutes=1e-6)
    ((name, code, message),) = run_ranks(outcome_of, 1, cfg)
    assert (name, code) == ("Stopped", EXIT_REQUEUE) and "the time limit" in message
    assert checkpoint.newest(cfg.run_dir) is not None


def last_words(folder: Path, rank: int) -> tuple[str, int, str]:
    """How a rank ended, as it wrote itself, because another one's death is all that ``run_ranks`` reports."""
    name, code, message = json.loads((folder / f"end-{rank}").read_text())
    return name, code, message


def killed(world: World, cfg: RunConfig, rank: int, notes: Path) -> None:
    if world.rank == rank:
        at_step(cfg, 7, send(signal.SIGKILL))
    (notes / f"end-{world.rank}").write_text(json.dumps(outcome(cfg, world)))


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_rank_is_named_by_the_others_and_a_new_start_continues_equally(
    undisturbed: RunConfig, tmp_path: Path, rank: int
) -> None:
    cfg = like(undisturbed, tmp_path, checkpoint__background=False, **QUICK)
    with pytest.raises(RanksFailed, match=f"rank {rank} of 2: died with exit code -9"):
        run_ranks(killed, 2, cfg, rank, tmp_path)
    name, code, message = last_words(tmp_path, 1 - rank)
    assert (name, code) == ("RankLost", 7)
    assert f"no sign of life for 1.8 s from rank {rank} (host " in message and "last seen in step" in message
    assert checkpoint.newest(cfg.run_dir) is not None
    assert run_ranks(outcome_of, 2, cfg) == [("done", 0, "")] * 2
    assert_same_end(cfg, undisturbed)


@pytest.mark.slow
def test_torchrun_starts_the_ranks_again_and_the_losses_stay_equal(undisturbed: RunConfig, tmp_path: Path) -> None:
    """One rank is killed; the agent ends the other and starts both again."""
    cfg = like(undisturbed, tmp_path, checkpoint__background=False, **QUICK)
    (tmp_path / "run.yaml").write_text(config.dump(cfg))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    command += ["-m", "pipeline.train", str(tmp_path / "run.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    agent = subprocess.Popen([sys.executable, *command], env=environment)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and max(losses_so_far(cfg), default=0) < 7 and agent.poll() is None:
        time.sleep(0.02)
    ranks = [child for child in psutil.Process(agent.pid).children() if "pipeline.train" in child.cmdline()]
    ranks[-1].kill()
    assert agent.wait(timeout=250) == 0
    assert_same_end(cfg, undisturbed)


def losses_so_far(cfg: RunConfig) -> dict[int, float]:
    return losses(cfg) if (cfg.run_dir / logs.METRICS).exists() else {}


def held_up(world: World, cfg: RunConfig, notes: Path) -> None:
    """Rank 1's main thread sleeps, wherever it is, from step 3 on."""
    stderr_into(notes, world.rank)
    if world.rank == 1:
        signal.signal(signal.SIGALRM, lambda number, frame: time.sleep(60))
        at_step(cfg, 3, send(signal.SIGALRM))
    (notes / f"end-{world.rank}").write_text(json.dumps(outcome(cfg, world)))


def test_a_stall_dumps_every_rank_s_stacks_and_names_the_late_one(undisturbed: RunConfig, tmp_path: Path) -> None:
    cfg = like(undisturbed, tmp_path, engine__stall_seconds=1.0, engine__collective_timeout_seconds=4, **QUICK)
    with pytest.raises(RanksFailed):
        run_ranks(held_up, 2, cfg, tmp_path)
    for rank in (0, 1):
        said = (tmp_path / f"stderr-{rank}").read_text()
        assert f"rank {rank} has been in step" in said and "the late one is rank 1 (host " in said
        assert "most recent call first" in said and "watchdog.py" in said


def poisoned(world: World, cfg: RunConfig, steps: dict[int, int], factor: float) -> tuple[str, int, str]:
    """The loss of rank 1 is ``factor`` times itself in the given steps, as often as they say."""
    from pipeline.losses import Objective

    sound, left = Objective.__call__, dict(steps)

    def call(self: Objective, features: Any, *, step: int, epoch: int = 0) -> Any:
        losses = sound(self, features, step=step, epoch=epoch)
        if world.rank == 1 and left.get(step, 0):
            left[step] -= 1
            object.__setattr__(losses, "total", losses.total * factor)
        return losses

    Objective.__call__ = call  # type: ignore[method-assign]
    return outcome(cfg, world)


def test_a_bad_step_is_skipped_and_a_resumed_run_skips_it_too(undisturbed: RunConfig, tmp_path: Path) -> None:
    cfg = like(undisturbed, tmp_path, engine__zero_stage=2, log__every_steps=1)
    assert run_ranks(poisoned, 2, cfg, {4: 1, 7: 1}, float("nan")) == [("done", 0, "")] * 2
    records = logs.read_metrics(cfg.run_dir / logs.METRICS)
    assert [r["skipped"] for r in records if "loss" in r] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    again = like(undisturbed, tmp_path, engine__zero_stage=2, name="again",
                 resume_from=str(cfg.run_dir / "checkpoints" / "step-00000006"))  # fmt: skip
    run_ranks(poisoned, 2, again, {7: 1}, float("nan"))
    whole = losses(cfg)
    assert {step: loss for step, loss in losses(again).items() if step != 8} == {step: whole[step] for step in (7, 9, 10)}


def test_many_bad_steps_lead_back_to_the_last_checkpoint_and_past_the_batches_since(
    undisturbed: RunConfig, tmp_path: Path
) -> None:
    cfg = like(undisturbed, tmp_path, numbers__max_skips_in_a_row=2, checkpoint__every_steps=3, checkpoint__background=False)
    assert run_ranks(poisoned, 2, cfg, {3: 1, 4: 1}, float("inf")) == [("done", 0, "")] * 2
    records = logs.read_metrics(cfg.run_dir / logs.METRICS)
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 11))
    assert {"event": "rollback", "step": 3} in records and records[-1]["rollbacks"] == 1
    normal, passed = keys(undisturbed), keys(cfg)
    assert [passed[step] for step in (1, 2, 3)] == [normal[step] for step in (1, 2, 3)]
    assert [passed[step] for step in (4, 5, 6, 7, 8)] == [normal[step] for step in (6, 7, 8, 9, 10)]
    end = checkpoint.newest(cfg.run_dir)
    assert end is not None and checkpoint.read_state(end).notes["passed_over"] == 2


def test_numbers_that_stay_bad_end_every_rank_with_one_code(undisturbed: RunConfig, tmp_path: Path) -> None:
    cfg = like(undisturbed, tmp_path, numbers__max_skips_in_a_row=2, checkpoint__every_steps=3)
    ends = run_ranks(poisoned, 2, cfg, dict.fromkeys(range(4, 20), 9), float("nan"))
    assert {(name, code) for name, code, _ in ends} == {("NumericsError", 4)}
    assert all("the loss is nan at step 6, the last of 2 skipped in a row, after going back 1 times" in e[2] for e in ends)
    without = like(undisturbed, tmp_path, name="without", numbers__max_skips_in_a_row=2, checkpoint__every_steps=0)
    ends = run_ranks(poisoned, 2, without, dict.fromkeys(range(20), 9), float("nan"))
    assert all("there is no checkpoint yet to go back to" in message for _, _, message in ends)


def test_bad_steps_in_a_row_add_up_over_starts(undisturbed: RunConfig, tmp_path: Path) -> None:
    """Every start is asked to stop after one step of three that would be too many; the run ends nevertheless."""
    cfg = like(undisturbed, tmp_path, numbers__max_skips_in_a_row=3, numbers__max_rollbacks=0, train__time_limit_minutes=1e-6)
    ends = [run_ranks(always_nan, 1, cfg)[0] for _ in range(3)]
    assert [name for name, _, _ in ends] == ["Stopped", "Stopped", "NumericsError"]
    assert "the loss is nan at step 3, the last of 3 skipped in a row" in ends[-1][2]


def test_starts_that_lead_nowhere_are_refused(undisturbed: RunConfig, tmp_path: Path) -> None:
    cfg = like(undisturbed, tmp_path, numbers__max_skips_in_a_row=1, numbers__max_rollbacks=0)
    for _ in range(2):
        ((name, _, _),) = run_ranks(always_nan, 1, cfg)
        assert name == "NumericsError"
    ((name, code, message),) = run_ranks(outcome_of, 1, cfg)
    assert (name, code) == ("NoProgress", 8)
    assert "2 starts in a row continued" in message and "from step 0" in message and "starts.jsonl" in message
    (cfg.run_dir / starts.STARTS).unlink()
    assert run_ranks(outcome_of, 1, cfg) == [("done", 0, "")]


def always_nan(world: World, cfg: RunConfig) -> tuple[str, int, str]:
    from pipeline.losses import Objective

    sound = Objective.__call__

    def call(self: Objective, features: Any, *, step: int, epoch: int = 0) -> Any:
        losses = sound(self, features, step=step, epoch=epoch)
        object.__setattr__(losses, "total", losses.total * float("nan"))
        return losses

    Objective.__call__ = call  # type: ignore[method-assign]
    return outcome(cfg, world)
