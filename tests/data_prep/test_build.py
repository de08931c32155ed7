"""The build: same bytes every time, every row accounted for, nothing half-written."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.build import STAGING, build
from data_prep.chunks import plan
from data_prep.pack import Job, pack
from data_prep.places import LocalPlace
from data_prep.rows import EvalTexts, Row, Source
from data_prep.settings import Settings
from data_prep.sources import open_source
from pipeline.data.samples import ShardSet
from pipeline.errors import DataError

Table = Callable[..., Path]


def contents(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rejects(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be this large and is cut where its pixels begin."""
    size = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + size + struct.pack(">I", zlib.crc32(size)) + b"\0\0\4\0IDAT"


def test_bytes_depend_on_the_input_alone(tmp_path: Path, table: Table) -> None:
    source = open_source(str(table(23, [{"image": "none.png", "caption": "x"}])))
    one = build(source, tmp_path / "one", shard_size=5, workers=1)
    two = build(source, tmp_path / "two", shard_size=5, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert one.as_dict() == two.as_dict()
    assert one.splits == {"": {"shards": 5, "samples": 23, "bytes": one.splits[""]["bytes"]}}


def test_a_shard_reads_back_with_tarfile(built: Path, picture: Callable[[int], bytes]) -> None:
    with tarfile.open(built / "pairs-000001.tar") as archive:
        members = {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]
        assert {(info.mtime, info.uid, info.gid, info.mode, info.uname) for info in archive} == {(0, 0, 0, 0o644, "")}
    assert list(members) == [f"00000000{key}.{name}" for key in (2, 3) for name in ("png", "txt", "json")]
    assert members["000000002.png"] == picture(2)
    assert members["000000002.txt"] == b"picture 2"
    assert json.loads(members["000000002.json"]) == {"captions": ["picture 2"], "shade": 2}


def test_a_shard_reads_back_with_webdataset(built: Path) -> None:
    import webdataset

    urls = str(built / "pairs-{000000..000002}.tar")
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert [sample["txt"] for sample in samples] == [f"picture {number}" for number in range(5)]
    assert [sample["png"].getpixel((0, 0)) for sample in samples] == [(number, 0, 7) for number in range(5)]


def test_training_reads_what_was_built(built: Path) -> None:
    samples = ShardSet.open(str(built))
    assert len(samples) == 5
    assert [samples.read(number).captions for number in range(5)] == [(f"picture {number}",) for number in range(5)]
    assert samples.read(4).meta == {"shade": 4}


def test_the_manifest_and_index_describe_the_tars(built: Path) -> None:
    lines = [json.loads(line) for line in (built / "manifest.jsonl").read_text().splitlines()]
    assert [(line["shard"], line["count"]) for line in lines] == [
        ("pairs-000000.tar", 2),
        ("pairs-000001.tar", 2),
        ("pairs-000002.tar", 1),
    ]
    for line in lines:
        raw = (built / line["shard"]).read_bytes()
        assert (len(raw), hashlib.sha256(raw).hexdigest()) == (line["bytes"], line["sha256"])
        index = [json.loads(row) for row in (built / line["index"]).read_text().splitlines()]
        assert index[0]["offset"] == 0
        assert index[-1]["offset"] + index[-1]["size"] + 1024 == len(raw)
    assert json.loads((built / "sizes.json").read_text()) == {line["shard"]: line["count"] for line in lines}


def bad_rows() -> Iterator[tuple[str, dict[str, Any] | bytes, dict[str, bytes], str]]:
    """(cause, row, files beside the table, part of the detail)."""
    good = "0.png"
    yield "image-missing", {"image": "none.png", "caption": "x"}, {}, "none.png: FileNotFoundError"
    yield "image-missing", {"image": "zip://no::i.zip", "caption": "x"}, {"i.zip": b"PK\5\6" + bytes(18)}, "no::"
    yield "image-missing", {"caption": "x"}, {}, "no image named"
    yield "image-empty", {"image": "void.png", "caption": "x"}, {"void.png": b""}, "0 bytes"
    yield "image-undecodable", {"image": "t.png", "caption": "x"}, {"t.png": b"no image"}, "begins b'no image'"
    yield "image-undecodable", {"image": "c.png", "caption": "x"}, {"c.png": png_header(9, 9)}, "OSError"
    yield "image-undecodable", {"image": "i.ico", "caption": "x"}, {"i.ico": icon()}, "format ICO; known are JPEG"
    yield "image-too-large", {"image": "b.png", "caption": "x"}, {"b.png": png_header(9000, 9000)}, "9000 x 9000 pixels"
    yield "image-too-large", {"image": "a.png", "caption": "x"}, {"a.png": png_header(60000, 60000)}, "3600000000"
    yield "read-failed", {"image": "teleport://x", "caption": "x"}, {}, "ValueError"
    yield "caption-missing", {"image": good, "caption": None}, {}, "0 captions"
    yield "caption-empty", {"image": good, "captions": ["", " \n"]}, {}, "2 captions, none with text"
    yield "caption-not-utf8", b'{"image": "0.png", "caption": "caf\xe9"}', {}, r"caf\udce9"
    yield "caption-not-utf8", b'{"image": "0.png", "caption": "\\ud800"}', {}, r"\ud800"
    yield "caption-too-long", {"image": good, "caption": "y" * 100_001}, {}, "100,001 bytes, at most 100,000"
    yield "key-invalid", {"image": good, "caption": "x", "key": "../up"}, {}, "points outside its folder"
    yield "key-duplicate", {"image": good, "caption": "x", "key": "000000000"}, {}, "used by an earlier row"
    yield "split-invalid", {"image": good, "caption": "x", "split": "../up"}, {}, "cannot name a folder"
    yield "label-invalid", {"image": good, "caption": "x", "label": -1}, {}, "is not a class number"
    yield "row-invalid", b"{", {}, "not a JSON object"
    yield "row-invalid", b'{"image": "0.png", "caption": "x", "score": NaN}', {}, "cannot be stored as JSON"


def icon() -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (16, 16)).save(encoded, "ICO")
    return encoded.getvalue()


