"""The short version of `make chaos`: a few rounds, of the kinds that differ most."""

from __future__ import annotations

from pathlib import Path

from tests import chaos


def test_a_disturbed_run_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    done = chaos.attack(tmp_path, rounds=3, seed=20)
    assert sum(done.values()) == 3 and len(done) == 3
