"""Shards from strangers: whatever the bytes and names are, memory stays bounded, nothing is executed, nothing is written."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import tracemalloc

import pytest

from pipeline.data import tar
from pipeline.data.drops import BadSample
from pipeline.data.members import Reading, sample_from
from pipeline.data.plain import plain_sample
from pipeline.data.samples import ShardSet
from pipeline.errors import DataError
from tests.data.on_disk import one_sample, pair, tar_bytes


class _Canary:
    def __reduce__(self):
        return os.mkdir, ("canary-was-executed",)


def test_pickles_and_code_in_a_shard_are_never_looked_into(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    payload = pickle.dumps(_Canary())
    members = {**pair(1), **dict.fromkeys(("pkl", "pickle", "pyd", "pth", "pt", "npy", "npz", "cbor", "mp"), payload)}
    assert one_sample(tmp_path, members).read(0).captions == ("caption 1",)
    assert os.listdir(tmp_path) == ["one.tar"]


NAMES = ["../../escape", "/etc/escape", "a/../../escape", "~/escape", "$(touch escape)", "'; touch escape #", "CON", "a\nb"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_only_compared(tmp_path, monkeypatch, name):
    inner = tmp_path / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)
    (inner / "a.tar").write_bytes(tar_bytes({name: pair(1)}))
    assert ShardSet.open(str(inner)).read(0).captions == ("caption 1",)
    assert [path.name for path in tmp_path.rglob("*")] == ["inner", "a.tar"]


def test_damaged_bytes_raise_what_a_caller_can_handle_and_nothing_else():
    rng = random.Random(0)
    whole = tar_bytes({"a": pair(0), "b": {**pair(1), "json": b'{"captions": ["x"]}'}})
    outcomes = set()
    tracemalloc.start()
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            place = rng.choice([rng.randrange(len(data)), rng.randrange(512), 512 * rng.randrange(len(data) // 512) + 124])
            data[place : place + rng.randint(1, 12)] = rng.randbytes(rng.randint(1, 12))
        data = bytes(data[: rng.randint(0, len(data))] if rng.random() < 0.3 else data)
        for read in (_forwards, _by_index):
            try:
                outcomes.add(read(data))
            except DataError as error:
                outcomes.add(type(error).__name__)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {"DataError", "TruncatedTar", "read"} <= outcomes
    assert peak < 30 * len(whole) + 5_000_000, "a size field that claims gigabytes takes no memory"


def _forwards(data: bytes) -> str:
    for key, members in tar.read_samples(io.BytesIO(data), "x", max_bytes=100_000):
        _sample(key, members or {})
    return "read"


def _by_index(data: bytes) -> str:
    for span in tar.iter_samples(io.BytesIO(data), "x"):
        _sample(span.key, tar.parse_sample(data[span.offset : span.offset + span.size]))
    return "read"


def _sample(key: str, members: dict[str, bytes]) -> None:
    try:
        sample_from(members, Reading(max_caption_characters=1000), "x", key)
    except BadSample:
        return


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000, '{"captions": [' + "1" * 6000 + "]}"])
def test_json_that_exhausts_a_parser_is_a_bad_sample(tmp_path, text):
    with pytest.raises(BadSample) as caught:
        one_sample(tmp_path, {**pair(0), "json": text.encode()}).read(0)
    assert caught.value.drop.cause == "json-invalid"


def test_captions_are_bounded():
    with pytest.raises(BadSample, match=r"1,001 characters, the bound is 1,000 \(data.max_caption_characters\)") as caught:
        sample_from({**pair(0), "txt": b"x" * 1001}, Reading(max_caption_characters=1000), "s", "k")
    assert caught.value.drop.cause == "caption-too-long"
    many = json.dumps({"captions": ["x", "y" * 1001]}).encode()
    with pytest.raises(BadSample, match="1,001 characters"):
        sample_from({**pair(0), "json": many}, Reading(max_caption_characters=1000), "s", "k")


def test_plain_headers_are_read_as_all_others_are():
    """The short way through plain members gives what the full reader gives, and leaves all other headers to it."""
    samples = {"a": pair(0), "deep/er": {"png": b"", "TXT": b"x" * 511, "json": b"{}"}, "k" * 90: {"txt": b"y" * 513}}
    for key, members in samples.items():
        data = b"".join(tar.member_bytes(f"{key}.{name}", content) for name, content in members.items())
        assert plain_sample(data, key.encode()) == tar.parse_sample(data) == {name.lower(): members[name] for name in members}
        for place in (0, 100, 124, 148, 156, 345, 511):
            changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            assert plain_sample(changed, key.encode()) is None, "any changed bit of a header is noticed"
            with pytest.raises(DataError):
                tar.parse_sample(changed)
        assert plain_sample(data[:-1], key.encode()) is None
        assert plain_sample(data + bytes(512), key.encode()) is None
        assert plain_sample(data, b"other") is None
    assert plain_sample(b"", b"a") is None
    assert plain_sample(tar.member_bytes("a.seg.png", b"x"), b"a") is None
    assert tar.parse_sample(tar.member_bytes("a.seg.png", b"x")) == {"seg.png": b"x"}
