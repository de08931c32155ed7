"""The same rows from every kind of source, local or remote, are the same shards; and what only one kind can bring."""

from __future__ import annotations

import http.server
import io
import json
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pytest
from pyarrow import parquet

from data_prep.build import build
from data_prep.rows import EvalTexts, Row, Source
from data_prep.sources import open_source
from data_prep.split import split
from pipeline.data.samples import ShardSet
from pipeline.data.tar import END_OF_ARCHIVE, member_bytes
from pipeline.errors import DataError
from tests.data_prep.conftest import encode
from tests.data_prep.test_build import contents, rejects

ROWS = [
    {"key": f"k{number}", "captions": [f"picture {number}", f"Bild {number} äöü"], "licence": "CC0", "note": f"n{number}"}
    for number in range(7)
]


def images(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for row, fields in enumerate(ROWS):
        (folder / f"{fields['key']}.png").write_bytes(encode(row))
    return folder


def with_paths() -> list[dict[str, Any]]:
    return [{"image": f"{fields['key']}.png", **fields} for fields in ROWS]


def as_jsonl(folder: Path) -> str:
    (images(folder) / "set.jsonl").write_text("".join(json.dumps(fields) + "\n" for fields in with_paths()))
    return str(folder / "set.jsonl")


def as_separated(folder: Path, suffix: str, separator: str) -> str:
    import csv

    with open(images(folder) / f"set{suffix}", "w", newline="") as handle:
        writer = csv.writer(handle, delimiter=separator)
        writer.writerow(with_paths()[0])
        writer.writerows([[json.dumps(v) if isinstance(v, list) else v for v in row.values()] for row in with_paths()])
    return str(folder / f"set{suffix}")


def as_parquet(folder: Path) -> str:
    parquet.write_table(pyarrow.Table.from_pylist(with_paths()), images(folder) / "set.parquet", row_group_size=3)
    return str(folder / "set.parquet")


def as_folder(folder: Path) -> str:
    images(folder / "set")
    for fields in ROWS:
        (folder / "set" / f"{fields['key']}.txt").write_text("\n".join(fields["captions"]) + "\n")
        rest = {name: value for name, value in fields.items() if name not in ("key", "captions")}
        (folder / "set" / f"{fields['key']}.json").write_text(json.dumps(rest))
    return str(folder / "set")


def as_tars(folder: Path) -> str:
    """As another tool writes them: GNU headers, a folder entry, the text before the image."""
    (folder / "set").mkdir(parents=True)
    for number, rows in enumerate((range(4), range(4, 7))):
        with tarfile.open(folder / "set" / f"{number}.tar", "w", format=tarfile.GNU_FORMAT) as archive:
            for row in rows:
                meta = {name: value for name, value in ROWS[row].items() if name != "key"}
                for name, data in (("json", json.dumps(meta).encode()), ("png", encode(row))):
                    info = tarfile.TarInfo(f"{ROWS[row]['key']}.{name}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return str(folder / "set")


def as_own_shards(folder: Path) -> str:
    build(open_source(as_jsonl(folder / "first")), folder / "set", shard_size=2)
    return str(folder / "set")


KINDS: dict[str, Callable[[Path], str]] = {
    "jsonl": as_jsonl,
    "csv": lambda folder: as_separated(folder, ".csv", ","),
    "tsv": lambda folder: as_separated(folder, ".tsv", "\t"),
    "parquet": as_parquet,
    "folder": as_folder,
    "tars": as_tars,
    "own shards": as_own_shards,
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("expected")
    build(open_source(as_jsonl(folder)), folder / "out", shard_size=3)
    return contents(folder / "out")


def shards(files: dict[str, str]) -> dict[str, str]:
    """What depends on the rows: everything but the report, which holds the fingerprint of where images lie."""
    return {name: digest for name, digest in files.items() if name != "build.json"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_are_the_same_shards(tmp_path: Path, expected: dict[str, str], kind: str) -> None:
    report = build(open_source(KINDS[kind](tmp_path)), tmp_path / "out", shard_size=3)
    assert (report.accepted, report.rejected.total()) == (7, 0)
    assert shards(contents(tmp_path / "out")) == shards(expected)


@pytest.fixture
def memory() -> Iterator[Any]:
    """The file system in memory that fsspec has, empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


@pytest.mark.parametrize("kind", KINDS)
def test_remote_sources_too(tmp_path: Path, expected: dict[str, str], kind: str, memory: Any) -> None:
    local = Path(KINDS[kind](tmp_path / "local"))
    memory.put(str(local if local.is_dir() else local.parent), "/in/set" if local.is_dir() else "/in", recursive=True)
    spec = "memory://in/set" if local.is_dir() else f"memory://in/{local.name}"
    report = build(open_source(spec), tmp_path / "out", shard_size=3)
    assert (report.accepted, dict(report.rejected)) == (7, {})
    assert shards(contents(tmp_path / "out")) == shards(expected)


def test_remote_output_holds_what_local_output_holds(tmp_path: Path, expected: dict[str, str], memory: Any) -> None:
    source = open_source(as_jsonl(tmp_path))
    build(source, tmp_path / "local", shard_size=3)
    build(source, "memory://out/set", shard_size=3)
    memory.get("/out/set", str(tmp_path / "copy"), recursive=True)
    assert contents(tmp_path / "copy") == contents(tmp_path / "local")
    assert build(source, "memory://out/set", shard_size=3).already_complete


def test_a_table_of_urls(tmp_path: Path, memory: Any) -> None:
    memory.pipe_file("/pictures/a.png", encode(3))
    (tmp_path / "set.csv").write_text("url,caption\nmemory://pictures/a.png,a\nmemory://pictures/b.png,b\n")
    report = build(open_source(str(tmp_path / "set.csv")), tmp_path / "out")
    assert (report.accepted, report.rejected) == (1, {"image-missing": 1})


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_table_on_a_web_server(tmp_path: Path, expected: dict[str, str]) -> None:
    as_jsonl(tmp_path / "web")
    handler = partial(Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        build(open_source(f"http://127.0.0.1:{server.server_address[1]}/set.jsonl"), tmp_path / "out", shard_size=3)
        server.shutdown()
    assert shards(contents(tmp_path / "out")) == shards(expected)


def img2dataset_folder(folder: Path) -> str:
    """What img2dataset leaves: two downloads that worked and one that did not."""
    folder.mkdir()
    members = b""
    for key in ("000000000", "000000002"):
        meta = {"caption": f"c{key}", "url": f"https://host/{key}", "key": key, "status": "success", "width": 8}
        members += member_bytes(f"{key}.jpg", encode(int(key), "JPEG")) + member_bytes(f"{key}.txt", f"c{key}".encode())
        members += member_bytes(f"{key}.json", json.dumps(meta).encode())
    (folder / "00000.tar").write_bytes(members + END_OF_ARCHIVE)
    records = [
        {"url": f"https://host/{n}", "key": f"00000000{n}", "status": status, "error_message": error}
        for n, status, error in ((0, "success", None), (1, "failed_to_download", "HTTP Error 404"), (2, "success", None))
    ]
    parquet.write_table(pyarrow.Table.from_pylist(records), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text('{"count": 3, "successes": 2}')
    return str(folder)


def test_img2dataset_output_adds_up_to_its_url_list(tmp_path: Path) -> None:
    folder = Path(img2dataset_folder(tmp_path / "downloads"))
    report = build(open_source(str(folder)), tmp_path / "out")
    assert (report.num_rows, report.accepted, report.rejected) == (3, 2, {"download-failed": 1})
    assert rejects(tmp_path / "out")[0]["detail"] == "failed_to_download: HTTP Error 404"
    for name in ("00000.parquet", "00000_stats.json"):
        assert (tmp_path / "out" / "source" / name).read_bytes() == (folder / name).read_bytes()
    with tarfile.open(tmp_path / "out" / "downloads-000000.tar") as archive:
        meta = json.load(archive.extractfile("000000002.json"))  # type: ignore[arg-type]
    assert meta == {"captions": ["c000000002"], "url": "https://host/000000002", "status": "success", "width": 8}


def test_a_build_from_what_was_built_is_the_same_build(tmp_path: Path) -> None:
    """Splits with the same keys, and an evaluation set with its class names; built again, and again from a split's parts."""
    picture = [str(path) for path in sorted(images(tmp_path / "in").glob("*.png"))]

    def rows() -> Iterator[Row]:
        for number, path in enumerate(picture):
            split = ("eval", "train", "val")[number % 3]
            yield Row(
                number, path, (f"picture {number}",), key=f"k{number // 3}", split=split, label=number % 2, meta={"n": number}
            )

    texts = {"eval": EvalTexts(("cat", "dog"), ("a {c}",))}
    first = build(Source("set", rows, eval_sets=texts), tmp_path / "set")
    again = build(open_source(str(tmp_path / "set")), tmp_path / "out" / "set")
    assert again.splits == first.splits
    assert again.rejected == {}
    same = {name: value for name, value in contents(tmp_path / "set").items() if name not in ("build.json", "hashes.jsonl")}
    assert {name: value for name, value in contents(tmp_path / "out" / "set").items() if name in same} == same
    parts = split([str(tmp_path / "set" / "train")], str(tmp_path / "parts"), {"one": 0.5, "two": 0.5}, by="key")
    apart = build(open_source(str(tmp_path / "parts")), tmp_path / "apart")
    assert {name: sizes["samples"] for name, sizes in apart.splits.items()} == {k: n for k, n in parts.parts.items() if n}


def test_a_text_member_is_one_caption_as_in_training(tmp_path: Path) -> None:
    """Beside an image in a folder every line is one; a tar's text is read as the loader reads it."""
    meta = {"path": "kept/as/it/is.png", "image": "not this", "key": "nor this"}
    members = {"a.png": encode(1), "a.txt": b"two\nlines\n", "a.json": json.dumps(meta).encode()}
    (tmp_path / "set.tar").write_bytes(b"".join(member_bytes(*item) for item in members.items()) + END_OF_ARCHIVE)
    build(open_source(str(tmp_path / "set.tar")), tmp_path / "out")
    sample = ShardSet.open(str(tmp_path / "out")).read(0)
    assert (sample.key, sample.captions, sample.meta) == ("a", ("two\nlines",), {"path": "kept/as/it/is.png"})
    assert sample.image == encode(1)


def hostile(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(data), "/etc/passwd"
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def test_hostile_tars_are_read_past_and_counted(tmp_path: Path) -> None:
    good = hostile("good.png", data=encode(1)) + hostile("good.txt", data=b"fine") + hostile("good.npy", data=b"vector")
    claims = tarfile.TarInfo("huge.png")
    claims.size = 10 << 30
    cases = {
        "link-not-followed": hostile("l.png", tarfile.SYMTYPE) + hostile("h.png", tarfile.LNKTYPE),
        "key-invalid": hostile("../../up.png", data=encode(2)) + hostile("../../up.txt", data=b"x"),
        "member-unknown": hostile("README", data=b"x"),
        "image-missing": hostile("text.txt", data=b"x"),
        "image-empty": hostile("void.png") + hostile("void.txt", data=b"x"),
        "caption-too-long": hostile("long.png", data=encode(3)) + hostile("long.txt", data=b"y" * 200_000),
        "json-invalid": hostile("j.png", data=encode(4)) + hostile("j.json", data=b"{"),
        "tar-corrupt": claims.tobuf(tarfile.GNU_FORMAT) + b"cut",
    }
    (tmp_path / "set.tar").write_bytes(good + b"".join(cases.values()))
    report = build(open_source(str(tmp_path / "set.tar")), tmp_path / "out")
    expected = dict.fromkeys(cases, 1) | {"link-not-followed": 2}
    assert (report.accepted, report.left_out, report.rejected) == (1, {"member-left-out": 1}, expected)


def test_names_and_captions_reach_no_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is executed while a set is built whose every text is a command."""
    evil = "$(touch pwned); `touch pwned` | touch pwned #"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"{evil}.png".replace("/", "_")).write_bytes(encode(0))
    (tmp_path / "in" / f"{evil}.txt").write_text(evil)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr("os.system", None)
    assert build(open_source(str(tmp_path / "in")), tmp_path / "out").accepted == 1
    assert not list(tmp_path.rglob("pwned"))


def test_a_million_splits_are_an_error(tmp_path: Path) -> None:
    lines = (f'{{"image": "x.png", "caption": "x", "split": "s{n}"}}\n' for n in range(3000))
    (tmp_path / "set.jsonl").write_text("".join(lines))
    with pytest.raises(DataError, match="more than 1,000 splits, the last is 's1000'"):
        build(open_source(str(tmp_path / "set.jsonl")), tmp_path / "out")


def test_a_tar_among_images_is_counted(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "x.tar").write_bytes(END_OF_ARCHIVE)
    (row,) = open_source(str(tmp_path)).rows()
    assert row.problem is not None and "build from it as a source of its own" in row.problem.detail
