"""What may happen to a running loader: it is stopped anywhere, its workers die or hang, its epochs end; nothing is lost."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import DataConfig, FilterConfig, SourceConfig
from pipeline.data import plan
from pipeline.data.drops import DropBudget
from pipeline.data.loader import train_batches
from pipeline.data.stalls import IDLE, Board, StallWatch
from pipeline.errors import DataError
from tests.data.on_disk import json_pair, letters, write_set
from tests.data.test_loader import EVERYTHING, assert_same_stream, batches, children, concatenated

STEPS = 20
BATCH = 12


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> DataConfig:
    """Three sources: one with bad samples, one with a filter, one drawn with replacement; long enough for several lanes."""
    root = tmp_path_factory.mktemp("mixture")
    bad = {n: {"txt": b"no picture"} for n in range(0, 60, 9)}
    scored = {n: json_pair(n, {"score": n % 4, "captions": [f"one {n}", f"two {n}"]}) for n in range(40)}
    sources = (
        SourceConfig(str(write_set(root / "bad", [1, 30, 29], replace=bad)), weight=3),
        SourceConfig(str(write_set(root / "scored", [40], replace=scored)), filters=(FilterConfig("score", at_least=1),)),
        SourceConfig(str(write_set(root / "drawn", [7, 8])), weight=0.5, schedule="linear", final_weight=2, replacement=True),
    )
    return DataConfig(mixture=sources, shuffle_window=24, prefetch_batches=2)


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch):
    monkeypatch.setattr(plan, "MIN_BLOCK", 4)  # so that even these small sets have several lanes


def stream(data: DataConfig, *, rank=0, size=1, workers=0, start=0, stop=STEPS, **changes):
    return train_batches(
        dataclasses.replace(data, workers_per_rank=workers, **changes),
        EVERYTHING,
        image_size=16,
        tokenizer=letters,
        world_rank=rank,
        world_size=size,
        global_batch_size=BATCH,
        seed=3,
        start_step=start,
        total_steps=stop,
    )


def world(data: DataConfig, size: int, **options):
    ranks = [list(stream(data, rank=rank, size=size, **options)) for rank in range(size)]
    return [concatenated(list(parts)) for parts in zip(*ranks, strict=True)]


def test_twenty_steps_are_seven_and_thirteen_in_other_worlds(mixture):
    """Keys, views, their parameters, captions and replacements are equal, whoever reads them and wherever it was stopped."""
    whole = list(stream(mixture))
    assert sum(len(batch.drops) for batch in whole) > 20
    assert {source for batch in whole for source in batch.sources} == {0, 1, 2}
    # The schedule of a weight belongs to the whole run, so a part of a run is the run stopped early.
    first = [batch for _, batch in zip(range(7), stream(mixture, workers=2), strict=False)]
    assert_same_stream([*first, *world(mixture, 3, start=7)], whole)
    assert_same_stream([*world(mixture, 2)[:7], *stream(mixture, workers=1, start=7)], whole)


def test_the_realised_mix_is_counted_by_source(mixture):
    budget = DropBudget()
    for batch in stream(mixture):
        budget.add(len(batch.keys), batch.drops, batch.sources)
    assert budget.num_kept == STEPS * BATCH
    weights = [np.array([3, 1, 0.5 + 1.5 * step / (STEPS - 1)]) for step in range(STEPS)]
    expected = np.mean([weight / weight.sum() for weight in weights], axis=0)
    assert np.abs(np.array(budget.mix(3)) - expected).max() < 0.01
    assert {source for source, _ in budget.by_source} == {0, 1}
    assert budget.by_source[1, "filtered"] == budget.totals["filtered"] > 0
    assert budget.num_dropped == budget.totals["image-missing"] == budget.by_source[0, "image-missing"] > 0


def test_workers_that_are_killed_cost_no_batch(mixture, caplog):
    before = children()
    running = stream(mixture, workers=2)
    seen = [next(running) for _ in range(3)]
    first_workers = children() - before
    for pid in first_workers:
        os.kill(pid, signal.SIGKILL)
    for _ in range(20):  # the training process is in the middle of a step, and must not notice
        time.sleep(0.01)
    seen += list(running)
    assert_same_stream(seen, stream(mixture))
    assert "starting new workers at step" in caplog.text
    assert children() == before


def _dies(texts: list[str]) -> torch.Tensor:
    os._exit(9)


def _raises(texts: list[str]) -> torch.Tensor:
    raise RuntimeError("a defect, not a death")


def test_workers_that_die_at_once_end_the_run_with_a_reason(mixture):
    data = dataclasses.replace(mixture, workers_per_rank=1)
    options = {"image_size": 16, "tokenizer": _dies, "world_rank": 0, "world_size": 1, "global_batch_size": BATCH, "seed": 3}
    with pytest.raises(DataError, match=r"of rank 0 were lost before the first batch: DataLoader worker .*check that mem"):
        next(train_batches(data, EVERYTHING, **options, start_step=0, total_steps=5))
    with pytest.raises(RuntimeError, match="a defect, not a death"):
        next(train_batches(data, EVERYTHING, **{**options, "tokenizer": _raises}, start_step=0, total_steps=5))


def hang(folder: Path) -> bytes:
    """Make whoever opens the index of the second shard wait for ever, as a lost mount does; what it held."""
    index = folder / "x-000001.index.jsonl"
    content = index.read_bytes()
    index.unlink()
    os.mkfifo(index)
    return content


def mend(folder: Path, content: bytes) -> None:
    (folder / "new").write_bytes(content)
    os.replace(folder / "new", folder / "x-000001.index.jsonl")


def test_a_worker_that_hangs_is_named_and_started_again(tmp_path, caplog):
    folder = write_set(tmp_path, [16, 16])
    expected = list(batches(folder, stop=12))
    caplog.set_level(logging.WARNING)
    limits = {"stall_seconds": 0.2, "stall_limit_seconds": 1.0}
    content = hang(folder)
    with pytest.raises(DataError) as caught:
        list(batches(folder, workers=1, stop=12, **limits))
    text = str(caught.value)
    assert "before the first batch: rank 0 has waited" in text
    assert "worker 0 (pid " in text
    assert "x-000001.tar, its index for" in text

    def mend_when_reported() -> None:
        while caplog.text.count("has waited") <= reports and threading.main_thread().is_alive():
            time.sleep(0.05)
        mend(folder, content)

    mend(folder, content)
    before = children()
    running = batches(folder, workers=1, stop=12, prefetch_batches=1, **limits)
    seen = [next(running)]
    (pid,) = children() - before
    hang(folder)  # the next worker will find the index like this
    os.kill(pid, signal.SIGKILL)
    reports = caplog.text.count("has waited")
    mender = threading.Thread(target=mend_when_reported, daemon=True)
    mender.start()
    assert_same_stream([*seen, *running], expected)
    mender.join()
    assert "killing worker 0" in caplog.text


def test_epochs_end_without_new_workers_and_their_memory_stays_flat(tmp_path):
    folder = write_set(tmp_path, [40] * 5)
    steps = 200 // 8
    before = children()
    running = batches(folder, workers=1, stop=20 * steps)
    resident, pids = [], set()
    for step, _ in enumerate(running):
        if step % steps == steps - 1:
            pids |= children() - before
            (pid,) = children() - before
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            resident.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
    assert len(resident) == 20 or len(resident) == 19, "the last workers may have ended already"
    assert len(pids) == 1, "one worker served every epoch"
    slope = np.polyfit(np.arange(len(resident) - 5), resident[5:], 1)[0]
    assert slope < 1, f"{slope:.2f} MB per epoch: {resident}"


def test_the_board_shows_what_everyone_does_and_reports_name_it():
    board = Board(3)
    assert board.lines() == []
    board.at(0, 7, "s3://bucket/x.tar, 000123")
    board.at(2, IDLE, "x" * 5000)
    first, last = board.lines()
    assert (first.worker, first.pid, first.step, first.place) == (0, os.getpid(), 7, "s3://bucket/x.tar, 000123")
    assert (last.worker, last.step, len(last.place) < 512) == (2, IDLE, True)
    report = StallWatch(board, 5, stall_seconds=1, limit_seconds=9).report(7, 61.2)
    assert report.startswith("rank 5 has waited 61 s for the data of step 8: worker 0 (pid ")
    assert "on step 8 at s3://bucket/x.tar, 000123 for 0 s; worker 2" in report
    assert "idle for 0 s" in report
    assert StallWatch(Board(1), 0, stall_seconds=1, limit_seconds=9).report(0, 2).endswith("no worker has started")
