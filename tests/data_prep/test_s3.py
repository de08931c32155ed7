"""Building from and to S3: the bytes of a local build, whatever the store does meanwhile, and never half an object."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import s3fs
from PIL import Image

from data_prep.build import build
from data_prep.rows import Source
from data_prep.sources import open_source
from pipeline.errors import DataError
from tests.data_prep.conftest import encode
from tests.data_prep.faulty_s3 import FaultyS3

BUCKET = "unisphere-shards"


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyS3]:
    """The server with an empty bucket, found through the environment as a user's would be."""
    with FaultyS3() as started, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": started.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",  # fsspec tries again by itself
        }.items():
            patch.setenv(name, value)
        started.client().create_bucket(Bucket=BUCKET)
        patch.setattr("data_prep.patience.PAUSES_SECONDS", ())  # a store that is down stays down
        patch.setattr(s3fs.S3FileSystem, "retries", 2)
        s3fs.S3FileSystem.clear_instance_cache()
        yield started
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def remote_table(server: FaultyS3) -> str:
    """Nine rows and one without an image, in the bucket."""
    client, lines = server.client(), []
    for number in range(9):
        client.put_object(Bucket=BUCKET, Key=f"in/{number}.png", Body=encode(number))
        lines.append(json.dumps({"image": f"{number}.png", "caption": f"picture {number}"}))
    lines.append(json.dumps({"image": "none.png", "caption": "x"}))
    client.put_object(Bucket=BUCKET, Key="in/pairs.jsonl", Body="\n".join(lines).encode())
    return f"s3://{BUCKET}/in/pairs.jsonl"


