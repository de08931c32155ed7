"""Adopting tars: the same index as the build writes, and every bad tar named."""

from __future__ import annotations

import json
import shutil
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.findings import KINDS
from data_prep.index import adopt
from data_prep.verify import verify
from pipeline.data.samples import ShardSet
from pipeline.data.tar import END_OF_ARCHIVE, member_bytes
from pipeline.errors import DataError
from tests.data_prep.tars import claiming, sample, tar_of, write_set


def shard(*names: str) -> bytes:
    return b"".join(member_bytes(name, b"x") for name in names) + END_OF_ARCHIVE


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_index_of_a_foreign_tar_is_that_of_the_build(built: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for path in built.glob("*.tar"):
        shutil.copy(path, foreign)
    result = adopt([str(foreign)])
    assert (result.num_shards, result.num_samples, result.num_incomplete, result.bad) == (3, 5, 0, [])
    for name in ("manifest.jsonl", "sizes.json", "pairs-000000.index.jsonl", "pairs-000002.index.jsonl"):
        assert (foreign / name).read_bytes() == (built / name).read_bytes()
    assert main(["verify", str(foreign)]) == 0


def test_a_tar_of_another_tool_is_indexed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("long" * 40 + ".jpg", "long" * 40 + ".txt"):
        (tmp_path / "in" / name).write_bytes(b"x" * 600)
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(tmp_path / "in", "photos")  # a folder entry first
    adopt([str(tmp_path / "a.tar")])
    assert rows(tmp_path / "a.index.jsonl") == [
        {"key": "photos/" + "long" * 40, "offset": 512, "size": 2 * (512 + 512 + 512 + 1024)}
    ]


def test_the_index_says_how_large_each_image_is(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(sample(1), {"2.jpg": b"junk", "2.txt": b"x"}))
    adopt([str(tmp_path)])
    first, second = rows(tmp_path / "a.index.jsonl")
    assert (first["width"], first["height"]) == (8, 8)
    assert "width" not in second


BAD: list[tuple[bytes, str]] = [
    (shard("1.jpg", "1.txt")[:1536], r"member '1\.txt' should reach byte 2,048 \(tar-truncated-in-member\)"),
    (shard("1.jpg", "1.txt")[:2048], r"ends at byte 2,048 without an end mark, after 2 members"),
    (b"", r"it is empty \(0 bytes\)"),
    (b"x" * 512, r"no tar header at byte 0"),
    (b"\x1f\x8b" + b"x" * 510, r"it is compressed; shards are plain tars"),
    (shard("1.jpg", "1.txt") * 2, r"data at byte 3,072 follows the end mark"),
    (claiming("1.jpg", 1 << 60), r"should reach byte 1,152,921,504,606,847,488"),
    (shard("../1.jpg", "../1.txt"), r"member '\.\./1\.jpg' at byte 0 leads out of its folder"),
    (shard("1.jpeg2", "1.text"), r"in its 3,072 bytes; members found: \.jpeg2 \(1\), \.text \(1\); expected .*\.jpg, "),
    (shard("1.jpg", "2.jpg", "1.txt", "2.txt"), r"members found: \.jpg \(2\), \.txt \(2\); expected under one key"),
    (shard("README"), r"members found: no file with an extension"),
    (shard("1.jpg", "1.jpg"), r"key '1' has a second 'jpg' member"),
]


@pytest.mark.parametrize(("raw", "message"), BAD)
def test_a_bad_tar_is_named_and_the_good_ones_wait(
    tmp_path: Path, raw: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_set(tmp_path / "set", num_shards=3)
    (folder / "1.tar").write_bytes(raw)
    assert main(["index", str(folder)]) == 1
    captured = capsys.readouterr()
    assert f"error: {folder / '1.tar'}: " in captured.err
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(captured.err)
    assert "2 good tars with 6 samples: not indexed, because there are bad ones" in captured.out
    assert sorted(path.name for path in folder.iterdir()) == ["0.tar", "1.tar", "2.tar"]
    assert main(["index", str(folder), "--skip-bad"]) == 0
    assert "2 good tars with 6 samples: indexed\n1 bad tars" in capsys.readouterr().out
    assert json.loads((folder / "sizes.json").read_text()) == {"0.tar": 3, "2.tar": 3}


def test_all_bad_tars_are_reported_in_one_run(tmp_path: Path) -> None:
    folder = write_set(tmp_path, num_shards=3)
    for number in (0, 2):
        (folder / f"{number}.tar").write_bytes(b"")
    result = adopt([str(folder)])
    assert (len(result.bad), result.num_shards, result.written) == (2, 1, False)


def test_samples_without_a_part_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.tar").write_bytes(shard("1.jpg", "1.txt", "2.jpg", "3.txt", "4.webp", "4.cls"))
    assert main(["index", str(tmp_path)]) == 0
    assert "0 bad tars; 2 samples without an image or a text" in capsys.readouterr().out
    assert json.loads((tmp_path / "sizes.json").read_text()) == {"a.tar": 4}


def test_one_tar_joins_the_manifest_of_its_folder(tmp_path: Path) -> None:
    folder = write_set(tmp_path, num_shards=3)
    adopt([str(folder)])
    (folder / "extra.tar").write_bytes(shard("1.jpg", "1.txt"))
    (folder / "2.tar").unlink()
    adopt([str(folder / "extra.tar")])
    assert json.loads((folder / "sizes.json").read_text()) == {"0.tar": 3, "1.tar": 3, "extra.tar": 1}


def test_folders_are_searched_and_described_each(tmp_path: Path) -> None:
    for folder in ("train", "val", ".hidden"):
        (tmp_path / folder).mkdir()
        for number in (10, 9):
            (tmp_path / folder / f"{number}.tar").write_bytes(shard("1.jpg", "1.txt"))
    assert adopt([str(tmp_path)]).num_shards == 4
    assert [row["shard"] for row in rows(tmp_path / "val" / "manifest.jsonl")] == ["9.tar", "10.tar"]
    assert not (tmp_path / ".hidden" / "manifest.jsonl").exists()


def test_shards_on_an_object_store_are_adopted_there() -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    for number in range(2):
        system.pipe_file(f"/bucket-index/{number}.tar", tar_of(sample(number)))
    result = adopt(["memory://bucket-index"])
    assert (result.num_shards, result.num_samples, result.written) == (2, 2, True)
    assert json.loads(system.cat_file("/bucket-index/sizes.json")) == {"0.tar": 1, "1.tar": 1}
    assert b'"width":8' in system.cat_file("/bucket-index/1.index.jsonl")


def test_shards_that_cannot_be_written_beside_are_described_elsewhere(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", num_shards=2)
    adopt([str(folder / "{0..1}.tar")], out=tmp_path / "about")
    assert not (folder / "manifest.jsonl").exists()
    lines = rows(tmp_path / "about" / "manifest.jsonl")
    assert [(row["shard"], row["count"]) for row in lines] == [(str(folder / f"{number}.tar"), 3) for number in range(2)]
    assert len(ShardSet.open(str(tmp_path / "about"))) == 6
    assert main(["verify", str(tmp_path / "about")]) == 0
    (folder / "1.tar").unlink()
    assert main(["verify", str(tmp_path / "about")]) == KINDS["shard-missing"].exit_code
    write_set(tmp_path / "other")
    with pytest.raises(DataError, match="the tars lie in several folders"):
        adopt([str(folder), str(tmp_path / "other")], out=tmp_path / "about")


def test_shards_behind_a_web_server_are_described_here(tmp_path: Path) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Say nothing."""

    write_set(tmp_path / "set", num_shards=2)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "set")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(DataError, match=r"describe these shards elsewhere with --out FOLDER"):
            adopt([f"{url}/{{0..1}}.tar"])
        result = adopt([f"{url}/{{0..1}}.tar"], out=tmp_path / "about")
        assert (result.num_samples, result.bad) == (6, [])
        assert verify([str(tmp_path / "about")]).counts == {}
        assert (
            adopt([f"{url}/nowhere.tar", f"{url}/0.tar"], out=tmp_path / "more")
            .bad[0]
            .startswith(f"{url}/nowhere.tar cannot be read")
        )
    finally:
        server.shutdown()
        server.server_close()


def test_workers_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_set(tmp_path / "set")
    assert main(["index", str(folder), "--json"]) == 0
    first = capsys.readouterr().out
    manifest = (folder / "manifest.jsonl").read_bytes()
    assert main(["index", str(folder), "--json", "--workers", "2"]) == 0
    assert capsys.readouterr().out == first
    assert (folder / "manifest.jsonl").read_bytes() == manifest
    assert json.loads(first)["num_samples"] == 6


def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    write_set(tmp_path / "set", num_shards=1)
    with pytest.raises(
        DataError, match=r"cannot write into /dev/full/x: .*; describe these shards elsewhere with --out FOLDER"
    ):
        adopt([str(tmp_path / "set")], out=Path("/dev/full/x"))


def test_nothing_to_index_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.tar in .*; build shards with"):
        adopt([str(tmp_path)])
    with pytest.raises(DataError, match=r"nowhere does not exist; give \.tar files or folders"):
        adopt([str(tmp_path / "nowhere")])
