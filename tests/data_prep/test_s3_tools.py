"""The tools on S3: read there, written there with manifests last, and plain about a store that fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from data_prep.index import adopt
from data_prep.reader import Reader
from data_prep.reshard import reshard
from data_prep.verify import verify
from pipeline.data.samples import ShardSet
from pipeline.errors import DataError
from tests.data_prep.faulty_s3 import FaultyS3
from tests.data_prep.tars import write_set

BUCKET = "unisphere-tools"


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyS3]:
    """The server with two shards below ``set/``, found through the environment as a user's would be."""
    with FaultyS3() as started, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_ENDPOINT_URL", started.url)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        patch.setattr(s3fs.S3FileSystem, "retries", 1)
        patch.setattr("data_prep.patience.PAUSES_SECONDS", ())  # a store that is down stays down
        s3fs.S3FileSystem.clear_instance_cache()
        started.client().create_bucket(Bucket=BUCKET)
        yield started
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def store(server: FaultyS3, tmp_path: Path) -> Iterator[FaultyS3]:
    """The server with two shards of three samples below ``set/`` and nothing else."""
    client = server.client()
    for path in write_set(tmp_path / "local").glob("*.tar"):
        client.put_object(Bucket=BUCKET, Key=f"set/{path.name}", Body=path.read_bytes())
    s3fs.S3FileSystem.clear_instance_cache()
    yield server
    server.fault = lambda method, path, query: None
    for key in server.contents(BUCKET, ""):
        client.delete_object(Bucket=BUCKET, Key=key)


def test_shards_are_adopted_checked_and_copied_in_the_bucket(store: FaultyS3, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}/set"
    assert adopt([url]).num_samples == 6
    adopt([str(tmp_path / "local")])
    local = {path.name: path.read_bytes() for path in (tmp_path / "local").iterdir()}
    assert store.contents(BUCKET, "set/") == local
    assert verify([url]).examples == {}
    assert reshard([url], f"s3://{BUCKET}/out", shard_size=4).num_shards == 2
    assert verify([f"s3://{BUCKET}/out"]).counts == {}
    puts = [path.rpartition("/")[2] for method, path, _ in store.requests if method == "PUT" and "/out/" in path]
    assert puts[-1] == "manifest.jsonl"
    for name, data in store.contents(BUCKET, "out/").items():
        (tmp_path / name).write_bytes(data)
    assert len(ShardSet.open(str(tmp_path / "shard-{000000..000001}.tar"))) == 6


def test_remote_shards_are_shuffled_as_local_ones_are(store: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"s3://{BUCKET}/set"
    for source, out in ((str(tmp_path / "local"), tmp_path / "here"), (url, tmp_path / "there")):
        assert reshard([source], str(out), shard_size=4, shuffle_seed=5).num_written == 6
    here, there = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("here", "there"))
    assert here == there
    assert [sample.key for sample in Reader([str(tmp_path / "here")])] != [sample.key for sample in Reader([url])]
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: full)
    with pytest.raises(DataError, match=r"copies remote shards to .* first: [\d,]+ bytes, of which 1,000 are free; set TMPDIR"):
        reshard([url], str(tmp_path / "more"), shard_size=4, shuffle_seed=5)


def test_a_body_that_is_cut_is_never_taken_for_a_shard(store: FaultyS3) -> None:
    store.fault = lambda method, path, query: "cut" if method == "GET" and path.endswith("/1.tar") else None
    result = adopt([f"s3://{BUCKET}/set"])
    assert (result.num_shards, len(result.bad), result.written) == (1, 1, False)
    assert result.bad[0].startswith(f"s3://{BUCKET}/set/1.tar cannot be read: ")
    assert verify([f"s3://{BUCKET}/set"]).counts == {"shard-unreadable": 1}
    with pytest.raises(DataError, match=r"/set/1\.tar cannot be read: "):
        list(Reader([f"s3://{BUCKET}/set"]))
    with pytest.raises(DataError, match=r"/set/1\.tar (cannot be (read|copied)|ended after)"):
        reshard([f"s3://{BUCKET}/set"], f"s3://{BUCKET}/out", shard_size=4, shuffle_seed=0)
    store.fault = lambda method, path, query: None
    assert set(store.contents(BUCKET, "set/")) == {"0.tar", "1.tar"}


def test_a_store_that_is_down_while_writing_leaves_no_manifest(store: FaultyS3) -> None:
    store.fault = lambda method, path, query: "503" if method == "PUT" and path.endswith("sizes.json") else None
    with pytest.raises(DataError, match=r"cannot write into s3://unisphere-tools/set \(.*\); describe these shards elsewhere"):
        adopt([f"s3://{BUCKET}/set"])
    with pytest.raises(DataError, match=r"cannot write s3://unisphere-tools/out: "):
        reshard([f"s3://{BUCKET}/set"], f"s3://{BUCKET}/out", shard_size=4)
    store.fault = lambda method, path, query: None
    assert not any("manifest" in name for name in store.contents(BUCKET, ""))
