"""The tar reader: what it finds equals what tarfile and webdataset find, and every cut is noticed."""

from __future__ import annotations

import gzip
import io
import tarfile

import pytest
from webdataset.tariterators import base_plus_ext

from pipeline.data import tar
from pipeline.errors import DataError, TruncatedTar

LONG = "a/" + "d" * 120 + "/" + "e" * 90


def write_with_tarfile(names: list[str], format: int) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=format) as archive:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 300 * number
            info.mtime = 1.5 if format == tarfile.PAX_FORMAT else 1
            archive.addfile(info, io.BytesIO(bytes([65 + number]) * info.size))
    return raw.getvalue()


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_scan_finds_what_tarfile_finds(format: int) -> None:
    names = ["x/1.jpg", "ü/é.txt", "d" * 80 + "/" + "e" * 90 + ".png", "last.json"]
    names += [] if format == tarfile.USTAR_FORMAT else [LONG + ".jpg", LONG + ".txt", "after.txt"]
    raw = write_with_tarfile(names, format)
    found = list(tar.scan(io.BytesIO(raw)))
    assert [member.name for member in found] == names
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        expected = [(info.offset_data, info.size) for info in archive]
    assert [(member.data_offset, member.size) for member in found] == expected


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_range_of_a_sample_with_a_long_name_can_be_parsed_alone(format: int) -> None:
    raw = write_with_tarfile(["0.jpg", LONG + ".jpg", LONG + ".txt", "z.jpg"], format)
    span = list(tar.iter_samples(io.BytesIO(raw)))[1]
    assert span.key == LONG
    members = tar.parse_sample(raw[span.offset : span.offset + span.size])
    assert members == {"jpg": b"B" * 300, "txt": b"C" * 600}


def test_spans_of_neighbours_meet() -> None:
    raw = write_with_tarfile([f"{number:03d}.{name}" for number in range(9) for name in ("jpg", "txt")], tarfile.GNU_FORMAT)
    spans = list(tar.iter_samples(io.BytesIO(raw)))
    assert [span.key for span in spans] == [f"{number:03d}" for number in range(9)]
    for before, after in zip(spans, spans[1:], strict=False):
        assert before.offset + before.size == after.offset


def test_member_bytes_are_a_tar_that_tarfile_reads() -> None:
    raw = tar.member_bytes("ä/1.png", b"x" * 700) + tar.member_bytes("empty.txt", b"") + tar.END_OF_ARCHIVE
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        infos = archive.getmembers()
        first = archive.extractfile(infos[0])
        assert first is not None
        assert first.read() == b"x" * 700
    assert [(info.name, info.size, info.mode, info.mtime, info.uid) for info in infos] == [
        ("ä/1.png", 700, 0o644, 0, 0),
        ("empty.txt", 0, 0o644, 0, 0),
    ]


@pytest.mark.parametrize("name", ["", "n" * 101])
def test_a_name_that_does_not_fit_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="name 1 to 100 bytes"):
        tar.member_bytes(name, b"")


def test_every_cut_is_noticed() -> None:
    whole = tar.member_bytes("1.jpg", b"x" * 700) + tar.member_bytes("1.txt", b"hi") + tar.END_OF_ARCHIVE
    end_of_members = len(whole) - len(tar.END_OF_ARCHIVE)
    for length in range(0, end_of_members + 1, 128):
        with pytest.raises(TruncatedTar, match="truncated"):
            list(tar.scan(io.BytesIO(whole[:length])))
    assert len(list(tar.scan(io.BytesIO(whole)))) == 2


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (0, r"s\.tar: truncated: it is empty \(0 bytes\)"),
        (100, r"s\.tar: truncated inside the header at byte 0: 100 of 512"),
        (1000, r"inside member '1\.jpg': its data should reach byte 1,536 but the file ends at byte 1,000"),
        (1536, r"it ends at byte 1,536 without an end-of-archive mark"),
    ],
)
def test_a_cut_is_located(length: int, message: str) -> None:
    whole = tar.member_bytes("1.jpg", b"x" * 700) + tar.member_bytes("1.txt", b"hi") + tar.END_OF_ARCHIVE
    with pytest.raises(TruncatedTar, match=message):
        list(tar.scan(io.BytesIO(whole[:length]), "s.tar"))


