"""Settings of every test: one thread per process, and no launch variables of the shell that pytest was started in."""

from __future__ import annotations

import os

import pytest

# Before anything imports torch: several test processes share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_FOREIGN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


@pytest.fixture(autouse=True)
def _outside_any_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests give the same result inside a Slurm job or under another launcher."""
    for name in list(os.environ):
        if name in _FOREIGN or name.startswith("SLURM_"):
            monkeypatch.delenv(name)
