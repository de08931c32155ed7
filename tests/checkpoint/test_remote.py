"""Copies under a URL: complete sets only, damaged ones passed over, a failure that ends no training. On a local S3 server."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from pipeline import checkpoint
from pipeline.checkpoint import Saver
from pipeline.checkpoint.remote import Remote
from pipeline.config import CheckpointConfig, RunConfig
from pipeline.dist import World
from pipeline.errors import CheckpointError
from tests.checkpoint.fakes import SETTINGS, FakeEngine, names, run_config, state

BUCKET = "unisphere-test"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """An S3 server on a free port."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3fs.S3FileSystem]:
    """An empty bucket, found through the environment as a user's would be."""
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    files.mkdir(BUCKET)
    yield files
    files.rm(BUCKET, recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


def uploading(tmp_path: Path, **changes: object) -> RunConfig:
    """A run whose checkpoints are copied to the bucket."""
    return run_config(tmp_path, checkpoint={"upload": f"s3://{BUCKET}/runs", **changes})


def train(cfg: RunConfig, *steps: int) -> Saver:
    """Save each of ``steps`` as a training would."""
    saver = Saver(cfg.checkpoint, cfg.run_dir, FakeEngine(averaged=True), world=World())
    for step in steps:
        saver._engine = FakeEngine(step, averaged=True)
        saver.save(state(step))
        saver.close()  # else a copy that has not begun is overtaken by the next one
    return saver


def resumed(cfg: RunConfig) -> float:
    """The weights that a start of this run begins with."""
    engine = FakeEngine(-1.0)
    found = checkpoint.resume(cfg, engine, SETTINGS, world=World())
    assert found is not None
    return engine.value


def test_a_run_whose_folder_is_lost_resumes_from_its_copy(tmp_path: Path, bucket: s3fs.S3FileSystem) -> None:
    cfg = uploading(tmp_path, keep_last=2)
    assert train(cfg, 1, 2, 3).metrics()["checkpoint/upload_failures"] == 0
    expected = {f"{BUCKET}/runs/run/step-0000000{step}" for step in (2, 3)}
    assert set(bucket.ls(f"{BUCKET}/runs/run", refresh=True)) == expected, "what is deleted here is deleted there"
    shutil.rmtree(cfg.run_dir)
    assert resumed(cfg) == 3.0
    assert names(cfg.run_dir) == ["step-00000003"]
    assert checkpoint.newest(cfg.run_dir, deep=True) is not None


@pytest.mark.parametrize("lost", ["state.json", "model.safetensors", "shards/00000-of-00001.safetensors"])
def test_an_unfinished_copy_is_never_used(tmp_path: Path, bucket: s3fs.S3FileSystem, lost: str) -> None:
    cfg = uploading(tmp_path)
    train(cfg, 1, 2)
    bucket.rm(f"{BUCKET}/runs/run/step-00000002/{lost}")
    shutil.rmtree(cfg.run_dir)
    assert resumed(cfg) == 1.0


def test_a_copy_that_was_damaged_is_passed_over(
    tmp_path: Path, bucket: s3fs.S3FileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = uploading(tmp_path)
    train(cfg, 1, 2)
    path = f"{BUCKET}/runs/run/step-00000002/model.safetensors"
    content = bytearray(bucket.cat_file(path))
    content[-1] ^= 1
    bucket.pipe_file(path, bytes(content))
    shutil.rmtree(cfg.run_dir)
    logging.getLogger("unisphere").addHandler(caplog.handler)
    assert resumed(cfg) == 1.0
    logging.getLogger("unisphere").removeHandler(caplog.handler)
    assert "step-00000002" in caplog.text and "was damaged: sha256" in caplog.text


def test_one_checkpoint_by_its_url(tmp_path: Path, bucket: s3fs.S3FileSystem) -> None:
    train(uploading(tmp_path), 1, 2)
    other = run_config(tmp_path, name="other", resume_from=f"s3://{BUCKET}/runs/run/step-00000001")
    assert resumed(other) == 1.0
    missing = run_config(tmp_path, name="third", resume_from=f"s3://{BUCKET}/runs/run/step-00000009")
    with pytest.raises(CheckpointError, match="resume_from = s3://.*step-00000009 is no complete checkpoint"):
        resumed(missing)


def test_a_copy_that_fails_ends_no_training_and_is_counted(tmp_path: Path) -> None:
    (tmp_path / "in the way").write_text("")
    cfg = CheckpointConfig(upload=f"file://{tmp_path}/in the way")
    saver = Saver(cfg, tmp_path / "run", FakeEngine(1.0), world=World())
    folder = saver.save(state(1))
    saver.close()
    assert saver.metrics()["checkpoint/upload_failures"] == 1 and saver.metrics()["checkpoint/failures"] == 0
    assert checkpoint.newest(tmp_path / "run", deep=True) == folder


def test_a_copy_replaces_what_is_there_under_its_name(tmp_path: Path) -> None:
    """A run that goes back saves the same step again, with files of the same size and other numbers."""
    remote = Remote(f"file://{tmp_path}/far", "run")
    for value in (1.0, 2.0):
        folder = checkpoint.save(tmp_path / "run", FakeEngine(value), state(1), world=World(), keep_last=0)
        remote.upload(folder, checkpoint.read_record(folder))
    (tmp_path / "again").mkdir()
    fetched = remote.fetch(tmp_path / "again")
    assert fetched is not None and checkpoint.read_weights(fetched)["w"][0] == 2.0


def test_copies_that_all_arrive_damaged_are_an_error(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path / "run", FakeEngine(1.0), state(1), world=World(), keep_last=0)
    remote = Remote(f"file://{tmp_path}/far", "run")
    remote.upload(folder, checkpoint.read_record(folder))
    shard = tmp_path / "far" / "run" / folder.name / "shards" / "00000-of-00001.safetensors"
    shard.write_bytes(b"x" * shard.stat().st_size)
    with pytest.raises(CheckpointError, match="(?s)no checkpoint under .*far/run arrives whole.*was damaged"):
        remote.fetch(tmp_path / "again")


def test_any_file_system_will_do(tmp_path: Path) -> None:
    cfg = run_config(tmp_path, checkpoint={"upload": "memory://far"})
    train(cfg, 1)
    shutil.rmtree(cfg.run_dir)
    assert resumed(cfg) == 1.0
    fsspec.filesystem("memory").rm("/far", recursive=True)
