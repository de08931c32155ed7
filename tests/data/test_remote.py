"""Remote shards: nothing is lost to resets and refusals, reads run side by side, and the cache never costs a sample."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import pickle
import random
import resource
import signal
import time
from pathlib import Path

import pytest
import torch

from pipeline.config import AugmentConfig, DataConfig
from pipeline.data import cache, remote, shards
from pipeline.data.batches import Batch
from pipeline.data.cache import CachedFiles
from pipeline.data.files import LocalFiles
from pipeline.data.loader import train_batches
from pipeline.data.remote import RemoteFiles
from pipeline.data.samples import ShardSet
from pipeline.data.storage import Storage, open_storage
from pipeline.errors import DataError, TruncatedTar
from tests.data.faulty import FaultProxy, s3_server
from tests.data.on_disk import letters, write_set

COUNTS = [12, 5, 9]
NUM_SAMPLES = sum(COUNTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("origin") / "set", COUNTS, sha256=True)


@pytest.fixture(scope="module")
def store():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in [("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x"), ("AWS_DEFAULT_REGION", "us-east-1")]:
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        with s3_server() as server:
            yield server


@pytest.fixture(scope="module")
def url(store, folder):
    return store.put("bucket", folder)


def files(proxy: FaultProxy, **options) -> RemoteFiles:
    return RemoteFiles({"s3": {"endpoint_url": proxy.url}}, sleep=lambda seconds: None, **options)


def opened(source, url: str) -> ShardSet:
    return ShardSet(shards.resolve(url, source), source)


def everything(data) -> list[tuple[str, bytes]]:
    return [(sample.key, sample.image) for sample in map(data.read, range(len(data)))]


SOME = (0, 3, 13, 25)
"""Samples of every shard."""


def some(data) -> list[tuple[str, bytes]]:
    return [(sample.key, sample.image) for sample in map(data.read, SOME)]


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "did not happen in 20 s"
        time.sleep(0.01)


def test_a_remote_folder_is_read_as_a_local_one(store, url, folder):
    expected = everything(ShardSet.open(str(folder)))
    with FaultProxy(store.address) as proxy:
        data = opened(files(proxy), url)
        assert everything(data) == expected
        named = opened(files(proxy), f"{url}/x-{{000000..000002}}.tar")
        assert some(named) == some(pickle.loads(pickle.dumps(named))) == [expected[i] for i in SOME]
        storage = Storage(files(proxy))
        both = ShardSet(shards.resolve(f"{folder}/x-000000.tar::{url}/x-00000{{1,2}}.tar", storage), storage)
        assert some(both) == some(named)


def test_one_in_twenty_requests_failing_loses_nothing(store, url, folder):
    with FaultProxy(store.address, fraction=0.05, seed=3) as proxy:
        source = files(proxy)
        data = opened(source, url)
        expected = everything(ShardSet.open(str(folder)))
        for _ in range(4):
            assert everything(data) == expected
        assert set(proxy.faults) == {"503", "reset"}
        assert source.num_retries == len(proxy.faults) >= 4


def test_what_stays_broken_is_a_counted_drop_with_its_reason(store, url):
    with FaultProxy(store.address) as proxy:
        data = opened(files(proxy, attempts=3), url)
        data.read(0)
        proxy.fraction = 1.0
        with pytest.raises(DataError, match=r"x-000000.tar could not be read in 3 attempts: ") as caught:
            data.read(1)
        assert caught.value.drop.cause == "read-failed"
        assert len(proxy.faults) == 3, "the clients below do not try again by themselves"


def test_what_is_not_there_is_not_asked_for_again(store, url):
    with FaultProxy(store.address) as proxy:
        with pytest.raises(DataError, match=r"x-000007.tar cannot be read: .*give an existing folder"):
            opened(files(proxy), f"{url}/x-000007.tar")
        assert sum("x-000007" in path for _, path, _ in proxy.requests) <= 2
        with pytest.raises(DataError, match=r"elsewhere cannot be read: .*give an existing folder"):
            opened(files(proxy), "s3://bucket/elsewhere")


def test_the_reads_of_a_batch_run_side_by_side_and_neighbours_are_one_request(store, url):
    with FaultProxy(store.address) as proxy:
        data = opened(files(proxy), url)
        for first in (0, 12, 17):
            data.read(first)  # reads the index
        del proxy.requests[:]
        proxy.delay_seconds, proxy.most_at_once = 0.2, 0
        wanted = [0, 1, 2, 3, 13, 14, 18, 19, 20]
        data.prepare(wanted)
        keys = [data.read(i).key for i in wanted]
        assert keys == [f"{i:06d}" for i in wanted]
        assert len(proxy.requests) == 3, "one for the neighbours in each shard"
        assert proxy.most_at_once == 3
        another = opened(files(proxy), url)
        proxy.most_at_once = 0
        another.prepare(wanted)
        assert proxy.most_at_once >= 2, "indexes too"
        assert [another.read(i).key for i in wanted] == keys


def test_large_reads_are_cut_into_parts_and_only_what_is_missing_is_asked_for_again(store, url, folder, monkeypatch):
    monkeypatch.setattr(remote, "PART_BYTES", 4096)
    whole = (folder / "x-000000.tar").read_bytes()
    with FaultProxy(store.address) as proxy:
        source = files(proxy)
        assert source.read(f"{url}/x-000000.tar", 100, 10_000) == whole[100:10_100]
        assert sorted(span for _, _, span in proxy.requests) == [
            "bytes=100-4195",
            "bytes=4196-8291",
            "bytes=8292-10099",
        ]
        assert source.stream(f"{url}/x-000000.tar").read() == whole
        assert source.read(f"{url}/x-000000.tar", len(whole) - 10, 10) == whole[-10:]


class _Dribble:
    """A file system that gives at most three bytes an answer, and fails every second time."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        self.asked.append((start, end))
        if len(self.asked) % 2:
            raise ConnectionResetError("reset")
        return bytes(range(start, min(start + 3, end)))