@pytest.fixture(scope="module")
def expected(remote_table: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a local build of the remote table holds."""
    folder = tmp_path_factory.mktemp("expected")
    build(open_source(remote_table), folder, shard_size=2)
    return local_copy(folder)


@pytest.fixture
def store(server: FaultyS3) -> Iterator[FaultyS3]:
    """The server; what a test writes below out/ is gone after it."""
    yield server
    server.fault = lambda method, path, query: None
    client = server.client()
    for key in server.contents(BUCKET, "out/"):
        client.delete_object(Bucket=BUCKET, Key=f"out/{key}")


def local_copy(folder: Path) -> dict[str, bytes]:
    """Relative path -> bytes, as ``FaultyS3.contents`` gives them."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_requests_that_fail_now_and_then_lose_nothing(
    store: FaultyS3, remote_table: str, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request in twelve is answered 503, one image in three is cut."""
    monkeypatch.setattr("data_prep.patience.PAUSES_SECONDS", (0.0, 0.0, 0.0))
    rng, faults = random.Random(5), []

    def fault(method: str, path: str, query: str) -> str | None:
        is_image = method == "GET" and path.endswith(".png")
        if path.endswith(".jsonl") and "/in/" in path:  # botocore's own attempts, which this test turned off, are for that
            return None
        if rng.random() > (1 / 3 if is_image else 1 / 12):
            return None
        faults.append("cut" if is_image else "503")
        return faults[-1]

    store.fault = fault
    report = build(open_source(remote_table), f"s3://{BUCKET}/out", shard_size=2)
    store.fault = lambda method, path, query: None
    assert set(faults) == {"cut", "503"}
    assert (report.accepted, report.rejected) == (9, {"image-missing": 1})
    assert store.contents(BUCKET, "out/") == expected


def nth(number: int, wanted: str) -> Callable[[str, str, str], bool]:
    """True from the ``number``-th request on whose method and path begin and hold what ``wanted`` says ("PUT out/.build")."""
    seen = [0]
    method, _, part = wanted.partition(" ")

    def reached(actual: str, path: str, query: str) -> bool:
        seen[0] += actual == method and part in path
        return seen[0] >= number

    return reached


@pytest.mark.parametrize(("number", "wanted"), [(6, "PUT .build"), (3, "PUT out/pairs")])
def test_a_store_that_stops_answering_is_explained_and_the_next_run_continues(
    store: FaultyS3, remote_table: str, expected: dict[str, bytes], number: int, wanted: str
) -> None:
    down, out = nth(number, wanted), f"s3://{BUCKET}/out"
    store.fault = lambda method, path, query: "503" if down(method, path, query) and method == "PUT" else None
    with pytest.raises(
        DataError, match=rf"cannot write {out}/.*(reduce your request rate|SlowDown|busy|503).*run the same command again"
    ):
        build(open_source(remote_table), out, shard_size=2)
    store.fault = lambda method, path, query: None
    visible = {key: data for key, data in store.contents(BUCKET, "out/").items() if not key.startswith(".build")}
    assert visible.items() <= expected.items()
    done = sum(key.startswith(".build/=/0") and key.count(".") == 2 for key in store.contents(BUCKET, "out/"))
    report = build(open_source(remote_table), out, shard_size=2)
    assert store.contents(BUCKET, "out/") == expected
    assert report.num_reused >= max(0, done // 2 - 1)


@pytest.mark.parametrize("stage", ["PUT out/pairs-000001.tar", pytest.param("PUT .build/=/000002.tar", marks=pytest.mark.slow)])
def test_a_killed_build_continues(store: FaultyS3, remote_table: str, expected: dict[str, bytes], stage: str) -> None:
    """SIGKILL in the middle of a request, while packing and while committing."""
    script = "import sys; from data_prep.build import build; from data_prep.sources import open_source; "
    script += "build(open_source(sys.argv[1]), sys.argv[2], shard_size=2)"
    command = [sys.executable, "-c", script, remote_table, f"s3://{BUCKET}/out"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    reached = nth(1, stage)

    def fault(method: str, path: str, query: str) -> str | None:
        if reached(method, path, query):
            os.kill(process.pid, signal.SIGKILL)
        return None

    store.fault = fault
    assert process.wait(timeout=120) == -signal.SIGKILL
    store.fault = lambda method, path, query: None
    visible = {key: data for key, data in store.contents(BUCKET, "out/").items() if not key.startswith(".build")}
    assert visible.items() <= expected.items()
    report = build(open_source(remote_table), f"s3://{BUCKET}/out", shard_size=2)
    assert report.num_reused >= (2 if ".build" in stage else 5)
    assert store.contents(BUCKET, "out/") == expected


@pytest.fixture
def large(tmp_path: Path) -> Source:
    """One row whose shard takes three parts of a multipart upload."""
    noise = np.random.default_rng(0).integers(0, 256, (1900, 2000, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.bmp")
    (tmp_path / "large.csv").write_text("image,caption\nlarge.bmp,noise\n")
    return open_source(str(tmp_path / "large.csv"))


def test_a_large_shard_is_uploaded_in_parts_and_a_failed_upload_leaves_nothing(
    store: FaultyS3, large: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.places.PART_BYTES", 5 << 20)
    out, client = f"s3://{BUCKET}/out/large", store.client()
    store.fault = lambda method, path, query: "503" if "partNumber=2" in query else None
    with pytest.raises(DataError, match=r"cannot write s3://.*/large/\.build/=/000000\.tar"):
        build(large, out)
    assert not [key for key in store.contents(BUCKET, "out/large/") if key.endswith(".tar")]
    assert "Uploads" not in client.list_multipart_uploads(Bucket=BUCKET)
    store.fault = lambda method, path, query: None
    store.requests.clear()
    build(large, out)
    assert {query.partition("&")[0] for _, _, query in store.requests if "partNumber" in query} >= {
        "partNumber=1",
        "partNumber=2",
        "partNumber=3",
    }
    build(large, tmp_path / "local")
    assert store.contents(BUCKET, "out/large/") == local_copy(tmp_path / "local")


def test_images_that_cannot_be_read_any_more_stop_the_build(
    store: FaultyS3, remote_table: str, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.pack.MAX_FAILED_READS", 2)
    store.fault = lambda method, path, query: "503" if path.endswith(("3.png", "4.png", "5.png")) else None
    with pytest.raises(DataError, match=r"2 images in a row could not be read, the last: s3://.*run the same command again"):
        build(open_source(remote_table), tmp_path / "out", shard_size=9)
    store.fault = lambda method, path, query: None
    build(open_source(remote_table), tmp_path / "out", shard_size=2, force=True)
    assert local_copy(tmp_path / "out") == expected
