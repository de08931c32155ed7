"""--retry-failed: the rows that failed are read again, nothing else is, and the end is that of a build that had them all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.build import build
from data_prep.settings import Settings
from data_prep.sources import open_source
from data_prep.verify import verify
from pipeline.errors import DataError
from tests.data_prep.test_build import contents

Table = Callable[..., Path]


def hide(table: Path, *numbers: int) -> None:
    for number in numbers:
        (table.parent / f"{number}.png").rename(table.parent / f"hidden-{number}")


def show(table: Path, *numbers: int) -> None:
    for number in numbers:
        (table.parent / f"hidden-{number}").rename(table.parent / f"{number}.png")


@pytest.mark.parametrize("hidden", [(0,), (3, 4), (2, 3), (2, 3, 8), tuple(range(8))])
def test_the_result_is_that_of_a_build_that_had_found_them(tmp_path: Path, table: Table, hidden: tuple[int, ...]) -> None:
    """Also when a shard that had no sample at all comes back, which moves the numbers of those behind it."""
    path = table(9, [{"image": "0.png", "caption": ""}])
    settings = Settings(shard_size=2)
    build(open_source(str(path)), tmp_path / "whole", settings=settings)
    hide(path, *hidden)
    first = build(open_source(str(path)), tmp_path / "out", settings=settings)
    assert first.rejected == {"image-missing": len(hidden), "caption-empty": 1}
    show(path, *hidden)
    again = build(open_source(str(path)), tmp_path / "out", settings=settings, retry_failed=True)
    assert again.rejected == {"caption-empty": 1}
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not verify([str(tmp_path / "out")]).counts


def test_good_images_are_not_read_again(tmp_path: Path, table: Table) -> None:
    path = table(6)
    hide(path, 3)
    build(open_source(str(path)), tmp_path / "out", shard_size=4)
    show(path, 3)
    for number in (0, 1, 2, 4, 5):
        (path.parent / f"{number}.png").write_bytes(b"broken since")
    report = build(open_source(str(path)), tmp_path / "out", shard_size=4, retry_failed=True)
    assert (report.accepted, report.num_reused) == (6, 1)


def test_rows_that_fail_again_stay_rejected(tmp_path: Path, table: Table) -> None:
    path = table(5)
    hide(path, 1, 2)
    build(open_source(str(path)), tmp_path / "out", shard_size=2)
    show(path, 2)
    report = build(open_source(str(path)), tmp_path / "out", shard_size=2, retry_failed=True)
    assert (report.accepted, report.rejected) == (4, {"image-missing": 1})
    hidden_again = contents(tmp_path / "out")
    build(open_source(str(path)), tmp_path / "out", shard_size=2, retry_failed=True)
    assert contents(tmp_path / "out") == hidden_again


def test_a_row_that_comes_back_takes_its_place_before_its_duplicates(tmp_path: Path, table: Table) -> None:
    path = table(6)
    for twin in (2, 4):
        shutil.copy(path.parent / "0.png", path.parent / f"{twin}.png")
    settings = Settings(shard_size=2, duplicates="exact")
    build(open_source(str(path)), tmp_path / "whole", settings=settings)
    hide(path, 0)
    build(open_source(str(path)), tmp_path / "out", settings=settings)
    show(path, 0)
    build(open_source(str(path)), tmp_path / "out", settings=settings, retry_failed=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_without_a_finished_build_there_is_nothing_to_retry(tmp_path: Path, table: Table) -> None:
    with pytest.raises(DataError, match="holds no finished build whose failed rows could be read again"):
        build(open_source(str(table(2))), tmp_path / "out", retry_failed=True)


def test_edited_files_are_noticed(tmp_path: Path, table: Table) -> None:
    path = table(4)
    hide(path, 1)
    build(open_source(str(path)), tmp_path / "out", shard_size=2)
    (tmp_path / "out" / "rejects.jsonl").write_text("")
    with pytest.raises(DataError, match=r"pairs-000000\.tar does not fit rejects\.jsonl; pass --force"):
        build(open_source(str(path)), tmp_path / "out", shard_size=2, retry_failed=True)


def test_the_option(tmp_path: Path, table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(3)
    hide(path, 1)
    command = ["build", str(path), str(tmp_path / "out")]
    assert main(command) == 0
    show(path, 1)
    capsys.readouterr()
    assert main([*command, "--retry-failed"]) == 0
    assert "rejected                           0" in capsys.readouterr().out
