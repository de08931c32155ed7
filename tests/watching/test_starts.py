"""Starts that lead nowhere are told from those that do."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.dist import World
from pipeline.errors import NoProgress
from pipeline.watching import starts


def test_only_the_last_starts_at_the_same_step_count() -> None:
    died = [{"start": 0}, {"start": 40}, {"start": 40}]
    assert starts.died_at(died, 40) == 2
    assert starts.died_at(died, 0) == 0
    assert starts.died_at([*died, {"end": "stopped", "step": 40}], 40) == 0
    assert starts.died_at([], 0) == 0


def test_a_start_after_two_that_died_is_refused_until_somebody_looked(tmp_path: Path) -> None:
    for _ in range(2):
        starts.begin(tmp_path, 6, World(), limit=2)
    with pytest.raises(NoProgress, match=r"2 starts in a row continued .* from step 6 and died.*delete .*starts\.jsonl"):
        starts.begin(tmp_path, 6, World(), limit=2)
    starts.begin(tmp_path, 6, World(), limit=0)
    starts.begin(tmp_path, 8, World(), limit=2)  # further than before
    starts.end(tmp_path, 10, World(), "stopped")
    starts.begin(tmp_path, 8, World(), limit=1)


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path: Path) -> None:
    (tmp_path / starts.STARTS).write_text('{"start": 0}\n{"sta')
    assert starts.read(tmp_path / starts.STARTS) == [{"start": 0}]
