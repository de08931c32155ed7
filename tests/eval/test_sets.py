"""Which sets are meant, and sets behind URLs: the same numbers as from a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import DataConfig
from pipeline.data.evalset import EvalSet, digest, has_split
from pipeline.data.remote import RemoteFiles
from pipeline.data.storage import Storage, open_storage
from pipeline.errors import ConfigError, DataError
from pipeline.eval.run import main
from pipeline.eval.sets import COLLECTIONS, addresses, folders
from tests.data.faulty import Store, s3_server
from tests.data.on_disk import write_manifest
from tests.eval.helpers import write_noise
from tests.eval.trained import TINY, write_run

LOCAL = open_storage(DataConfig())


def test_folders_and_urls_are_taken_as_they_are() -> None:
    given = ["sets/a", "s3://bucket/evals/b"]
    assert addresses(given, None, LOCAL) == tuple(given)


def test_names_are_found_below_the_root_under_any_of_their_folders(tmp_path: Path) -> None:
    for folder in ("wds_imagenet1k", "wds_vtab-dtd_test", "wds_cifar10_test"):
        (tmp_path / folder).mkdir()
    found = addresses(["wds/imagenet1k", "wds/vtab/dtd", "wds/vtab/cifar10", "wds/mnist", "own"], str(tmp_path), LOCAL)
    assert [Path(address).name for address in found] == [
        "wds_imagenet1k",
        "wds_vtab-dtd_test",
        "wds_cifar10_test",
        "wds_mnist",
        "own",
    ]
    assert folders("wds/cifar10") == ["wds_cifar10", "wds_cifar10_test", "wds_vtab-cifar10", "wds_vtab-cifar10_test"]


def test_collections_are_names(tmp_path: Path) -> None:
    assert {name: len(sets) for name, sets in COLLECTIONS.items()} == {
        "datacomp": 38,
        "vtab": 19,
        "vtab+": 35,
        "imagenet-shift": 6,
        "retrieval": 3,
    }
    assert all(len(set(sets)) == len(sets) for sets in COLLECTIONS.values())
    found = addresses(["retrieval"], f"{tmp_path}/", LOCAL)
    assert found == tuple(f"{tmp_path}/wds_{name}" for name in ("mscoco_captions", "flickr8k", "flickr30k"))
    with pytest.raises(ConfigError, match=r"wds/caltech101|wds/vtab/caltech101 is the name of a set; .*--root DIR_OR_URL"):
        addresses(["datacomp"], None, LOCAL)


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with pytest.MonkeyPatch.context() as patch, s3_server() as found:
        patch.setenv("AWS_ACCESS_KEY_ID", "x")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", found.url)
        yield found


def upload(store: Store, bucket: str, *sets: Path) -> None:
    """Each set's folder into the bucket, under its own name."""
    import boto3

    client = boto3.client("s3", endpoint_url=store.url)
    client.create_bucket(Bucket=bucket)
    for folder in sets:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            client.put_object(Bucket=bucket, Key=f"evals/{path.relative_to(folder.parent)}", Body=path.read_bytes())


def numbers(file: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "path", "files_sha256")} for line in lines]


def test_a_set_in_an_object_store_gives_the_numbers_of_the_folder(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """By name below a root, one with a manifest and one without; a third that is not there does not stop them."""
    plain, listed = write_noise(tmp_path / "wds_plain", 70), write_noise(tmp_path / "wds_listed_test", 40, seed=1)
    write_manifest(listed / "test")
    upload(store, "sets", plain, listed)
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY})
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    assert main([str(cfg.run_dir), "--sets", str(plain), str(listed), "--out", str(here)]) == 0
    by_name = [str(cfg.run_dir), "--sets", "wds/plain", "wds/gone", "wds/listed", "--root", "s3://sets/evals/"]
    assert main([*by_name, "--out", str(there)]) == DataError.exit_code
    first, gone, second = numbers(there)
    assert [first, second] == numbers(here)
    assert "s3://sets/evals/wds_gone: no folder s3://sets/evals/wds_gone/test" in gone["error"]
    assert "1 of 3 sets could not be evaluated: wds_gone" in capsys.readouterr().err
    assert main([*by_name[:3], "wds/listed", *by_name[-2:], "--out", str(there)]) == 0
    assert len(numbers(there)) == 3, "known already"


def test_a_remote_set_with_a_manifest_is_known_without_reading_its_shards(tmp_path: Path, store: Store) -> None:
    listed = write_noise(tmp_path / "listed", 12)
    write_manifest(listed / "test", sha256=True)
    upload(store, "known", listed)
    asked: list[str] = []

    class Watched(Storage):
        def stream(self, path: str) -> Any:
            asked.append(path)
            return super().stream(path)

    source = Watched(RemoteFiles({}))
    address = "s3://known/evals/listed"
    assert digest(address, source) == digest(listed, LOCAL)
    assert not [path for path in asked if path.endswith(".tar")]
    assert has_split(address, "test", source) and not has_split(address, "train", source)
    assert len(EvalSet.open(address)) == 12


def test_a_place_that_lists_nothing_still_tells_sets_apart(tmp_path: Path) -> None:
    class Unlisted(Storage):
        def names(self, folder: str) -> list[str]:
            raise FileNotFoundError(folder)

    source = Unlisted(RemoteFiles({}))
    one, two = (write_noise(tmp_path / name, 12, seed=seed) for seed, name in enumerate(("one", "two")))
    assert digest(f"file://{one}", source) != digest(f"file://{two}", source)
    assert len(EvalSet.open(f"file://{one}", source=source)) == 12
    (one / "test" / "1.tar").unlink()
    with pytest.raises(DataError, match=r"1.tar cannot be read"):
        digest(f"file://{one}", source)


def test_a_cache_serves_a_set_the_second_time(tmp_path: Path, store: Store) -> None:
    listed = write_noise(tmp_path / "set", 12)
    write_manifest(listed / "test")
    upload(store, "cached", listed)
    storage = open_storage(DataConfig(cache_dir=str(tmp_path / "cache")))
    evalset = EvalSet.open("s3://cached/evals/set", source=storage).twin()
    (batch,) = evalset.rank_batches(0, 1, 64, 16)
    (expected,) = EvalSet.open(listed).rank_batches(0, 1, 64, 16)
    assert (batch.image_BCHW == expected.image_BCHW).all()
    assert batch.keys == expected.keys
