"""Verify: silent about what was just built, and one kind of finding for each kind of damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.index import adopt
from data_prep.verify import verify
from pipeline.data.tar import END_OF_ARCHIVE, member_bytes
from pipeline.errors import DataError


def flip_byte(folder: Path, where: int) -> None:
    raw = bytearray((folder / "pairs-000000.tar").read_bytes())
    raw[where] ^= 0xFF
    (folder / "pairs-000000.tar").write_bytes(bytes(raw))


def truncate(folder: Path) -> None:
    path = folder / "pairs-000000.tar"
    path.write_bytes(path.read_bytes()[:-1024])


def edit_lines(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


DAMAGES: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "caption changed": (lambda folder: flip_byte(folder, 1536), {"shard-sha256", "caption-not-utf8"}),
    "image changed": (lambda folder: flip_byte(folder, 512), {"shard-sha256", "image-undecodable"}),
    "header changed": (
        lambda folder: flip_byte(folder, 0),
        {"shard-sha256", "shard-damaged", "count-wrong", "index-wrong"},
    ),
    "shard cut": (truncate, {"shard-size", "shard-sha256", "shard-damaged", "index-wrong", "count-wrong"}),
    "shard gone": (lambda folder: (folder / "pairs-000001.tar").unlink(), {"shard-missing"}),
    "shard added": (lambda folder: (folder / "x.tar").write_bytes(END_OF_ARCHIVE), {"shard-unlisted"}),
    "index gone": (lambda folder: (folder / "pairs-000000.index.jsonl").unlink(), {"index-wrong"}),
    "index cut": (
        lambda folder: edit_lines(folder / "pairs-000000.index.jsonl", lambda lines: lines[:1]),
        {"index-wrong"},
    ),
    "sizes gone": (lambda folder: (folder / "sizes.json").unlink(), {"sizes-wrong"}),
    "sizes wrong": (lambda folder: (folder / "sizes.json").write_text('{"a.tar": 1}'), {"sizes-wrong"}),
    "count wrong": (
        lambda folder: edit_lines(
            folder / "manifest.jsonl", lambda lines: [line.replace('"count": 1', '"count": 3') for line in lines]
        ),
        {"count-wrong", "sizes-wrong"},
    ),
    "manifest cut": (
        lambda folder: edit_lines(folder / "manifest.jsonl", lambda lines: [lines[0][:-9]]),
        {"manifest-invalid"},
    ),
}


def test_a_fresh_build_has_no_findings(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(built)]) == 0
    assert capsys.readouterr().out == "3 shards, 5 samples: all good\n"


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_found(built: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, kinds = DAMAGES[name]
    damage(built)
    assert main(["verify", str(built)]) == 1
    printed = capsys.readouterr().out
    assert {line.split()[0] for line in printed.splitlines()[:-1] if not line.startswith(" ")} == kinds
    assert printed.splitlines()[-1].endswith("findings")


def test_unusable_samples_are_found_with_the_causes_of_training(tmp_path: Path) -> None:
    members = {"1.txt": b"no image", "2.jpg": b"", "2.txt": b"x", "3.jpg": b"junk", "3.txt": b"x"}
    members |= {"4.jpg": b"junk", "4.txt": b" ", "5.jpg": b"junk", "5.txt": b"x", "5.json": b"{"}
    raw = b"".join(member_bytes(name, data) for name, data in members.items()) + END_OF_ARCHIVE
    (tmp_path / "a.tar").write_bytes(raw)
    adopt([tmp_path])
    assert verify(tmp_path).counts == {
        "image-missing": 1,
        "image-empty": 1,
        "image-undecodable": 1,
        "caption-empty": 1,
        "json-invalid": 1,
    }


def test_findings_of_one_kind_are_counted_in_full_and_shown_in_part(tmp_path: Path) -> None:
    members = [member_bytes(f"{number}.{name}", b"junk") for number in range(9) for name in ("jpg", "txt")]
    (tmp_path / "a.tar").write_bytes(b"".join(members) + END_OF_ARCHIVE)
    adopt([tmp_path])
    findings = verify(tmp_path)
    assert findings.counts == {"image-undecodable": 9}
    assert len(findings.examples["image-undecodable"]) == 3


def test_a_folder_without_manifest_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no manifest\.jsonl in or below .*unisphere shards index"):
        verify(tmp_path)


def test_ls_lists_shards_and_sums(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", str(built.parent)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["shard", "samples", "bytes"]
    assert rows[1][:2] == ["built/pairs-000000.tar", "2"]
    num_bytes = sum(json.loads(line)["bytes"] for line in (built / "manifest.jsonl").read_text().splitlines())
    assert rows[-1] == ["3", "shards", "5", f"{num_bytes:,}"]