def test_a_slice_that_ends_in_a_name_header_is_cut() -> None:
    raw = write_with_tarfile([LONG + ".jpg"], tarfile.GNU_FORMAT)
    with pytest.raises(TruncatedTar, match="without an end-of-archive mark"):
        tar.parse_sample(raw[:1024])
    with pytest.raises(TruncatedTar, match="inside the name header at byte 0"):
        tar.parse_sample(raw[:700])


def test_damage_is_named_with_its_offset() -> None:
    whole = bytearray(tar.member_bytes("1.jpg", b"x") + tar.member_bytes("1.txt", b"y") + tar.END_OF_ARCHIVE)
    whole[1030] ^= 1
    with pytest.raises(DataError, match=r"s\.tar: no tar header at byte 1,024 .*damaged"):
        list(tar.scan(io.BytesIO(bytes(whole)), "s.tar"))
    with pytest.raises(DataError, match="compressed; shards are plain tars"):
        list(tar.scan(io.BytesIO(gzip.compress(bytes(2000) + b"x" * 2000, 0))))


def test_joined_tars_are_refused_because_readers_stop_at_the_first_mark() -> None:
    one = tar.member_bytes("1.jpg", b"x") + tar.END_OF_ARCHIVE
    with pytest.raises(DataError, match=r"data follows the end-of-archive mark at byte 2,048"):
        list(tar.scan(io.BytesIO(one + one)))


def test_links_devices_and_folders_are_stepped_over() -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("1.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        archive.addfile(tarfile.TarInfo("1.txt"))
    assert [member.name for member in tar.scan(io.BytesIO(raw.getvalue()))] == ["1.txt"]
    span = next(tar.iter_samples(io.BytesIO(raw.getvalue())))
    assert span.extensions == ("txt",)


def test_sparse_members_are_refused() -> None:
    header = bytearray(tar.member_bytes("1.jpg", b""))
    header[156] = ord("S")
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    with pytest.raises(DataError, match="sparse member at byte 0"):
        list(tar.scan(io.BytesIO(bytes(header))))


def test_an_absurd_name_header_is_not_read_into_memory() -> None:
    header = bytearray(tar.member_bytes("././@LongLink", b""))
    header[124:136] = b"%011o\0" % (1 << 32)
    header[156] = ord("L")
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    with pytest.raises(DataError, match="claims 4,294,967,296 bytes"):
        list(tar.scan(io.BytesIO(bytes(header))))


@pytest.mark.parametrize(
    "name",
    [
        "1.jpg",
        "a.b/1.seg.PNG",
        "./x/0001.txt",
        "deep/er/k.tar.gz",
        "noext",
        ".hidden",
        "k.",
        "a.b/noext",
        "__x__.jpg",
    ],
)
def test_keys_are_those_of_webdataset(name: str) -> None:
    key, extension = base_plus_ext(name)
    assert tar.group_key(name) == (None if key is None else (key, extension.lower()))


@pytest.mark.parametrize("name", ["__meta__/info.json", "a/._0001.jpg", "a/b/.DS_Store"])
def test_meta_and_hidden_entries_belong_to_no_sample(name: str) -> None:
    """For files that macOS adds to folders webdataset would make a sample called "a/"."""
    assert tar.group_key(name) is None


def test_a_repeated_extension_is_refused() -> None:
    raw = tar.member_bytes("1.jpg", b"x") + tar.member_bytes("1.JPG", b"y") + tar.END_OF_ARCHIVE
    with pytest.raises(DataError, match=r"key '1' has a second 'jpg' member at byte 1,024"):
        list(tar.iter_samples(io.BytesIO(raw)))


def test_a_range_over_two_samples_or_none_is_refused() -> None:
    two = tar.member_bytes("1.jpg", b"x") + tar.member_bytes("2.jpg", b"y")
    with pytest.raises(DataError, match=r"hold 2 samples \['1', '2'\] instead of 1; index the shard again"):
        tar.parse_sample(two)
    with pytest.raises(DataError, match="hold 0 samples"):
        tar.parse_sample(tar.member_bytes("noextension", b"x"))


def test_a_stream_may_return_less_than_asked() -> None:
    class Dribble:
        def __init__(self, data: bytes) -> None:
            self._rest = data

        def read(self, size: int, /) -> bytes:
            size = min(size, 7)
            data, self._rest = self._rest[:size], self._rest[size:]
            return data

    raw = tar.member_bytes("1.jpg", b"x" * 700) + tar.member_bytes("1.txt", b"hi") + tar.END_OF_ARCHIVE
    assert list(tar.scan(Dribble(raw))) == list(tar.scan(io.BytesIO(raw)))
