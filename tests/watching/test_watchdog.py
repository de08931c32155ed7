"""A rank notices that its launcher, its neighbour, or another rank's main thread is gone, and leaves with a message."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from pipeline.config import EngineConfig
from pipeline.dist import World
from pipeline.errors import NumericsError, RankLost
from pipeline.watching.pace import Pace
from pipeline.watching.watchdog import Watchdog, meet
from tests.distributed import RanksFailed, run_ranks

ROOT = Path(__file__).parents[2]
QUICK = EngineConfig(heartbeat_seconds=0.2)


def hangs_in_native_code(world: World, notes: Path) -> None:
    """Rank 1 dies; rank 0's main thread waits for something that no other rank's death ends."""
    with Watchdog(world, QUICK, Pace().where):
        time.sleep(1)
        if world.rank == 1:
            os._exit(13)
        time.sleep(60)


def test_a_main_thread_that_never_comes_back_is_ended(tmp_path: Path) -> None:
    with pytest.raises(RanksFailed, match=r"(?s)rank 0 of 2: died with exit code 7.*rank 1 of 2: died with exit code 13"):
        run_ranks(hangs_in_native_code, 2, tmp_path)


def loses_rank_0_before_it_watches(world: World) -> None:
    if world.rank == 0:
        os._exit(13)
    time.sleep(0.5)
    with Watchdog(world, QUICK, Pace().where):
        pass


def test_a_rank_that_is_gone_right_after_the_meeting_is_a_lost_rank() -> None:
    with pytest.raises(RanksFailed, match=r"(?s)RankLost: rank 1 met the others, and then one of them was gone"):
        run_ranks(loses_rank_0_before_it_watches, 2)


def test_a_rank_that_never_comes_is_missed_after_the_time_limit() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        master = f"127.0.0.1:{probe.getsockname()[1]}"
    ((name, text),) = run_ranks(waits_for_rank_1, 1, master)
    assert name == "RankLost" and text.startswith(f"rank 0 of 2 did not meet all others at {master} within 2 s")


def waits_for_rank_1(world: World, master: str) -> tuple[str, str]:
    from pipeline import dist

    dist.shutdown()  # the harness's own group
    try:
        meet(World(0, 2, 0, 2, "env://", master), torch.device("cpu"), EngineConfig(collective_timeout_seconds=2))
    except RankLost as error:
        return type(error).__name__, str(error)
    return "met", ""


def fails_alone(world: World) -> str:
    """Rank 1 raises; rank 0 is in a collective."""
    from pipeline import dist

    try:
        with Watchdog(world, QUICK, Pace().where):
            if world.rank == 1:
                raise NumericsError("the loss is nan\nat step 3")
            dist.broadcast_object("never arrives", src=1)
    except NumericsError as error:
        dist.shutdown()  # as a process that ends
        return str(error)
    except RankLost as error:
        os._exit(error.exit_code if str(error) == "rank 1 failed: the loss is nan" else 1)
    return "not noticed"


def test_a_rank_that_fails_tells_the_others_why_and_they_leave_with_its_code() -> None:
    with pytest.raises(RanksFailed) as caught:
        run_ranks(fails_alone, 2)
    assert "rank 0 of 2: died with exit code 4" in str(caught.value)


PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(child.pid, flush=True)
time.sleep(60)
"""
CHILD = """
import signal, time
from pipeline.config import EngineConfig
from pipeline.dist import World
from pipeline.watching.pace import Pace
from pipeline.watching.watchdog import Watchdog, meet
{before}
with Watchdog(World(source="torchrun"), EngineConfig(heartbeat_seconds=0.1), Pace().where):
    open({ready!r}, "w").close()
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("before", "leaves"),  # said either way: whoever runs the tests may have used nohup
    [("signal.signal(signal.SIGHUP, signal.SIG_DFL)", True), ("signal.signal(signal.SIGHUP, signal.SIG_IGN)", False)],
)
def test_a_rank_leaves_when_its_launcher_is_killed_unless_it_was_started_to_outlive_it(
    tmp_path: Path, before: str, leaves: bool
) -> None:
    ready = tmp_path / "ready"
    command = [sys.executable, "-c", PARENT, CHILD.format(before=before, ready=str(ready))]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    deadline = time.monotonic() + 60
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    gone, alive = psutil.wait_procs([child], timeout=10 if leaves else 1)
    for process in alive:
        process.kill()
    assert ready.exists() and (len(gone) == 1) == leaves
