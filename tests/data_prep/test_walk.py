"""The walk through tars of unknown origin: it sees what GNU tar and Python write, and survives what they never would."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from data_prep.walk import Entry, Fault, pax_records, walk
from pipeline.data.tar import BLOCK, END_OF_ARCHIVE, MAX_NAME_HEADER_BYTES, member_bytes
from tests.data_prep.tars import Bounded, claiming, pax, sample, special, tar_of

GOOD = tar_of(sample(1), sample(2))


def entries(raw: bytes, keep: int = 0) -> list[Entry]:
    return [item for item in walk(io.BytesIO(raw), lambda name, size: keep) if isinstance(item, Entry)]


def faults(raw: bytes) -> list[str]:
    return [item.kind for item in walk(io.BytesIO(raw)) if isinstance(item, Fault)]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_python_writes_is_seen_as_python_reads_it(form: int) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=form) as archive:
        for name in ("a/1.jpg", "d" * 90 + "/1.txt", "ü.json"):
            info = tarfile.TarInfo(name)
            info.size = 700
            archive.addfile(info, io.BytesIO(name[:1].encode() * 700))
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    seen = entries(raw.getvalue(), keep=3)
    with tarfile.open(fileobj=io.BytesIO(raw.getvalue())) as archive:
        expected = [(info.name, info.offset_data, info.size) for info in archive.getmembers()]
    assert [(entry.name.rstrip("/"), entry.data_offset, entry.size) for entry in seen] == expected
    assert [entry.kind for entry in seen] == ["file", "file", "file", "folder"]
    assert [len(entry.data) for entry in seen] == [3, 3, 3, 0]
    assert faults(raw.getvalue()) == []


def test_what_gnu_tar_writes_is_seen(tmp_path: Path) -> None:
    (tmp_path / ("k" * 120 + ".txt")).write_bytes(b"x" * 600)
    (tmp_path / "link").symlink_to("elsewhere")
    subprocess.run(["tar", "-cf", "all.tar", "--exclude=all.tar", "."], cwd=tmp_path, check=True)
    kinds = {entry.name.rpartition("/")[2][:4]: entry.kind for entry in entries((tmp_path / "all.tar").read_bytes())}
    assert kinds == {"": "folder", "kkkk": "file", "link": "link"}


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.jpg", "a/../../x.jpg", "..\\x.jpg", "C:\\x.jpg", ".."])
def test_names_that_climb_out_are_known(name: str) -> None:
    assert entries(tar_of({name: b""}))[0].escapes


def test_harmless_names_do_not_escape() -> None:
    assert not any(entry.escapes for entry in entries(tar_of({"./a/..b.jpg": b"", "a...txt": b"", "a:b.jpg": b""})))


def test_every_cut_is_found_and_named_right() -> None:
    boundaries = {entry.end for entry in entries(GOOD)} | {0}
    for length in range(0, len(GOOD) - len(END_OF_ARCHIVE) + 1, 128):
        expected = "tar-truncated-at-boundary" if length in boundaries else "tar-truncated-in-member"
        assert faults(GOOD[:length]) == [expected], length


def test_the_walk_goes_on_behind_damage() -> None:
    raw = bytearray(GOOD)
    raw[:BLOCK] = b"\xff" * BLOCK
    assert faults(bytes(raw)) == ["tar-damaged"]
    assert [entry.name for entry in entries(bytes(raw))] == ["0001.txt", "0002.png", "0002.txt"]


def test_tars_joined_with_cat_are_a_fault_and_are_read() -> None:
    assert faults(GOOD + GOOD) == ["tar-data-after-end"]
    assert len(entries(GOOD + GOOD)) == 8


@pytest.mark.parametrize("size", [1 << 40, (1 << 63) - 1])
def test_a_size_is_never_an_allocation(size: int) -> None:
    stream = Bounded(claiming("1.jpg", size) + b"x" * 1000)
    items = list(walk(stream, lambda name, size: 1 << 20))
    assert [item.kind for item in items] == ["tar-truncated-in-member"]
    assert stream.largest <= 1 << 20


@pytest.mark.parametrize(
    "raw",
    [
        claiming("././@LongLink", 1 << 50, b"L"),
        claiming("pax", MAX_NAME_HEADER_BYTES + 1, b"x") + bytes(MAX_NAME_HEADER_BYTES + BLOCK),
        pax(comment="x" * 300_000) * 5,
    ],
    ids=["a name of a petabyte", "one that is too long", "many that are too long together"],
)
def test_name_headers_are_bounded(raw: bytes) -> None:
    stream = Bounded(raw + member_bytes("1.jpg", b"x") + END_OF_ARCHIVE)
    items = list(walk(stream))
    assert any(isinstance(item, Fault) for item in items)
    assert stream.largest <= MAX_NAME_HEADER_BYTES + BLOCK


def test_a_pax_size_that_contradicts_the_header_is_a_fault() -> None:
    raw = pax(path="other.jpg", size="7") + member_bytes("1.jpg", b"x") + END_OF_ARCHIVE
    assert faults(raw) == ["tar-damaged"]
    assert [entry.name for entry in entries(raw)] == ["other.jpg"]


@pytest.mark.parametrize("body", [b"99999 path=a\n", b"0 path=a\n", b"x", b"-5 path=a\n", b" =", b"3 \n"])
def test_broken_pax_records_end_the_reading(body: bytes) -> None:
    assert b"path" not in pax_records(body)


def test_links_and_devices_carry_no_data_whatever_their_size_says() -> None:
    raw = special("l", tarfile.SYMTYPE, 1 << 20, "/etc") + special("d", tarfile.CHRTYPE, 4096) + GOOD
    assert [entry.kind for entry in entries(raw)][:3] == ["link", "device", "file"]
    assert faults(raw) == []


def test_memory_does_not_grow_with_the_number_of_members() -> None:
    import tracemalloc

    one = member_bytes("0001.jpg", b"")

    class Endless:
        left = 20_000

        def read(self, size: int, /) -> bytes:
            self.left -= 1
            return one if self.left > 0 else END_OF_ARCHIVE[:size] if self.left == 0 else b""

    tracemalloc.start()
    count = sum(isinstance(item, Entry) for item in walk(Endless()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 19_999
    assert peak < 500_000