def test_a_read_goes_on_at_the_first_missing_byte():
    slept: list[float] = []
    source = RemoteFiles({}, attempts=3, sleep=slept.append)
    source._systems["mem"] = dribble = _Dribble()
    assert source.read("mem://x", 10, 7) == bytes(range(10, 17))
    assert [start for start, _ in dribble.asked] == [10, 10, 13, 13, 16, 16]
    assert len(slept) == source.num_retries == 3


def test_pauses_double_are_bounded_and_differ():
    waits = remote.pauses(12, random.Random(0))
    assert len(waits) == 11
    assert all(0.5 * min(20, 0.1 * 2**k) <= wait <= min(20, 0.1 * 2**k) for k, wait in enumerate(waits))
    assert waits != remote.pauses(12, random.Random(1))


def test_a_remote_shard_that_was_cut_or_changed_is_always_noticed(store, folder, tmp_path):
    whole = (folder / "x-000000.tar").read_bytes()
    broken = write_set(tmp_path / "broken", COUNTS, sha256=True)
    (broken / "x-000000.tar").write_bytes(whole[:5120])
    (broken / "x-000001.tar").write_bytes(bytes(512) + (broken / "x-000001.tar").read_bytes()[512:])
    url = store.put("broken", broken)
    with FaultProxy(store.address) as proxy:
        data = opened(files(proxy), url)
        with pytest.raises(TruncatedTar, match=r"has 5,120 bytes, its manifest says .* it was cut short"):
            data.read(3)
        checked = ShardSet(shards.resolve(url, files(proxy)), files(proxy), verify="sha256")
        with pytest.raises(DataError, match=r"x-000001.tar has SHA-256 .* it was damaged or changed after it was built"):
            checked.read(12)
        assert checked.read(20).key == "000020"


def cached(proxy: FaultProxy, folder: Path, max_bytes: int = 10**9) -> CachedFiles:
    return CachedFiles(files(proxy), folder, max_bytes)


