"""Verify: silent about what is good, and one kind of finding, with its exit code, for each kind of damage."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.findings import KINDS, UNKNOWN_KIND_EXIT_CODE, Findings
from data_prep.index import adopt
from data_prep.lint import Rules
from data_prep.verify import verify
from pipeline.data.tar import END_OF_ARCHIVE, member_bytes
from pipeline.errors import DataError
from tests.data_prep.tars import sample, special, tar_of, write_set

DOCS = Path(__file__).parents[2] / "docs" / "shard_tools.md"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of three samples, with manifest and index."""
    folder = write_set(tmp_path / "set")
    adopt([str(folder)])
    return folder


def flip_byte(folder: Path, where: int) -> None:
    raw = bytearray((folder / "0.tar").read_bytes())
    raw[where] ^= 0xFF
    (folder / "0.tar").write_bytes(bytes(raw))


def cut(folder: Path, num_bytes: int) -> None:
    path = folder / "0.tar"
    path.write_bytes(path.read_bytes()[:-num_bytes])


def edit_lines(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def first_text(folder: Path) -> int:
    """Where the data of the first text member begins."""
    with tarfile.open(folder / "0.tar") as archive:
        return archive.getmembers()[1].offset_data


SHORT = {"shard-size", "shard-sha256"}
DAMAGES: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "caption changed": (lambda folder: flip_byte(folder, first_text(folder)), {"shard-sha256", "caption-not-utf8"}),
    "image changed": (lambda folder: flip_byte(folder, 512), {"shard-sha256", "image-undecodable", "index-wrong"}),
    "header changed": (lambda folder: flip_byte(folder, 0), {"shard-sha256", "tar-damaged", "index-wrong", "image-missing"}),
    "end mark cut": (lambda folder: cut(folder, 1024), {*SHORT, "tar-truncated-at-boundary"}),
    "member cut": (lambda folder: cut(folder, 1100), {*SHORT, "tar-truncated-in-member", "tar-corrupt", "index-wrong"}),
    "shard gone": (lambda folder: (folder / "1.tar").unlink(), {"shard-missing"}),
    "shard added": (lambda folder: (folder / "x.tar").write_bytes(tar_of(sample(9))), {"shard-unlisted"}),
    "index gone": (lambda folder: (folder / "0.index.jsonl").unlink(), {"index-wrong"}),
    "index cut": (lambda folder: edit_lines(folder / "0.index.jsonl", lambda lines: lines[:1]), {"index-wrong"}),
    "index long": (lambda folder: edit_lines(folder / "0.index.jsonl", lambda lines: lines * 2), {"index-wrong"}),
    "sizes gone": (lambda folder: (folder / "sizes.json").unlink(), {"sizes-wrong"}),
    "sizes wrong": (lambda folder: (folder / "sizes.json").write_text('{"a.tar": 1}'), {"sizes-wrong"}),
    "count wrong": (
        lambda folder: edit_lines(
            folder / "manifest.jsonl", lambda lines: [line.replace('"count": 3', '"count": 4') for line in lines]
        ),
        {"count-wrong", "sizes-wrong"},
    ),
    "manifest cut": (lambda folder: edit_lines(folder / "manifest.jsonl", lambda lines: [lines[0][:-9]]), {"manifest-invalid"}),
}


def test_good_shards_have_no_findings(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(shards)]) == 0
    assert capsys.readouterr().out == "2 shards, 6 samples: all good\n"


