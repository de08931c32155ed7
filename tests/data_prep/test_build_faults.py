"""What a machine does to a build: a full disk, a place that cannot be written, a source that goes away. Nothing is lost."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.build import STAGING, build
from data_prep.places import LocalPlace, open_place
from data_prep.rows import Row, Source
from data_prep.sources import open_source
from data_prep.verify import verify
from pipeline.errors import DataError
from tests.data_prep.conftest import encode
from tests.data_prep.test_build import contents

Table = Callable[..., Path]
AGAIN = "run the same command again: what was finished is kept"


def test_a_full_disk_is_explained_and_nothing_is_lost(tmp_path: Path, table: Table) -> None:
    """A limit on file sizes stands for the disk: writes beyond it fail as they do on a full one, and only in the child."""
    path, out = table(9), tmp_path / "out"
    (path.parent / "4.png").write_bytes(encode(4, "BMP", side=100))  # 30 kB: this shard does not fit
    build(open_source(str(path)), tmp_path / "whole", shard_size=2)
    command = [sys.executable, "-m", "data_prep", "build", str(path), str(out), "--shard-size", "2"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 3
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"cannot write {out}/{STAGING}/=/000002.tar: [Errno 27] File too large" in line and line.endswith(AGAIN)
    assert not list(out.glob("*.tar"))
    assert not list((out / STAGING / "=").glob(".*.tmp"))
    assert build(open_source(str(path)), out, shard_size=2).num_reused == 2
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("where", ["/proc/nothing/out", "/dev/full/out"])
def test_a_place_that_cannot_be_written_is_named(table: Table, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(table(1)), where]) == 3
    error = capsys.readouterr().err
    assert f"error: cannot write {where}/.build: " in error and AGAIN in error


def test_an_output_that_is_a_file_is_named(tmp_path: Path, table: Table) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(DataError, match=f"{tmp_path}/out is not a folder; choose another output"):
        build(open_source(str(table(1))), tmp_path / "out")


def test_an_image_that_may_not_be_read_is_counted(tmp_path: Path) -> None:
    """A folder under an image's name: the one refusal that root meets too."""
    (tmp_path / "0.png").write_bytes(encode(0))
    (tmp_path / "1.png").mkdir()
    (tmp_path / "set.csv").write_text("image,caption\n0.png,a\n1.png,b\n/proc/self/mem,c\n")
    report = build(open_source(str(tmp_path / "set.csv")), tmp_path / "out")
    assert (report.accepted, report.rejected) == (1, {"image-missing": 1, "read-failed": 1})


def vanishing(path: Path, at: int) -> Source:
    """The table as a source that is taken away, as by a failing mount, when row ``at`` is handed out."""
    source = open_source(str(path))
    passes = [0]

    def rows() -> Iterator[Row]:
        passes[0] += 1
        for row in source.rows():
            if row.number == at and passes[0] == 2:  # the first pass only counts
                path.parent.rename(path.parent.with_name("gone"))
            yield row

    return Source(source.name, rows, root=source.root)


def test_a_source_that_vanishes_stops_the_build_and_comes_back(tmp_path: Path, table: Table) -> None:
    path, out = table(9), tmp_path / "out"
    build(open_source(str(path)), tmp_path / "whole", shard_size=2)
    with pytest.raises(DataError, match=rf"the source {path.parent} is no longer there \(.*image-missing|no longer there"):
        build(vanishing(path, at=5), out, shard_size=2)
    assert not list(out.glob("*.tar"))
    path.parent.with_name("gone").rename(path.parent)
    report = build(open_source(str(path)), out, shard_size=2)
    assert report.num_reused == 2
    assert contents(out) == contents(tmp_path / "whole")


def test_reads_that_fail_without_end_stop_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.pack.MAX_FAILED_READS", 5)
    lines = "".join(f"/proc/self/mem,caption {number}\n" for number in range(20))
    (tmp_path / "set.csv").write_text("image,caption\n" + lines)
    with pytest.raises(DataError, match="5 images in a row could not be read, the last: /proc/self/mem: OSError"):
        build(open_source(str(tmp_path / "set.csv")), tmp_path / "out")


def test_a_staging_folder_that_was_tampered_with_is_packed_again(tmp_path: Path, table: Table) -> None:
    path, out = table(7), tmp_path / "out"
    build(open_source(str(path)), tmp_path / "whole", shard_size=2)
    for part in range(2):
        build(open_source(str(path)), out, shard_size=2, part=(part, 2))
    staged = out / STAGING / "="
    (staged / "000000.tar").write_bytes(b"other")
    (staged / "000001.json").write_text("{")
    (staged / "000002.index.jsonl").unlink()
    assert build(open_source(str(path)), out, shard_size=2).num_reused == 1
    assert contents(out) == contents(tmp_path / "whole")


def test_half_written_files_of_a_killed_build_are_swept(tmp_path: Path, table: Table) -> None:
    path, out = table(3), tmp_path / "out"
    build(open_source(str(path)), out, part=(0, 2))
    (out / ".manifest.jsonl.123.tmp").write_text("{")
    (out / STAGING / "=" / ".000000.tar.123.tmp").write_text("x")
    build(open_source(str(path)), out)
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
    assert not verify([str(out)]).counts


def test_publishing_without_hard_links_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_bytes(b"bytes")
    LocalPlace(tmp_path).publish("a", "sub/b")
    assert (tmp_path / "sub" / "b").read_bytes() == b"bytes"
    assert (tmp_path / "sub" / "b").stat().st_nlink == 1


def test_a_protocol_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(DataError, match="cannot list teleport://x: ValueError: Protocol not known: teleport"):
        open_place("teleport://x").entries()


def test_a_forced_build_that_was_killed_continues_without_force(tmp_path: Path, table: Table) -> None:
    path, out = table(6), tmp_path / "out"
    build(open_source(str(path)), out, shard_size=3)
    build(open_source(str(path)), tmp_path / "whole", shard_size=2)
    with pytest.raises(DataError, match="is no longer there"):
        build(vanishing(path, at=4), out, shard_size=2, force=True)
    shutil.move(path.parent.with_name("gone"), path.parent)
    assert build(open_source(str(path)), out, shard_size=2).num_reused == 2
    assert contents(out) == contents(tmp_path / "whole")
