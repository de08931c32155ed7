"""Data paths, manifests, and everything that can be wrong with the files behind them."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle

import pytest

from pipeline.data import files, shards, tar
from pipeline.data.samples import ShardSet
from pipeline.errors import DataError, TruncatedTar
from tests.data.on_disk import pair, tar_bytes, write_manifest, write_set


def keys(data: ShardSet) -> list[str]:
    return [data.read(i).key for i in range(len(data))]


@pytest.mark.parametrize(
    ("spec", "paths"),
    [
        ("a/x-{000008..000010}.tar", ["a/x-000008.tar", "a/x-000009.tar", "a/x-000010.tar"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("a.tar::b-{1..2}.tar", ["a.tar", "b-1.tar", "b-2.tar"]),
        ("folder", ["folder"]),
    ],
)
def test_a_spec_names_paths_in_order(spec, paths):
    assert shards.expand(spec) == paths


@pytest.mark.parametrize(("spec", "text"), [("", "names no shards"), ("x-{0..3.tar", "ranges look like")])
def test_a_spec_that_makes_no_sense(spec, text):
    with pytest.raises(DataError, match=text):
        shards.expand(spec)


def test_folder_braces_single_tar_and_scan_agree(tmp_path):
    listed, bare = write_set(tmp_path / "m", [3, 0, 5]), write_set(tmp_path / "b", [3, 0, 5], manifest=False)
    specs = [
        str(listed),
        f"{listed}/x-{{000000..000002}}.tar",
        "::".join(f"{listed}/x-00000{n}.tar" for n in range(3)),
        str(bare),
        f"{bare}/x-{{000000..000002}}.tar",
        f"{bare}/x-000000.tar::{listed}/x-00000{{1,2}}.tar",
    ]
    for spec in specs:
        data = ShardSet.open(spec)
        assert data.counts.tolist() == [3, 0, 5]
        assert keys(data) == [f"{n:06d}" for n in range(8)]
        assert data.read(4).captions == ("caption 4",)
        assert [os.path.basename(path) for path in data.sources] == [f"x-00000{n}.tar" for n in range(3)]


def test_without_manifest_numbered_tars_are_read_in_number_order_and_it_is_said(tmp_path, caplog):
    for number in (10, 2, 1):
        (tmp_path / f"{number}.tar").write_bytes(tar_bytes({str(number): pair(number)}))
    with caplog.at_level(logging.INFO, "pipeline.data"):
        assert keys(ShardSet.open(str(tmp_path))) == ["1", "2", "10"]
    assert "read 3 shards without index" in caplog.text
    assert "unisphere shards index" in caplog.text


def test_tars_missing_from_the_manifest_are_said(tmp_path, caplog):
    write_set(tmp_path, [2])
    (tmp_path / "extra.tar").write_bytes(tar_bytes({"k": pair(0)}))
    assert len(ShardSet.open(str(tmp_path))) == 2
    assert "1 tars, like extra.tar, are not in manifest.jsonl and not read" in caplog.text
    assert keys(ShardSet.open(str(tmp_path / "extra.tar"))) == ["k"], "asked for by name, it is scanned"


def test_a_missing_folder_or_shard_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere cannot be read: No such file .* give an existing folder"):
        ShardSet.open(str(tmp_path / "nowhere"))
    write_set(tmp_path, [1])
    with pytest.raises(DataError, match=r"x-000001.tar cannot be read"):
        ShardSet.open(f"{tmp_path}/x-{{000000..000001}}.tar")


def test_a_folder_without_shards_shows_what_it_holds(tmp_path):
    with pytest.raises(DataError, match=r"neither manifest.jsonl nor \*.tar; it holds 0 entries; build shards with"):
        ShardSet.open(str(tmp_path))
    (tmp_path / "train.csv").write_text("")
    with pytest.raises(DataError, match=r"it holds 1 entries \(train.csv\)"):
        ShardSet.open(str(tmp_path))


def test_no_samples_at_all(tmp_path):
    with pytest.raises(DataError, match="2 shards with 0 samples"):
        ShardSet.open(str(write_set(tmp_path, [0, 0])))


def test_a_zero_byte_tar(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(TruncatedTar, match=r"a.tar: truncated: .* empty \(0 bytes\)"):
        ShardSet.open(str(tmp_path))


def cuts(path):
    """Lengths that cut a tar at each sample boundary, and inside a header, a picture, and the padding of a caption."""
    with path.open("rb") as stream:
        spans = list(tar.iter_samples(stream))
    first = spans[0]
    return [span.offset + span.size for span in spans] + [100, first.offset + 700, first.offset + first.size - 200]


def test_any_cut_is_noticed_with_and_without_manifest(tmp_path):
    listed, bare = write_set(tmp_path / "m", [4]), write_set(tmp_path / "b", [4], manifest=False)
    whole = (bare / "x-000000.tar").read_bytes()
    lengths = cuts(bare / "x-000000.tar")
    assert len(lengths) == 7
    for length in lengths:
        for folder in (listed, bare):
            (folder / "x-000000.tar").write_bytes(whole[:length])
        with pytest.raises(TruncatedTar, match=rf"has {length:,} bytes, its manifest says .* it was cut short"):
            ShardSet.open(str(listed))
        with pytest.raises(TruncatedTar, match="x-000000.tar: truncated"):
            ShardSet.open(str(bare))


def test_a_shard_that_grew_is_noticed(tmp_path):
    with (write_set(tmp_path, [2]) / "x-000000.tar").open("ab") as stream:
        stream.write(bytes(512))
    with pytest.raises(DataError, match="it was changed after it was built"):
        ShardSet.open(str(tmp_path))


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{", r"manifest.jsonl, line 2: not JSON .*unisphere shards index"),
        ("[]", r"line 2: 'shard' is missing or no str"),
        ('{"shard": "y.tar", "count": "3", "bytes": 4}', r"line 2: 'count' is missing or no int"),
        ('{"shard": "x-000000.tar", "count": 3, "bytes": 4}', r"lists shard 'x-000000.tar' twice"),
    ],
)
def test_a_broken_manifest_names_the_line(tmp_path, line, text):
    with (write_set(tmp_path, [1]) / "manifest.jsonl").open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(DataError, match=text):
        ShardSet.open(str(tmp_path))


def test_a_missing_index_is_found_at_opening(tmp_path):
    (write_set(tmp_path, [1]) / "x-000000.index.jsonl").unlink()
    with pytest.raises(DataError, match=r"index .*x-000000.index.jsonl of shard .* cannot be read"):
        ShardSet.open(str(tmp_path))


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([{"key": "a", "offset": 0, "size": 512}], "has 1 lines, the manifest says 2"),
        ([{"key": "a", "offset": 0, "size": 512}, {"key": "b", "offset": 10**6, "size": 512}], "points outside"),
        ([{"key": "a", "offset": 0, "size": 512}, {"key": "b", "offset": 0}], "line 2: 'size' is missing or no int"),
    ],
)
def test_a_broken_index(tmp_path, rows, text):
    path = write_set(tmp_path, [2]) / "x-000000.index.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=text):
        ShardSet.open(str(tmp_path)).read(0)


def test_a_manifest_row_without_index_is_scanned_and_its_count_checked(tmp_path):
    row = json.loads((write_set(tmp_path, [3]) / "manifest.jsonl").read_text())
    del row["index"]
    (tmp_path / "manifest.jsonl").write_text(json.dumps(row))
    assert keys(ShardSet.open(str(tmp_path))) == ["000000", "000001", "000002"]
    (tmp_path / "manifest.jsonl").write_text(json.dumps(row | {"count": 4}))
    with pytest.raises(DataError, match="holds 3 samples, its manifest says 4"):
        ShardSet.open(str(tmp_path))


def num_open_files(folder) -> int:
    """Descriptors of this process that lie in ``folder``; those of other tests' threads come and go."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith(str(folder))
        except FileNotFoundError:
            continue
    return found