@pytest.mark.parametrize(("cause", "row", "files", "detail"), list(bad_rows()))
def test_a_bad_row_is_rejected_with_its_cause(
    tmp_path: Path, table: Table, cause: str, row: dict[str, Any] | bytes, files: dict[str, bytes], detail: str
) -> None:
    path = table(3, [row])
    for name, data in files.items():
        (path.parent / name).write_bytes(data)
    report = build(open_source(str(path)), tmp_path / "out")
    assert (report.num_rows, report.accepted, dict(report.rejected)) == (4, 3, {cause: 1})
    (reject,) = rejects(tmp_path / "out")
    assert (reject["row"], reject["cause"]) == (3, cause)
    assert detail in reject["detail"]


def test_every_row_is_accepted_or_rejected(tmp_path: Path, table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    cases = list(bad_rows())
    path = table(40, [row for _, row, _, _ in cases])
    for _, _, files, _ in cases:
        for name, data in files.items():
            (path.parent / name).write_bytes(data)
    assert main(["build", str(path), str(tmp_path / "out"), "--shard-size", "7"]) == 0
    listed = rejects(tmp_path / "out")
    assert [reject["row"] for reject in listed] == list(range(40, 40 + len(cases)))
    table_lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    counts = {words[0]: int(words[1]) for words in table_lines if len(words) >= 2 and words[1].isdigit()}
    assert counts["input"] == 40 + len(cases)
    assert counts["accepted"] == 40
    assert counts["rejected"] == len(cases)
    causes = [cause for cause, _, _, _ in cases]
    assert {cause: counts[cause] for cause in causes} == {cause: causes.count(cause) for cause in causes}


def test_an_image_keeps_its_bytes_and_gets_the_extension_that_fits_them(
    tmp_path: Path, table: Table, picture: Callable[..., bytes]
) -> None:
    path = table(0, [{"image": "misnamed.png", "caption": "x", "key": "a/b.c"}])
    (path.parent / "misnamed.png").write_bytes(picture(1, "WEBP"))
    build(open_source(str(path)), tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "pairs-000000.tar") as archive:
        assert archive.getnames() == ["a_b_c.webp", "a_b_c.txt", "a_b_c.json"]
        assert archive.extractfile("a_b_c.webp").read() == picture(1, "WEBP")  # type: ignore[union-attr]
        assert json.load(archive.extractfile("a_b_c.json"))["source_key"] == "a/b.c"  # type: ignore[arg-type]


def test_images_are_read_from_archives(tmp_path: Path, table: Table, picture: Callable[[int], bytes]) -> None:
    path = table(0, [{"image": f"zip://in/{number}.png::p.zip", "caption": "x"} for number in range(3)])
    with zipfile.ZipFile(path.parent / "p.zip", "w") as archive:
        for number in range(3):
            archive.writestr(f"in/{number}.png", picture(number))
    build(open_source(str(path)), tmp_path / "out")
    samples = ShardSet.open(str(tmp_path / "out"))
    assert [samples.read(number).image for number in range(3)] == [picture(number) for number in range(3)]


def test_a_shard_whose_images_are_all_bad_leaves_no_gap(tmp_path: Path, table: Table) -> None:
    path = table(6)
    for number in (2, 3):
        (path.parent / f"{number}.png").unlink()
    report = build(open_source(str(path)), tmp_path / "out", shard_size=2)
    assert report.rejected == {"image-missing": 2}
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == ["pairs-000000.tar", "pairs-000001.tar"]


def test_splits_become_folders_and_test_sets_get_their_layout(tmp_path: Path, table: Table) -> None:
    images = table(4).parent

    def rows() -> Iterator[Row]:
        for number in range(4):
            split = ("train", "names", "pairs", "")[number]
            label = 1 if split == "names" else None
            yield Row(number, str(images / f"{number}.png"), ("a", "b"), f"k{number}", split, label)

    texts = {"names": EvalTexts(("cat", "dog"), ("a {c}", "{c}")), "pairs": EvalTexts()}
    build(Source("toy", rows, texts), tmp_path / "out")
    names = set(contents(tmp_path / "out"))
    assert {name for name in names if name.endswith(".tar")} == {
        "toy-000000.tar",
        "train/toy-000000.tar",
        "names/test/0.tar",
        "pairs/test/0.tar",
    }
    assert (tmp_path / "out/names/classnames.txt").read_text() == "cat\ndog\n"
    assert (tmp_path / "out/names/zeroshot_classification_templates.txt").read_text() == "a {c}\n{c}\n"
    assert (tmp_path / "out/names/test/nshards.txt").read_text() == "1\n"
    assert (tmp_path / "out/pairs/dataset_type.txt").read_text() == "retrieval\n"
    assert "pairs/classnames.txt" not in names
    with tarfile.open(tmp_path / "out/names/test/0.tar") as archive:
        assert archive.extractfile("k1.cls").read() == b"1"  # type: ignore[union-attr]


def test_nothing_accepted_is_a_failure(tmp_path: Path, table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(0, [{"image": "none.png", "caption": "x"}])
    assert main(["build", str(path), str(tmp_path / "out")]) == 1
    assert "error: none of 1 rows could be used; see" in capsys.readouterr().err
    assert set(contents(tmp_path / "out")) == {"rejects.jsonl"}
    assert main(["build", str(path), str(tmp_path / "out")]) == 1


def test_a_finished_build_is_not_repeated(tmp_path: Path, table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["build", str(table(5)), str(tmp_path / "out")]
    assert main(command) == 0
    shard = tmp_path / "out" / "pairs-000000.tar"
    before = shard.stat().st_mtime_ns
    capsys.readouterr()
    assert main(command) == 0
    assert "was already complete, nothing to do" in capsys.readouterr().out
    assert shard.stat().st_mtime_ns == before
    shard.unlink()
    with pytest.raises(DataError, match=r"pairs-000000\.tar is missing or has changed; pass --force"):
        build(open_source(str(table(5))), tmp_path / "out")


def test_another_dataset_is_not_overwritten_unless_forced(tmp_path: Path, table: Table) -> None:
    out = tmp_path / "out"
    build(open_source(str(table(9))), out, shard_size=2)
    with pytest.raises(DataError, match="holds a dataset built from other rows or settings"):
        build(open_source(str(table(4))), out, shard_size=2)
    (out / "keep.txt").write_text("mine")
    build(open_source(str(table(4))), out, shard_size=2, force=True)
    assert sorted(path.name for path in out.glob("*.tar")) == ["pairs-000000.tar", "pairs-000001.tar"]
    assert (out / "keep.txt").read_text() == "mine"


def test_force_reads_images_that_changed_under_their_names(
    tmp_path: Path, table: Table, picture: Callable[[int], bytes]
) -> None:
    path = table(2)
    build(open_source(str(path)), tmp_path / "out")
    (path.parent / "0.png").write_bytes(picture(99))
    build(open_source(str(path)), tmp_path / "out", force=True)
    assert ShardSet.open(str(tmp_path / "out")).read(0).image == picture(99)


def test_a_foreign_folder_is_refused(tmp_path: Path, table: Table) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match=r"is not empty \(thesis\.tex\)"):
        build(open_source(str(table(1))), tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {"thesis.tex"}


def test_two_builds_do_not_write_to_one_folder(tmp_path: Path, table: Table) -> None:
    import fcntl

    (tmp_path / "out" / STAGING).mkdir(parents=True)
    with open(tmp_path / "out" / STAGING / "=lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another build is writing to"):
            build(open_source(str(table(1))), tmp_path / "out")


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path, table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(5, [{"image": "none.png", "caption": ""}])
    assert main(["build", str(path), str(tmp_path / "out"), "--dry-run", "--json", "--shard-size", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["num_rows"], report["accepted"], report["rejected"]) == (6, 5, {"caption-empty": 1})
    assert report["splits"][""]["shards"] == 3
    assert not (tmp_path / "out").exists()


def test_a_staged_chunk_that_was_damaged_is_packed_again(tmp_path: Path, table: Table) -> None:
    source = open_source(str(table(4)))
    build(source, tmp_path / "whole", shard_size=2)
    settings = Settings(shard_size=2)
    for chunk in plan(source, settings):
        assert not pack(chunk, Job(LocalPlace(tmp_path / "out"), settings)).reused
    staged = tmp_path / "out" / STAGING / "=" / "000001.tar"
    staged.write_bytes(staged.read_bytes()[:-1])
    report = build(source, tmp_path / "out", shard_size=2)
    assert report.num_reused == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited 60 s for {what}"
        time.sleep(0.01)


def group_is_alive(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_build_continues_to_the_same_bytes(tmp_path: Path, table: Table, picture: Callable[[int], bytes]) -> None:
    path, out = table(12), tmp_path / "out"
    build(open_source(str(path)), tmp_path / "whole", shard_size=3)
    # A pipe that nobody writes to: the second chunk waits for its image until the build is killed.
    (path.parent / "4.png").unlink()
    os.mkfifo(path.parent / "4.png")
    command = [sys.executable, "-m", "data_prep", "build", str(path), str(out), "--shard-size", "3", "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_until(lambda: len(list(out.glob(f"{STAGING}/*/*.json"))) == 3, "the three other chunks")
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        wait_until(lambda: not group_is_alive(process.pid), "the workers to follow their parent")
    finally:
        process.kill()
    assert not list(out.rglob("manifest.jsonl"))
    (path.parent / "4.png").unlink()
    (path.parent / "4.png").write_bytes(picture(4))
    report = build(open_source(str(path)), out, shard_size=3)
    assert report.num_reused == 3
    assert contents(out) == contents(tmp_path / "whole")
