"""Shards without index: streamed only when asked for, labelled inexact; commands run only when allowed, and never a shell."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from pipeline.config import DataConfig
from pipeline.data import unindexed
from pipeline.data.drops import BadSample
from pipeline.data.files import LocalFiles
from pipeline.data.members import Reading
from pipeline.data.sources import open_sources, run_plan
from pipeline.data.unindexed import StreamSet, words
from pipeline.errors import ConfigError, DataError
from tests.data.on_disk import encoded, picture, tar_bytes, write_set


@pytest.fixture
def small_buffer(monkeypatch):
    monkeypatch.setattr(unindexed, "BUFFER_SAMPLES", 8)


def take(found, count, seed=5):
    samples = []
    for i in range(count):
        try:
            samples.append(found.read(seed + i).key)
        except BadSample as bad:
            samples.append(bad.drop.cause)
    return samples


def test_streaming_is_asked_for_and_said(tmp_path, caplog, small_buffer):
    folder = write_set(tmp_path, [20, 20, 20], manifest=False)
    exact = open_sources(DataConfig(str(folder)))
    assert len(exact) == 60
    found = open_sources(DataConfig(str(folder), unindexed="stream"))
    assert isinstance(found.sets[0], StreamSet)
    assert "coverage and order are inexact and a resume continues elsewhere; `unisphere shards index` makes them exact" in (
        caplog.text
    )
    assert "unknown (inexact)" in found.preflight()
    keys = take(found, 300)
    assert set(keys) == {f"{n:06d}" for n in range(60)}
    assert keys[:40] != sorted(keys[:40])
    assert take(open_sources(DataConfig(str(folder), unindexed="stream")), 40) == keys[:40], "the first number is the seed"
    assert take(open_sources(DataConfig(str(folder), unindexed="stream")), 40, seed=6) != keys[:40]
    write_set(tmp_path, [20, 20, 20])
    assert len(open_sources(DataConfig(str(folder), unindexed="stream"))) == 60, "with an index there is nothing to give up"


def test_a_stream_has_a_place_in_the_plan(tmp_path):
    found = open_sources(DataConfig(str(write_set(tmp_path, [20], manifest=False)), unindexed="stream"))
    run = run_plan(DataConfig("x"), found, seed=0, global_batch_size=8, total_steps=10)
    rows = [run.rows(step) for step in (0, 3, 10**6)]
    assert len(set(np.concatenate([row.index_B for row in rows]).tolist())) == 24
    assert [row.epoch for row in rows] == [0, 0, 0]
    assert found.span(5) == (0, unindexed.UNKNOWN_SIZE)
    with pytest.raises(ConfigError, match="whose size is unknown; give weights only"):
        run_plan(DataConfig("x", mixture_temperature=1.0), found, seed=0, global_batch_size=8, total_steps=10)


def command(path) -> str:
    return f'pipe:{sys.executable} -c \'import sys, shutil; shutil.copyfileobj(open("{path}", "rb"), sys.stdout.buffer)\''


def test_a_command_needs_to_be_allowed(tmp_path, small_buffer):
    spec = command(write_set(tmp_path, [20], manifest=False) / "x-000000.tar")
    with pytest.raises(DataError, match=r"can only be streamed.*data.allow_commands=true; or index the tars"):
        open_sources(DataConfig(spec))
    with pytest.raises(DataError, match="would run a program; if you wrote this path yourself, set data.allow_commands=true"):
        open_sources(DataConfig(spec, unindexed="stream"))
    found = open_sources(DataConfig(spec, unindexed="stream", allow_commands=True))
    assert ".png" in found.preflight()
    assert set(take(found, 60)) == {f"{n:06d}" for n in range(20)}


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("pipe:aws s3 cp s3://b/x.tar - || true", r"without a shell, which \|\| needs"),
        ("pipe:cat a.tar | zcat", r"which \| needs"),
        ("pipe:", "which nothing needs"),
        ("pipe:cat 'x", "No closing quotation"),
    ],
)
def test_what_only_a_shell_understands_is_refused(spec, text):
    with pytest.raises(DataError, match=text):
        words(spec, allowed=True)


def test_hostile_names_are_inert(tmp_path):
    canary = tmp_path / "canary"
    spec = f"pipe:echo '; touch {canary} #' $(touch {canary}) `touch {canary}`"
    found = StreamSet(spec, LocalFiles(), Reading(), allow_commands=True)
    assert take(found, 2) == ["read-failed"] * 2
    assert not canary.exists()


def test_a_command_that_fails_is_a_counted_drop(tmp_path):
    found = StreamSet(f"pipe:cat {tmp_path}/nowhere.tar", LocalFiles(), Reading(), allow_commands=True)
    with pytest.raises(BadSample, match=r"the rest of the shard is lost: .*truncated: it is empty") as caught:
        found.read(0)
    assert caught.value.drop.cause == "read-failed"
    partial = write_set(tmp_path, [5], manifest=False) / "x-000000.tar"
    whole_then_failure = (
        f'pipe:{sys.executable} -c \'import sys; sys.stdout.buffer.write(open("{partial}", "rb").read()); exit(3)\''
    )
    with pytest.raises(DataError, match="exited with 3"):
        with unindexed.opened(whole_then_failure, LocalFiles()) as stream:
            assert len(stream.read()) == partial.stat().st_size


def test_bad_samples_and_cut_shards_in_a_stream_are_told_apart(tmp_path, small_buffer):
    members = {f"{n}": {"png": encoded(picture(n)), "txt": b"x"} for n in range(6)}
    members["2"] = {"png": bytes(40_000), "txt": b"x"}
    members["4"] = {"txt": b"x"}
    (tmp_path / "a.tar").write_bytes(tar_bytes(members)[:-2048])
    found = StreamSet(str(tmp_path), LocalFiles(), Reading(max_member_bytes=30_000))
    seen = take(found, 80)
    assert {"sample-too-large", "image-missing", "read-failed", "0", "1", "3"} <= set(seen)
    assert "2" not in seen
    assert "4" not in seen


def test_a_stream_without_samples_ends_with_an_error(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_bytes({}))
    found = StreamSet(str(tmp_path), LocalFiles(), Reading())
    with pytest.raises(DataError, match="none of the first samples can be used.*Members found: none"):
        found.preflight()
    with pytest.raises(DataError, match="100 shards in a row, the last one .*a.tar, hold no sample at all"):
        found.read(0)
    with pytest.raises(DataError, match=r"no \*.tar in"):
        StreamSet(str(write_set(tmp_path / "e", [])), LocalFiles(), Reading())