def copies(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.shard"))


def test_a_second_pass_comes_from_the_cache(store, url, folder, tmp_path):
    expected = everything(ShardSet.open(str(folder)))
    with FaultProxy(store.address) as proxy:
        data = opened(cached(proxy, tmp_path / "c"), url)
        assert everything(data) == expected
        wait_until(lambda: len(copies(tmp_path / "c")) == 3)
        assert not list((tmp_path / "c").glob("*.part"))
        del proxy.requests[:]
        data.prepare(range(NUM_SAMPLES))
        assert everything(data) == expected
        assert proxy.requests == []
        again = opened(cached(proxy, tmp_path / "c"), url)
        assert some(again) == [expected[i] for i in SOME]
        assert not any(method == "GET" and ".tar" in path for method, path, _ in proxy.requests), "only sizes were asked for"
        content = {hashlib.sha256(path.read_bytes()).hexdigest() for path in copies(tmp_path / "c")}
        rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
        assert content == {row["sha256"] for row in rows}


def test_equal_names_elsewhere_are_other_files(tmp_path):
    source = CachedFiles(RemoteFiles({}), tmp_path, 0)
    for path in ("s3://a/train/0000.tar", "s3://b/train/0000.tar", "s3://a/val/0000.tar"):
        source._failed = True  # nothing is copied
        source.keep(path, 10, "")
    assert len(set(source._kept.values())) == 3
    assert all(copy.parent == tmp_path and copy.stem.isalnum() for copy in source._kept.values())


def test_a_copy_that_is_not_what_the_manifest_says_is_never_published(store, url, folder, tmp_path, caplog):
    path, size = f"{url}/x-000000.tar", (folder / "x-000000.tar").stat().st_size
    with FaultProxy(store.address) as proxy:
        source = cached(proxy, tmp_path)
        source.keep(path, size, "0" * 64)
        wait_until(lambda: "its SHA-256 is" in caplog.text)
        source.keep(path, size + 1, "")
        wait_until(lambda: "bytes arrived, the manifest says" in caplog.text)
        assert copies(tmp_path) == []
        assert source.read(path, 0, 512) == (folder / "x-000000.tar").read_bytes()[:512]


def _read_all(url: str, where: str, max_bytes: int, answer) -> None:
    source = CachedFiles(RemoteFiles({}), Path(where), max_bytes)
    data = opened(source, url)
    answer.send([some(data) for _ in range(4)])
    for pool in source._pools.values():
        pool.shutdown()
    answer.close()


def test_eight_processes_share_a_cache_within_its_bound(folder, tmp_path):
    expected = [some(ShardSet.open(str(folder)))] * 4
    largest = sorted(path.stat().st_size for path in folder.glob("*.tar"))[-2:]
    bound = sum(largest) + 100  # two of the three shards
    context = multiprocessing.get_context("fork")
    answers, processes = [], []
    for _ in range(8):
        here, there = context.Pipe(duplex=False)
        processes.append(context.Process(target=_read_all, args=(folder.as_uri(), str(tmp_path / "c"), bound, there)))
        processes[-1].start()
        there.close()
        answers.append(here)
    held = 0
    while any(process.is_alive() for process in processes):
        held = max(held, _held(tmp_path / "c"))
        time.sleep(0.005)
    assert all(answer.recv() == expected for answer in answers)
    assert [process.exitcode for process in processes] == [0] * 8
    assert 0 < held <= bound
    assert len(copies(tmp_path / "c")) == 2
    assert not list((tmp_path / "c").glob("*.part"))


def _held(folder: Path) -> int:
    total = 0
    for path in folder.glob("*.*"):
        try:
            total += path.stat().st_size if path.suffix in (".shard", ".part") else 0
        except FileNotFoundError:
            continue
    return total


def _copy_on_a_full_disk(url: str, where: str, answer) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))  # the kernel refuses to let any file grow beyond this
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    source = CachedFiles(RemoteFiles({}), Path(where), 10**9)
    data = opened(source, url)
    found = some(data)
    for pool in source._pools.values():
        pool.shutdown()
    answer.send((found, source._failed))


def test_a_full_cache_disk_costs_no_sample(folder, tmp_path):
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_copy_on_a_full_disk, args=(folder.as_uri(), str(tmp_path / "c"), there))
    process.start()
    found, failed = here.recv()
    process.join()
    assert found == some(ShardSet.open(str(folder)))
    assert failed
    assert list((tmp_path / "c").glob("*.*[dt]")) == [], "nothing unfinished is left behind"


