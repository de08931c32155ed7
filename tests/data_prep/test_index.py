"""Adopting tars: the same index as the build writes, and every bad tar named."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.index import adopt
from pipeline.data.tar import END_OF_ARCHIVE, member_bytes
from pipeline.errors import DataError

DESCRIPTIONS = ("manifest.jsonl", "sizes.json", "pairs-000000.index.jsonl", "pairs-000002.index.jsonl")


def shard(*names: str) -> bytes:
    return b"".join(member_bytes(name, b"x") for name in names) + END_OF_ARCHIVE


def test_the_index_of_a_foreign_tar_is_that_of_the_build(built: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for path in built.glob("*.tar"):
        shutil.copy(path, foreign)
    result = adopt([foreign])
    assert (result.num_shards, result.num_samples, result.num_incomplete, result.bad) == (3, 5, 0, [])
    for name in DESCRIPTIONS:
        assert (foreign / name).read_bytes() == (built / name).read_bytes()
    assert main(["verify", str(foreign)]) == 0


def test_a_tar_of_another_tool_is_indexed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("long" * 40 + ".jpg", "long" * 40 + ".txt"):
        (tmp_path / "in" / name).write_bytes(b"x" * 600)
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(tmp_path / "in", "photos")  # a folder entry first
    adopt([tmp_path / "a.tar"])
    (line,) = (json.loads(line) for line in (tmp_path / "a.index.jsonl").read_text().splitlines())
    assert line["key"] == "photos/" + "long" * 40
    assert line["offset"] == 512
    assert line["size"] == 2 * (512 + 512 + 512 + 1024)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (shard("1.jpg", "1.txt")[:1536], r"truncated inside member '1\.txt'"),
        (shard("1.jpg", "1.txt")[:2048], r"ends at byte 2,048 without an end-of-archive mark"),
        (b"", r"it is empty \(0 bytes\)"),
        (b"x" * 512, r"no tar header at byte 0"),
        (
            shard("1.jpeg2", "1.text"),
            r"in its 3,072 bytes; members found: \.jpeg2 \(1\), \.text \(1\); expected .*\.jpg, ",
        ),
        (shard("1.jpg", "2.jpg", "1.txt", "2.txt"), r"members found: \.jpg \(2\), \.txt \(2\); expected under one key"),
        (shard("README"), r"members found: no file with an extension"),
        (shard("1.jpg", "1.jpg"), r"key '1' has a second 'jpg' member"),
    ],
)
def test_a_bad_tar_is_named_and_the_good_ones_wait(
    built: Path, raw: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (built / "pairs-000001.tar").write_bytes(raw)
    for name in (*DESCRIPTIONS, "pairs-000001.index.jsonl"):
        (built / name).unlink()
    assert main(["index", str(built)]) == 1
    captured = capsys.readouterr()
    assert f"error: {built / 'pairs-000001.tar'}: " in captured.err
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(captured.err)
    assert "2 good tars with 3 samples: not indexed, because there are bad ones" in captured.out
    assert sorted(path.suffix for path in built.iterdir() if path.name != "rejects.jsonl") == [".json"] + [".tar"] * 3
    assert main(["index", str(built), "--skip-bad"]) == 0
    assert "2 good tars with 3 samples: indexed\n1 bad tars" in capsys.readouterr().out
    assert set(json.loads((built / "sizes.json").read_text())) == {"pairs-000000.tar", "pairs-000002.tar"}


def test_all_bad_tars_are_reported_in_one_run(built: Path) -> None:
    for number in (0, 2):
        (built / f"pairs-00000{number}.tar").write_bytes(b"")
    result = adopt([built])
    assert (len(result.bad), result.num_shards, result.written) == (2, 1, False)


def test_samples_without_a_part_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.tar").write_bytes(shard("1.jpg", "1.txt", "2.jpg", "3.txt", "4.webp", "4.cls"))
    assert main(["index", str(tmp_path)]) == 0
    assert "0 bad tars; 2 samples without an image or a text" in capsys.readouterr().out
    assert json.loads((tmp_path / "sizes.json").read_text()) == {"a.tar": 4}


def test_one_tar_joins_the_manifest_of_its_folder(built: Path) -> None:
    (built / "extra.tar").write_bytes(shard("1.jpg", "1.txt"))
    (built / "pairs-000002.tar").unlink()
    adopt([built / "extra.tar"])
    sizes = json.loads((built / "sizes.json").read_text())
    assert sizes == {"extra.tar": 1, "pairs-000000.tar": 2, "pairs-000001.tar": 2}


def test_folders_are_searched_and_described_each(tmp_path: Path) -> None:
    for folder in ("train", "val", ".hidden"):
        (tmp_path / folder).mkdir()
        for number in (10, 9):
            (tmp_path / folder / f"{number}.tar").write_bytes(shard("1.jpg", "1.txt"))
    assert adopt([tmp_path]).num_shards == 4
    names = [json.loads(line)["shard"] for line in (tmp_path / "val" / "manifest.jsonl").read_text().splitlines()]
    assert names == ["9.tar", "10.tar"]
    assert not (tmp_path / ".hidden" / "manifest.jsonl").exists()


def test_nothing_to_index_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.tar in .*; build shards with"):
        adopt([tmp_path])
    with pytest.raises(DataError, match=r"nowhere does not exist; give \.tar files or folders"):
        adopt([tmp_path / "nowhere"])
