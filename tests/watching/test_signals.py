"""Wishes to stop and to save."""

from __future__ import annotations

import os
import signal
import time

import pytest

from pipeline.config import CheckpointConfig
from pipeline.dist import World
from pipeline.watching.signals import SaveWish, StopWish, deadline, listen
from tests.distributed import run_ranks


def test_the_earlier_limit_counts_and_the_launcher_s_leaves_time_to_save() -> None:
    assert deadline(1000.0, None, None, 120) is None
    assert deadline(1000.0, 10, None, 120) == 1600
    assert deadline(1000.0, 10, 1500.0, 120) == 1380
    assert deadline(1000.0, 1, 1500.0, 120) == 1060


def test_a_time_limit_becomes_a_reason_when_it_is_over() -> None:
    assert StopWish(time.time() + 100).reason == ""
    assert StopWish(time.time() - 1).reason == "the time limit"
    assert StopWish().reason == ""


def hear(world: World) -> list[str]:
    wish, heard = StopWish(), []
    listen()
    for number in (signal.SIGUSR2, signal.SIGTERM):
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        heard.append(wish.reason)
    return heard


def test_the_first_signal_is_the_reason_and_none_ends_the_process() -> None:
    assert run_ranks(hear, 1) == [["SIGUSR2", "SIGUSR2"]]


def test_a_wish_to_save_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    wish, never = SaveWish(CheckpointConfig(every_minutes=1)), SaveWish(CheckpointConfig())
    now[0] = 59
    assert not wish.due
    now[0] = 61
    assert wish.due and not never.due and wish.counts(7)
    wish.granted(8)
    assert not wish.due
    assert not wish.counts(8)  # uttered before the save, heard after it
    assert wish.counts(9)
