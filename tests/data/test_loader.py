"""Training batches: the same for any world, worker count and start; bad samples are replaced, counted, and bounded."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Iterator
from multiprocessing.connection import Connection

import numpy as np
import pytest
import torch

from pipeline.config import AugmentConfig, DataConfig
from pipeline.data import loader
from pipeline.data.augment import decode
from pipeline.data.batches import Batch
from pipeline.data.drops import DropBudget
from pipeline.data.loader import train_batches
from pipeline.data.samples import group_number
from pipeline.data.sources import Sources
from pipeline.errors import BudgetExceeded, ConfigError, DataError
from tests.data.on_disk import encoded, letters, pair, picture, write_set
from tests.data.test_augment import EVERYTHING, png_header

COUNTS = [9, 0, 5, 16]
BATCH = 8


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("good"), COUNTS)


def batches(folder, *, workers=0, rank=0, size=1, start=0, stop=6, seed=1, **changes) -> Iterator[Batch]:
    data = DataConfig(str(folder), workers_per_rank=workers, prefetch_batches=2, shuffle_window=12)
    return train_batches(
        dataclasses.replace(data, **changes),
        EVERYTHING,
        image_size=16,
        tokenizer=letters,
        world_rank=rank,
        world_size=size,
        global_batch_size=BATCH,
        seed=seed,
        start_step=start,
        total_steps=stop,
    )


def assert_equal(left: Batch, right: Batch) -> None:
    assert left.keys == right.keys
    assert left.drops == right.drops
    assert torch.equal(left.image_VBCHW, right.image_VBCHW)
    assert torch.equal(left.view_params_VBK, right.view_params_VBK)
    assert torch.equal(left.tokens_BL, right.tokens_BL)
    assert torch.equal(left.group_B, right.group_B)


def concatenated(parts: list[Batch]) -> Batch:
    return Batch(
        torch.cat([part.image_VBCHW for part in parts], dim=1),
        torch.cat([part.view_params_VBK for part in parts], dim=1),
        torch.cat([part.tokens_BL for part in parts]),
        torch.cat([part.group_B for part in parts]),
        tuple(key for part in parts for key in part.keys),
        tuple(drop for part in parts for drop in part.drops),
    )


def assert_same_stream(left, right) -> None:
    left, right = list(left), list(right)
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert_equal(a, b)


def test_shapes_and_contents(good):
    (batch,) = batches(good, stop=1)
    assert batch.image_VBCHW.shape == (1, 8, 3, 16, 16)
    assert batch.image_VBCHW.dtype == torch.uint8
    assert batch.tokens_BL.dtype == batch.group_B.dtype == torch.int64
    captions = [f"caption {int(key)}" for key in batch.keys]
    assert torch.equal(batch.tokens_BL, letters(captions))
    assert batch.group_B.tolist() == [group_number("caption", caption) for caption in captions]
    assert batch.drops == ()


def test_an_epoch_has_every_sample_and_the_next_one_follows_at_once(good):
    keys = [batch.keys for batch in batches(good, stop=8)]
    for epoch in (keys[:4], keys[4:]):
        flat = [key for batch in epoch for key in batch]
        assert len(flat) == 32
        assert set(flat) == {f"{n:06d}" for n in range(30)}
        assert flat[30:] == flat[:2], "the last batch is completed from the start of the epoch"
    assert keys[:4] != keys[4:]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(good, workers):
    assert_same_stream(batches(good, workers=workers), batches(good))


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_concatenate_to_the_same_global_batches(good, size):
    ranks = [list(batches(good, rank=rank, size=size)) for rank in range(size)]
    assert_same_stream([concatenated(list(parts)) for parts in zip(*ranks, strict=True)], batches(good))


@pytest.mark.parametrize("start", range(6))
def test_resume_at_any_step_equals_the_uninterrupted_run(good, start):
    assert_same_stream(batches(good, start=start), list(batches(good))[start:])


def test_resume_in_another_world_with_workers(good):
    ranks = [list(batches(good, rank=rank, size=2, start=3, workers=2)) for rank in range(2)]
    assert_same_stream([concatenated(list(parts)) for parts in zip(*ranks, strict=True)], list(batches(good))[3:])


def test_nothing_left_to_do_is_no_batch(good):
    assert list(batches(good, start=6)) == []


def test_the_global_random_state_is_neither_read_nor_changed(good):
    def under(seed):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        result = list(batches(good, workers=1, stop=2))
        assert torch.equal(torch.get_rng_state(), before)
        return result

    assert_same_stream(under(0), under(7))


def test_the_seed_changes_order_and_views(good):
    first, other = next(batches(good)), next(batches(good, seed=2))
    assert first.keys != other.keys


def test_views_and_captions_are_drawn_anew_in_each_epoch_from_the_key(tmp_path):
    members = {"png": encoded(picture(0)), "json": b'{"captions": ["one", "two", "three"]}'}
    write_set(tmp_path, [BATCH], replace=dict.fromkeys(range(BATCH), members))
    seen: dict[tuple[int, str], tuple[bytes, bytes]] = {}
    for epoch, batch in enumerate(batches(tmp_path, stop=12)):
        for key, view, tokens in zip(batch.keys, batch.image_VBCHW[0], batch.tokens_BL, strict=True):
            seen[epoch, key] = (view.numpy().tobytes(), tokens.numpy().tobytes())
    assert len(seen) == 12 * BATCH
    assert len({view for view, _ in seen.values()}) > 90
    counts = []
    for text in ("one", "two", "three"):
        expected = letters([text])[0].numpy().tobytes()
        counts.append(sum(tokens == expected for _, tokens in seen.values()))
    assert sum(counts) == 96
    assert min(counts) > 15


def test_small_sets_repeat_within_a_batch(tmp_path):
    (batch,) = batches(write_set(tmp_path, [3]), stop=1)
    assert sorted(set(batch.keys)) == ["000000", "000001", "000002"]
    assert batch.keys[:3] == batch.keys[3:6]


BAD = {
    2: {"png": encoded(picture(2))[:100], "txt": b"half a picture"},
    4: {"png": b"", "txt": b"zero bytes"},
    7: {"png": encoded(picture(7)), "txt": b"\xff\xfe"},
    11: {"png": png_header(50_000, 50_000), "txt": b"bomb"},
    12: {"txt": b"no picture"},
    20: {"png": encoded(picture(20))},
    21: {"png": bytes(200_000), "txt": b"too many bytes"},
}
CAUSES = {
    "image-undecodable": "000002",
    "image-empty": "000004",
    "caption-not-utf8": "000007",
    "image-too-large": "000011",
    "image-missing": "000012",
    "caption-missing": "000020",
    "sample-too-large": "000021",
}


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("spoilt"), COUNTS, replace=BAD)


def test_bad_samples_are_replaced_and_reported(spoilt):
    run = list(batches(spoilt, stop=4, max_member_bytes=100_000))
    used = [key for batch in run for key in batch.keys]
    assert len(used) == 32
    bad_keys = {f"{n:06d}" for n in BAD}
    assert not bad_keys & set(used)
    assert set(used) == {f"{n:06d}" for n in range(30)} - bad_keys, "every good sample is still read"
    drops = [drop for batch in run for drop in batch.drops]
    assert {drop.cause: drop.key for drop in drops} == CAUSES
    assert all(drop.shard.startswith(str(spoilt)) and drop.shard.endswith(".tar") for drop in drops)
    budget = DropBudget()
    for batch in run:
        budget.add(len(batch.keys), batch.drops)
    assert set(budget.totals) == set(CAUSES)
    budget.check(0.5)
    with pytest.raises(BudgetExceeded, match="caption-not-utf8: .* 000007 in"):
        budget.check(0.001)


def test_replacements_are_the_same_for_every_world_and_worker_count(spoilt):
    options = {"max_member_bytes": 100_000, "stop": 8}
    whole = list(batches(spoilt, **options))
    assert sum(len(batch.drops) for batch in whole) >= 2 * len(BAD)
    assert_same_stream(batches(spoilt, workers=2, **options), whole)
    ranks = [list(batches(spoilt, rank=rank, size=2, **options)) for rank in range(2)]
    assert_same_stream([concatenated(list(parts)) for parts in zip(*ranks, strict=True)], whole)
    assert_same_stream(batches(spoilt, start=5, **options), whole[5:])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_set_in_which_every_picture_is_bad_ends_with_the_causes(tmp_path, workers, monkeypatch):
    monkeypatch.setattr(Sources, "preflight", lambda self: "")  # as if only the first samples were fine
    write_set(tmp_path, [40], replace={n: {"png": b"broken", "txt": b"x"} for n in range(40)})
    with pytest.raises(DataError) as caught:
        list(batches(tmp_path, workers=workers))
    text = str(caught.value)
    assert "and 15 others tried in its place all failed" in text
    assert "image-undecodable: 16, for example 0000" in text
    assert "unisphere shards verify" in text
    assert "Traceback" not in text


def test_tiny_sets_run_out_of_candidates_before_sixteen(tmp_path, monkeypatch):
    monkeypatch.setattr(Sources, "preflight", lambda self: "")  # as if only the first samples were fine
    write_set(tmp_path, [3], replace={n: {"txt": b"x"} for n in range(3)})
    for seed in range(5):
        with pytest.raises(DataError, match="and 2 others tried in its place all failed") as caught:
            list(batches(tmp_path, seed=seed))
        assert all(f"00000{n} in" in str(caught.value) for n in range(3)), "each is tried once"
    write_set(tmp_path, [1], replace={0: {"txt": b"x"}})
    with pytest.raises(DataError, match="and 0 others tried in its place all failed"):
        list(batches(tmp_path))


def test_wrong_member_names_fail_at_the_call(tmp_path):
    write_set(tmp_path, [20], replace={n: {"jpeg2": b"x", "caption": b"y"} for n in range(20)})
    with pytest.raises(DataError, match=r"Members found: .caption, .jpeg2. Expected: an image"):
        batches(tmp_path)


def test_undecodable_first_pictures_pass_preflight_and_are_dropped(tmp_path):
    write_set(tmp_path, [30], replace={n: {"png": b"broken", "txt": b"x"} for n in range(3)})
    assert sum(len(batch.drops) for batch in batches(tmp_path, stop=4)) >= 3


def test_wrong_settings_fail_at_the_call(good, tmp_path):
    with pytest.raises(ConfigError, match="global_batch_size = 8 does not divide over 3 ranks"):
        batches(good, size=3)
    with pytest.raises(ConfigError, match="seed that is not negative"):
        batches(good, seed=-1)
    with pytest.raises(DataError, match="cannot be read"):
        batches(tmp_path / "nowhere")


def test_an_index_broken_after_opening_is_one_clear_error_from_a_worker(tmp_path):
    stream = batches(write_set(tmp_path, [20, 20]), workers=1)
    (tmp_path / "x-000001.index.jsonl").write_text("")
    with pytest.raises(DataError, match="has 0 lines, the manifest says 20") as caught:
        list(stream)
    assert "Traceback" not in str(caught.value)


def test_moving_a_batch_keeps_everything(good):
    (batch,) = batches(good, stop=1)
    assert_equal(batch.to(torch.device("cpu")), batch)


def children() -> set[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as stream:
        return set(map(int, stream.read().split()))


def test_signals_to_the_whole_job_step_do_not_reach_the_workers(good):
    before = children()
    stream = batches(good, workers=2, stop=40)
    first = next(stream)
    workers = children() - before
    assert len(workers) == 2
    for name in ("USR1", "USR2", "INT", "TERM", "TERM"):  # sent by another process, as Slurm's are
        subprocess.run(["kill", f"-{name}", *map(str, workers)], check=True)
    assert_same_stream([first, *stream], batches(good, stop=40))
    assert children() == before, "the workers end with the stream"


def test_a_stream_that_is_dropped_ends_its_workers(good):
    before = children()
    stream = batches(good, workers=2, stop=10_000)
    next(stream)
    assert len(children() - before) == 2
    del stream
    assert children() == before


def _deaf(pipe: Connection) -> None:
    loader.start_worker(0)
    pipe.send("ready")
    signal.pause()


def test_the_owner_can_still_terminate_a_worker():
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_deaf, args=(there,), daemon=True)
    process.start()
    assert here.recv() == "ready"
    process.terminate()
    process.join()
    assert process.exitcode == 0


def test_settings_of_the_augmentation_reach_the_views(good):
    plain = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    data = DataConfig(str(good), workers_per_rank=0)
    options = {"image_size": 24, "tokenizer": letters, "world_rank": 0, "world_size": 1, "global_batch_size": BATCH}
    (batch,) = train_batches(data, plain, **options, seed=0, start_step=0, total_steps=1)
    expected = [pair(int(key))["png"] for key in batch.keys]
    stored = [np.asarray(decode(data, 10**6)).transpose(2, 0, 1) for data in expected]
    assert np.array_equal(batch.image_VBCHW[0].numpy(), np.stack(stored))
