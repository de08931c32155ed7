"""kill -9: see ``kill_matrix``, which forks and therefore runs in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def killed(folder: Path, num_rounds: int, seed: int) -> int:
    """Run the matrix; returns how many builds were killed. Its findings are failures of the process."""
    command = [sys.executable, "-m", "tests.data_prep.kill_matrix", str(folder), str(num_rounds), str(seed)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return sum(tally["killed"] for tally in json.loads(done.stdout).values())


def test_a_build_killed_at_random_points_loses_and_repeats_nothing(tmp_path: Path) -> None:
    assert killed(tmp_path, 8, seed=1) >= 5


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_build_killed_at_a_hundred_random_points_loses_and_repeats_nothing(tmp_path: Path) -> None:
    assert killed(tmp_path, 120, seed=2) >= 100