def test_open_files_are_bounded_and_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_OPEN_FILES", 4)
    before = num_open_files(tmp_path)
    data = ShardSet.open(str(write_set(tmp_path, [1] * 20)))
    assert keys(data) + keys(data) == [f"{n:06d}" for n in range(20)] * 2
    assert num_open_files(tmp_path) == before + 4
    copied = pickle.loads(pickle.dumps(data)), copy.deepcopy(data)
    assert num_open_files(tmp_path) == before + 4, "a copy opens its own files when it first reads"
    assert keys(copied[0]) == keys(copied[1]) == keys(data)
    assert num_open_files(tmp_path) == before + 12
    del data, copied
    assert num_open_files(tmp_path) == before


def test_mapped_files_give_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_OPEN_FILES", 2)
    folder = write_set(tmp_path, [2, 3, 0, 1])
    resolved = shards.resolve(str(folder))
    plain, mapped = files.LocalFiles(), files.LocalFiles(mapped=True)
    before = num_open_files(tmp_path)
    data = ShardSet(resolved, mapped)
    data.prepare(range(6))
    assert [data.read(i) for i in (5, 0, 3, 1, 2, 4)] == [ShardSet(resolved, plain).read(i) for i in (5, 0, 3, 1, 2, 4)]
    assert mapped.read(resolved[0].path, 0, 0) == b""
    assert len(mapped._maps) <= 2
    assert pickle.loads(pickle.dumps(mapped))._mapped
    del data
    mapped.close()
    assert mapped._maps == {}
    assert num_open_files(tmp_path) <= before + 2, "those of the other reader"


def test_descriptors_are_shared_across_fork(tmp_path):
    data = ShardSet.open(str(write_set(tmp_path, [5])))
    data.read(0)
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:  # os._exit: the test runner's own exit handlers belong to the parent
            os._exit(0 if keys(data) == [f"{n:06d}" for n in range(5)] else 1)
        children.append(child)
    assert keys(data) == [f"{n:06d}" for n in range(5)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]


def test_a_manifest_written_for_the_tests_is_like_a_real_one(tmp_path):
    write_set(tmp_path, [2], manifest=False)
    write_manifest(tmp_path)
    row = json.loads((tmp_path / "manifest.jsonl").read_text())
    assert set(row) == {"shard", "count", "bytes", "sha256", "index"}
