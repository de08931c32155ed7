"""Memory does not grow with what comes in: a million rows, a caption of gigabytes, a tar of empty members, a Parquet bomb."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from data_prep.build import build, survey
from data_prep.parquet import records
from data_prep.settings import Settings
from data_prep.sources import open_source
from data_prep.tables import MAX_LINE_BYTES
from pipeline.data.tar import END_OF_ARCHIVE, member_bytes
from pipeline.errors import DataError
from tests.data_prep.conftest import encode


def test_a_tar_of_many_empty_members_takes_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    with open(tmp_path / "set.tar", "wb") as handle:
        for number in range(5_000):
            handle.write(member_bytes(f"{number % 7 or 'one'}.x{number}", b""))  # also many members under one key
        handle.write(END_OF_ARCHIVE)
    tracemalloc.start()
    number = sum(1 for _ in open_source(str(tmp_path / "set.tar")).rows())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == 5_000
    assert peak < 3 << 20


def test_a_caption_without_end_is_counted_and_never_held(tmp_path: Path) -> None:
    import tracemalloc

    fields = b'{"image": "0.png", "caption": "'
    (tmp_path / "0.png").write_bytes(encode(0))
    with open(tmp_path / "set.jsonl", "wb") as handle:
        handle.write(fields + b"first" + b'"}\n' + fields)
        handle.seek(6 * MAX_LINE_BYTES, 1)  # a hole in the file: 100 MB of zeros
        handle.write(b'"}\n' + fields + b'last"}\n')
    (tmp_path / "set.csv").write_bytes(b"image,caption\n0.png,first\n0.png," + b"z" * (2 * MAX_LINE_BYTES) + b"\n0.png,last\n")
    for name in ("set.jsonl", "set.csv"):
        tracemalloc.start()
        rows = list(open_source(str(tmp_path / name)).rows())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert [row.captions for row in rows] == [("first",), (), ("last",)]
        assert rows[1].problem is not None
        assert rows[1].problem.cause in ("caption-too-long", "row-invalid")
        assert peak < 8 * MAX_LINE_BYTES


def test_sidecars_without_end_are_counted(tmp_path: Path) -> None:
    """Ten gigabytes beside an image: a hole in the file, which takes no room and is not read either."""
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.png").write_bytes(encode(0))
    (tmp_path / "in" / "a.txt").write_text("a caption")
    with open(tmp_path / "in" / "b.txt", "wb") as handle:
        handle.truncate(10 << 30)
    report = build(open_source(str(tmp_path / "in")), tmp_path / "out")
    assert (report.accepted, report.rejected) == (1, {"caption-too-long": 1})


def test_a_parquet_cell_without_end_is_counted_and_never_built(tmp_path: Path) -> None:
    """A text of 20 MB that two hundred rows share is 4 GB when it is written out; the file has some kilobytes."""
    texts = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0, *[1] * 200, 2], pyarrow.int32()), ["first", "x" * 20_000_000, "last"]
    )
    table = pyarrow.table({"image": [f"{n}.png" for n in range(len(texts))], "caption": texts})
    parquet.write_table(table, tmp_path / "set.parquet", compression="zstd", dictionary_pagesize_limit=1 << 26)
    rows = list(open_source(str(tmp_path / "set.parquet")).rows())
    assert [rows[0].captions, rows[-1].captions] == [("first",), ("last",)]
    problems = [row.problem for row in rows[1:-1]]
    assert len(problems) == 200
    assert all(problem is not None and problem.cause == "caption-too-long" for problem in problems)
    assert problems[0] is not None and problems[0].detail == "column 'caption' has 20,000,000 bytes, at most 16,777,216"


def test_a_parquet_column_without_end_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.parquet.MAX_COLUMN_BYTES", 100_000)
    table = {"image": ["0.png", "1.png"], "caption": ["a", "b" * 200_000], "numbers": [[1] * 20_000, []]}
    for column in ("caption", "numbers"):
        names = ["image", "caption"] if column == "caption" else ["image", "numbers"]
        parquet.write_table(pyarrow.table({name: table[name] for name in names}), tmp_path / "set.parquet")
        with pytest.raises(DataError, match=rf"column '{column}.* row group 0 of 2 rows, at most 100,000 are read; write the"):
            list(records(str(tmp_path / "set.parquet")))
    assert len(list(records(str(tmp_path / "set.parquet"), ["image"]))) == 2, "a column that is not read is no harm"


def test_damage_in_a_parquet_file_is_explained(tmp_path: Path) -> None:
    parquet.write_table(
        pyarrow.table({"image": ["0.png"] * 2000, "caption": [f"c{n}" for n in range(2000)]}), tmp_path / "set.parquet"
    )
    data = bytearray((tmp_path / "set.parquet").read_bytes())
    data[4:400] = bytes(396)
    (tmp_path / "set.parquet").write_bytes(data)
    with pytest.raises(DataError, match=r"set\.parquet cannot be read as Parquet: .* run the same command again"):
        list(open_source(str(tmp_path / "set.parquet")).rows())


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path) -> None:
    """500 and 4,000 rows of 4 kB, the fewer already twenty shards; the planner alone, none of their images exists."""
    import tracemalloc

    peaks, text = [], "long " * 800
    for number in (500, 4_000):
        with open(tmp_path / "set.jsonl", "w") as handle:
            handle.writelines(f'{{"image": "{n}.png", "caption": "{text} {n}", "key": "k{n}"}}\n' for n in range(number))
        source = open_source(str(tmp_path / "set.jsonl"))
        tracemalloc.start()
        assert survey(source, Settings(shard_size=25)).accepted == number
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + (2 << 20), "4,000 rows are 16 MB"


# VmHWM and not ru_maxrss, which a process that was started by a large one inherits.
MEMORY = """
import re
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024)
"""
PEAK = """
import sys
from data_prep.build import survey
from data_prep.settings import Settings
from data_prep.sources import open_source
assert survey(open_source(sys.argv[1]), Settings(shard_size=1000)).accepted == int(sys.argv[2])
"""
BUILD = """
import sys
from data_prep.build import build
from data_prep.sources import open_source
report = build(open_source(sys.argv[1]), sys.argv[2])
assert (report.accepted, report.rejected) == (1, {"image-missing": int(sys.argv[3])}), report
"""


def peak_of(script: str, *arguments: object) -> int:
    """Bytes that a Python script takes at most, in a process of its own."""
    command = [sys.executable, "-c", script + MEMORY, *map(str, arguments)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_a_million_rows_take_the_memory_of_fifty_thousand(tmp_path: Path) -> None:
    peaks = []
    for number in (50_000, 1_000_000):
        with open(tmp_path / "set.jsonl", "w") as handle:
            handle.writelines(
                f'{{"image": "{n}.png", "caption": "caption number {n}", "key": "k{n}"}}\n' for n in range(number)
            )
        peaks.append(peak_of(PEAK, tmp_path / "set.jsonl", number))
    assert peaks[1] - peaks[0] < 64 << 20, f"{peaks[0] >> 20} and {peaks[1] >> 20} MiB"


@pytest.mark.slow
def test_a_caption_of_ten_gigabytes_takes_the_memory_of_a_short_one(tmp_path: Path) -> None:
    """In a line of a table, and in a tar; both are holes in their files."""
    fields = b'{"image": "0.png", "caption": "'
    for name, num_bytes in (("short.jsonl", 1), ("long.jsonl", 10 << 30)):
        with open(tmp_path / name, "wb") as handle:
            handle.write(fields + b'first"}\n' + fields)
            handle.seek(num_bytes, 1)
            handle.write(b'"}\n')
    header = tarfile.TarInfo("0.txt")
    header.size = 10 << 30
    with open(tmp_path / "long.tar", "wb") as handle:
        handle.write(member_bytes("0.png", encode(0)) + header.tobuf(tarfile.GNU_FORMAT))
        handle.seek(header.size, 1)
        handle.write(member_bytes("1.png", encode(1)) + member_bytes("1.txt", b"last") + END_OF_ARCHIVE)
    short = peak_of(PEAK, tmp_path / "short.jsonl", 1)
    for name in ("long.jsonl", "long.tar"):
        assert peak_of(PEAK, tmp_path / name, 1) - short < 4 * MAX_LINE_BYTES, name


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_empty_members_take_the_memory_of_ten_thousand(tmp_path: Path) -> None:
    """A build of them from start to end, which rejects all but one."""
    peaks = []
    good = member_bytes("good.png", encode(0)) + member_bytes("good.txt", b"a caption")
    empty = b"".join(member_bytes(f"{letter}.txt", b"") for letter in "abcdefgh")
    for number in (10_000, 1_000_000):
        with open(tmp_path / "set.tar", "wb") as handle:
            handle.write(good)
            handle.writelines(empty for _ in range(number // 8))
            handle.write(END_OF_ARCHIVE)
        peaks.append(peak_of(BUILD, tmp_path / "set.tar", tmp_path / str(number), number))
    assert peaks[1] - peaks[0] < 64 << 20, f"{peaks[0] >> 20} and {peaks[1] >> 20} MiB"