def test_what_a_dead_process_left_is_removed_when_room_is_needed(store, url, folder, tmp_path):
    size = (folder / "x-000000.tar").stat().st_size
    (tmp_path / f"{'0' * 40}.part").write_bytes(bytes(size))  # of full size, and nobody holds its lock
    os.utime(tmp_path / f"{'0' * 40}.part", (0, 0))
    with FaultProxy(store.address) as proxy:
        source = cached(proxy, tmp_path, max_bytes=size + 100)
        source.keep(f"{url}/x-000000.tar", size, "")
        wait_until(lambda: len(copies(tmp_path)) == 1)
    assert [path.suffix for path in tmp_path.iterdir() if path.suffix != ".lock"] == [".shard"]


def test_the_shard_used_longest_ago_makes_room(tmp_path):
    for number, name in enumerate("abc"):
        (tmp_path / f"{name}.shard").write_bytes(bytes(1000))
        os.utime(tmp_path / f"{name}.shard", (100 - number, 100 - number))
    source = CachedFiles(RemoteFiles({}), tmp_path, 2500)
    with open(tmp_path / "new.part", "w+b") as file:
        assert source._make_room(tmp_path / "new.part", 1200, file.fileno())
        assert not source._make_room(tmp_path / "new.part", 2600, file.fileno())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.shard", "new.part", "room.lock"][1:]


def test_settings_choose_the_storage(tmp_path):
    plain = open_storage(DataConfig("x"))
    assert isinstance(plain._at("shards/a.tar"), LocalFiles)
    assert isinstance(plain._at("s3://b/a.tar"), RemoteFiles)
    with_cache = open_storage(DataConfig("x", cache_dir=str(tmp_path), cache_gigabytes=0.5, read_attempts=3))
    assert isinstance(with_cache._at("https://b/a.tar"), CachedFiles)
    assert with_cache._remote._max_bytes == 500_000_000
    assert with_cache._remote._remote._attempts == 3
    assert cache.COPIERS >= 1


def test_plain_http_is_read_too(store, url, folder):
    assert ShardSet.open(f"{store.url}/bucket/set").read(3).key == "000003", "also where there are no settings"
    with FaultProxy(store.address, fraction=0.1, seed=2) as proxy:
        data = opened(files(proxy), f"{proxy.url}/bucket/set")
        assert some(data) == some(ShardSet.open(str(folder)))
        with pytest.raises(DataError, match="cannot be read"):
            opened(files(proxy), f"{proxy.url}/bucket/elsewhere/x-000000.tar")
        proxy.fraction, proxy.kinds, before = 1.0, ["503"], len(proxy.faults)
        with pytest.raises(OSError, match="manifest.jsonl could not be read in 3 attempts: FileNotFoundError"):
            files(proxy, attempts=3).size(f"{proxy.url}/bucket/set/manifest.jsonl")
        assert len(proxy.faults) - before >= 3, "a size that could not be asked for is not a missing file"


def batches(path: str, **changes) -> list[Batch]:
    data = dataclasses.replace(DataConfig(path, workers_per_rank=0), **changes)
    options = {"image_size": 16, "tokenizer": letters, "world_rank": 0, "world_size": 1, "global_batch_size": 8, "seed": 3}
    return list(train_batches(data, AugmentConfig(), **options, start_step=0, total_steps=8))


@pytest.mark.parametrize("with_cache", [False, True])
def test_training_from_a_failing_store_is_training_from_the_disk(store, url, folder, tmp_path, with_cache):
    expected = batches(str(folder))
    with FaultProxy(store.address, fraction=0.05, seed=1) as proxy:
        options = {"storage": {"s3": {"endpoint_url": proxy.url}}, "workers_per_rank": 2}
        found = batches(url, cache_dir=str(tmp_path) if with_cache else None, **options)
        assert proxy.faults
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys == theirs.keys
        assert ours.drops == ()
        assert torch.equal(ours.image_VBCHW, theirs.image_VBCHW)
