"""A job array: parts in any order, missing parts, two at once; the end is that of one process."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.__main__ import main
from data_prep.build import STAGING, build
from data_prep.settings import Settings
from data_prep.sources import open_source
from pipeline.errors import DataError
from tests.data_prep.test_build import contents

Table = Callable[..., Path]
SETTINGS = Settings(shard_size=2, duplicates="exact")


@pytest.fixture
def source(table: Table) -> Any:
    return open_source(str(table(11, [{"image": "none.png", "caption": "x"}, {"image": "3.png", "caption": "again"}])))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1,), ()])
def test_parts_and_a_merge_are_one_build(tmp_path: Path, source: Any, order: tuple[int, ...]) -> None:
    """Parts that never ran are packed by the merge."""
    build(source, tmp_path / "one", settings=SETTINGS)
    accepted = [build(source, tmp_path / "array", settings=SETTINGS, part=(i, 3)).accepted for i in order]
    assert all(number > 0 for number in accepted)
    assert not list((tmp_path / "array").glob("*.tar"))
    report = build(source, tmp_path / "array", settings=SETTINGS)
    assert report.num_reused == sum(len(range(i, 7, 3)) for i in order)
    assert contents(tmp_path / "array") == contents(tmp_path / "one")


def test_parts_may_run_at_once_but_not_beside_a_merge_or_themselves(tmp_path: Path, source: Any) -> None:
    out = tmp_path / "out"
    build(source, out, settings=SETTINGS, part=(0, 2))
    with open(out / STAGING / "=lock", "w") as lock, open(out / STAGING / "=part-0-of-2", "w") as mine:
        fcntl.flock(lock, fcntl.LOCK_SH)
        fcntl.flock(mine, fcntl.LOCK_EX)
        build(source, out, settings=SETTINGS, part=(1, 2))
        with pytest.raises(DataError, match="another build is writing to"):
            build(source, out, settings=SETTINGS, part=(0, 2))
        with pytest.raises(DataError, match="another build is writing to"):
            build(source, out, settings=SETTINGS)
    assert build(source, out, settings=SETTINGS).num_reused == 7


def test_the_option(tmp_path: Path, table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["build", str(table(4)), str(tmp_path / "out"), "--shard-size", "2"]
    assert main([*command, "--part", "1/2"]) == 0
    assert "part 1/2 is packed; when all parts are, run the same command without --part" in capsys.readouterr().out
    for wrong in ("2/2", "a/b", "-1/2", "1"):
        with pytest.raises(SystemExit):
            main([*command, f"--part={wrong}"])
        assert f"must be I/N with I from 0 to N - 1, got '{wrong}'" in capsys.readouterr().err
    assert main(command) == 0
    assert "kept 1 shards of an earlier run" in capsys.readouterr().out


def test_a_part_never_starts_over(tmp_path: Path, table: Table) -> None:
    with pytest.raises(DataError, match="--force would undo the other parts"):
        build(open_source(str(table(4))), tmp_path / "out", part=(0, 2), force=True)
