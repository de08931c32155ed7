"""Killed with signal 9 at every file operation of a save: what is found afterwards is always whole, and the next save succeeds.

Python tells a process about each of its own file operations (``sys.addaudithook``), so a process can kill itself at exactly the
n-th one without anything in the code knowing about it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import checkpoint
from pipeline.checkpoint import Saver
from pipeline.config import CheckpointConfig
from pipeline.dist import World
from tests.checkpoint.fakes import SETTINGS, FakeEngine, names, run_config, save, state
from tests.distributed import RanksFailed, run_ranks

CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
STEPS = 3
"""The third save deletes the first checkpoint, so that a save has everything in it that it can have."""


def save_and_die(world: World, run: str, at: int, before: tuple[int, ...]) -> int:
    """Save the steps ``before``, then the third up to its file operation number ``at``; how many there are if 0."""
    saver = Saver(CheckpointConfig(keep_last=2), Path(run), FakeEngine(averaged=True), world=world)
    for step in before:
        saver._engine = FakeEngine(step, averaged=True)
        saver.save(state(step))
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in CHANGES and run in str(arguments[0]):
            seen += 1
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    saver._engine = FakeEngine(STEPS, averaged=True)
    saver.save(state(STEPS))
    return seen


@pytest.mark.parametrize("before", [(1, 2), (3,)], ids=["beside others", "in place of the only one"])
@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_moment_of_a_save(tmp_path: Path, stride: int, before: tuple[int, ...]) -> None:
    total = run_ranks(save_and_die, 1, str(tmp_path / "counting"), 0, before)[0]
    assert total >= 15, "a save writes, renames, and deletes"
    found = set()
    for at in sorted({*range(1, total + 1, stride), total}):
        run = tmp_path / str(at) / "run"
        with pytest.raises(RanksFailed, match="died with exit code -9"):
            run_ranks(save_and_die, 1, str(run), at, before)
        assert checkpoint.newest(run, deep=True) is not None
        engine = FakeEngine(-1.0, averaged=True)
        resumed = checkpoint.resume(run_config(run.parent), engine, SETTINGS, world=World())
        assert resumed is not None and engine.value == resumed.step, "the numbers are those of the step that it says it is"
        found.add(resumed.step)
        assert save(run, 4, FakeEngine(4), keep_last=2) == checkpoint.newest(run, deep=True)
        assert not [name for name in names(run) if name.startswith(".")], "nothing half-written stays"
    assert found == {before[-1], STEPS}, "before the pointer moved the one before, then the new one"


def lose_rank_1(world: World, run: str) -> None:
    """Two ranks save; in the second save rank 1 dies before its share is written."""
    saver = Saver(CheckpointConfig(), Path(run), FakeEngine(1.0, world), world=world)
    saver.save(state(1))

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and "shards/00001" in str(arguments[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    if world.rank == 1:
        sys.addaudithook(watch)
    saver.save(state(2))


def test_a_rank_that_dies_while_it_writes_takes_no_checkpoint_with_it(tmp_path: Path) -> None:
    with pytest.raises(RanksFailed, match="rank 1 of 2: died with exit code -9"):
        run_ranks(lose_rank_1, 2, str(tmp_path))
    newest = checkpoint.newest(tmp_path, deep=True)
    assert newest is not None and newest.name == "step-00000001"
    assert save(tmp_path, 2) == checkpoint.newest(tmp_path, deep=True)