def test_an_index_without_sides_is_right_too(shards: Path) -> None:
    path = shards / "0.index.jsonl"
    path.write_text(re.sub(r',"width":\d+,"height":\d+', "", path.read_text()))
    assert main(["verify", str(shards)]) == 0


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_found(shards: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, kinds = DAMAGES[name]
    damage(shards)
    code = main(["verify", str(shards), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert set(report["findings"]) - {"count-wrong"} == kinds - {"count-wrong"}
    assert code == report["exit_code"] == min(KINDS[kind].exit_code for kind in report["findings"])


def member(name: str, data: bytes = b"x") -> bytes:
    return member_bytes(name, data)


GOOD = tar_of(sample(1), end=b"")
TEXT = member("1.txt")
HOSTILE: dict[str, tuple[bytes, str]] = {
    "absolute": (member("/etc/1.jpg"), "member-escapes"),
    "parent": (member("../../1.jpg"), "member-escapes"),
    "symlink": (special("2.jpg", tarfile.SYMTYPE, link="/etc/passwd"), "member-link"),
    "hard link": (special("2.jpg", tarfile.LNKTYPE, link="0001.png"), "member-link"),
    "device": (special("2.jpg", tarfile.CHRTYPE), "member-device"),
    "pipe": (special("2.jpg", tarfile.FIFOTYPE), "member-device"),
    "unknown": (member("0001.exe"), "member-unknown"),
    "twice": (member("0001.txt"), "member-duplicate"),
    "stray": (member("README"), "member-stray"),
    "hidden": (member(".DS_Store"), "member-stray"),
    "same key": (member("2.txt") + tar_of(sample(1), end=b""), "key-duplicate"),
    "not utf-8": (member("k.txt").replace(b"k.txt", b"\xff.txt"), "tar-damaged"),
    "no image": (TEXT, "image-missing"),
    "empty image": (member("2.jpg", b"") + member("2.txt"), "image-empty"),
    "no picture": (member("2.jpg") + member("2.txt"), "image-undecodable"),
    "blank caption": (member("2.jpg") + member("2.txt", b" "), "caption-empty"),
    "no caption": (tar_of({"2.png": sample(2)["0002.png"]}, end=b""), "caption-missing"),
    "bad json": (tar_of(sample(2, json=b"{"), end=b""), "json-invalid"),
    "deep json": (tar_of(sample(2, json=b"[" * 100_000), end=b""), "json-invalid"),
    "json list": (tar_of(sample(2, json=b"[]"), end=b""), "json-invalid"),
    "bad class": (tar_of(sample(2, cls=b"cat"), end=b""), "label-invalid"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_each_kind_is_found_in_a_tar_without_manifest(tmp_path: Path, name: str) -> None:
    raw, kind = HOSTILE[name]
    (tmp_path / "a.tar").write_bytes(GOOD + raw + END_OF_ARCHIVE)
    findings = verify([str(tmp_path / "a.tar")])
    assert kind in findings.counts
    assert findings.exit_code <= KINDS[kind].exit_code
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]


def test_a_caption_that_is_too_large_is_never_read(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(sample(1, caption="x" * 3000), sample(2)))
    adopt([str(tmp_path)])
    assert verify([str(tmp_path)], rules=Rules(max_bytes=3000)).counts == {"sample-too-large": 1}


def test_a_bomb_of_pixels_is_not_decoded(tmp_path: Path) -> None:
    import struct
    import zlib

    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))
    )
    (tmp_path / "a.tar").write_bytes(tar_of({"1.png": png, "1.txt": b"white"}))
    assert verify([str(tmp_path)]).counts == {"image-too-large": 1}


def test_an_extension_can_be_allowed_and_decoding_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of({"1.jpg": b"junk", "1.txt": b"x", "1.npy": b"x"}))
    assert main(["verify", str(tmp_path), "--allow", ".NPY", "--no-decode"]) == 0
    assert main(["verify", str(tmp_path), "--no-decode"]) == KINDS["member-unknown"].exit_code


def test_workers_do_not_change_the_result(shards: Path) -> None:
    flip_byte(shards, 512)
    alone, together = verify([str(shards)]), verify([str(shards)], workers=2)
    assert alone.as_dict() == together.as_dict()


def test_findings_of_one_kind_are_counted_in_full_and_shown_in_part(tmp_path: Path) -> None:
    raw = [member_bytes(f"{number}.{name}", b"junk") for number in range(9) for name in ("jpg", "txt")]
    (tmp_path / "a.tar").write_bytes(b"".join(raw) + END_OF_ARCHIVE)
    findings = verify([str(tmp_path)])
    assert findings.counts == {"image-undecodable": 9}
    assert len(findings.examples["image-undecodable"]) == 3


def test_shards_on_an_object_store_are_checked() -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    system.pipe_file("/bucket-verify/a.tar", tar_of(sample(1)))
    adopt(["memory://bucket-verify"])
    assert verify(["memory://bucket-verify"]).counts == {}
    system.pipe_file("/bucket-verify/a.tar", tar_of(sample(1))[:-1024])
    assert verify(["memory://bucket-verify"]).counts["tar-truncated-at-boundary"] == 1
    system.rm_file("/bucket-verify/a.tar")
    assert verify(["memory://bucket-verify"]).counts == {"shard-missing": 1}


def test_nothing_to_verify_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"no \.tar in .*unisphere shards build"):
        verify([str(tmp_path)])
    assert main(["verify"]) == 2
    assert "verify needs SHARDS" in capsys.readouterr().err


def test_codes_are_distinct_and_ordered_by_gravity() -> None:
    codes = [kind.exit_code for kind in KINDS.values()]
    assert codes == sorted(set(codes))
    assert codes[0] >= 10
    assert codes[-1] < UNKNOWN_KIND_EXIT_CODE
    findings = Findings()
    findings.add("a-new-kind", "x")
    assert findings.exit_code == UNKNOWN_KIND_EXIT_CODE
    findings.add("json-invalid", "x")
    assert findings.exit_code == KINDS["json-invalid"].exit_code


def test_every_kind_is_in_the_documentation_with_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--kinds"]) == 0
    printed = capsys.readouterr().out
    text = DOCS.read_text()
    for name, kind in KINDS.items():
        assert f"| {kind.exit_code} | `{name}` |" in text
        assert f"{kind.exit_code:>3}  {name}" in printed


def test_a_name_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(sample(1), {"\x1b[2J": b""}))
    assert main(["verify", str(tmp_path)]) == KINDS["member-stray"].exit_code
    assert "\x1b" not in capsys.readouterr().out
