"""``hf://`` sources, against a hub on this machine: indexed ones are exact, others stream, and what is missing is named."""

from __future__ import annotations

import dataclasses

import pytest

from pipeline.config import AugmentConfig, DataConfig
from pipeline.data import unindexed
from pipeline.data.loader import train_batches
from pipeline.data.remote import RemoteFiles
from pipeline.data.samples import ShardSet
from pipeline.data.shards import resolve
from pipeline.errors import DataError
from tests.data.hub import hub
from tests.data.on_disk import letters, write_set

URL = "hf://datasets/user/set"


def batches(data: DataConfig) -> list[tuple[str, ...]]:
    options = {"image_size": 16, "tokenizer": letters, "world_rank": 0, "world_size": 1, "global_batch_size": 4, "seed": 3}
    data = dataclasses.replace(data, workers_per_rank=0)
    return [batch.keys for batch in train_batches(data, AugmentConfig(), **options, start_step=0, total_steps=6)]


def test_an_indexed_set_on_a_hub_is_read_as_a_local_one(tmp_path):
    folder = write_set(tmp_path, [5, 3, 4])
    with hub(folder, "user/set") as endpoint:
        source = RemoteFiles({"hf": {"endpoint": endpoint}})
        data, local = ShardSet(resolve(URL, source), source), ShardSet.open(str(folder))
        data.prepare(range(12))
        assert [data.read(i).image for i in range(12)] == [local.read(i).image for i in range(12)]
        storage = {"hf": {"endpoint": endpoint}}
        assert batches(DataConfig(URL, storage=storage)) == batches(DataConfig(str(folder)))
        some = ShardSet(resolve(f"{URL}/x-{{000000..000001}}.tar", source), source)
        assert len(some) == 8
        with pytest.raises(DataError, match="x-000009.tar cannot be read"):
            resolve(f"{URL}/x-000009.tar", source)


def test_no_more_is_fetched_than_was_asked_for(tmp_path):
    folder, spans = write_set(tmp_path, [3]), []
    with hub(folder, "user/set", spans) as endpoint:
        whole = (folder / "x-000000.tar").read_bytes()
        assert RemoteFiles({"hf": {"endpoint": endpoint}}).read(f"{URL}/x-000000.tar", 512, 1024) == whole[512:1536]
    assert spans == ["bytes=512-1535"]


def test_a_set_without_index_on_a_hub_streams_and_it_is_said(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(unindexed, "BUFFER_SAMPLES", 8)
    folder = write_set(tmp_path, [5, 3], manifest=False)
    with hub(folder, "user/set") as endpoint:
        data = DataConfig(URL, unindexed="stream", storage={"hf": {"endpoint": endpoint}})
        found = batches(data)
        assert {key for keys in found for key in keys} <= {f"{number:06d}" for number in range(8)}
        assert len(found) == 6 and all(len(keys) == 4 for keys in found)
        assert f"{URL}: streamed without index" in caplog.text
        with_index = batches(dataclasses.replace(data, unindexed="scan"))
        assert sorted(key for keys in with_index[:2] for key in keys) == [f"{number:06d}" for number in range(8)]
