"""Batches for training: ``train_batches`` is the whole interface between stored shards and the training loop. Layer 2.

    batches = train_batches(cfg.data, cfg.augment, image_size=64, tokenizer=tokenizer, world_rank=0, world_size=2,
                            global_batch_size=256, seed=cfg.seed, start_step=state.step, total_steps=cfg.train.steps)
    for batch in batches:                       # exactly total_steps - start_step of them
        batch = batch.to(device)                # see batches.py for what it holds
        budget.add(len(batch.keys), batch.drops)

One torch DataLoader serves the whole run: what it calls an index is (epoch, this rank's rows of one global batch), so
that one worker builds one whole batch, batches come back in order whatever the number of workers, and nothing restarts
or stalls where one epoch ends and the next begins. Resuming is starting the list of indices at another step.

Shapes: B pairs per rank and step, C = 3, H = W = image_size, L tokens per caption.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from pipeline.config import AugmentConfig, DataConfig, micro_batch_size
from pipeline.data import plan
from pipeline.data.batches import Batch, TrainBatches
from pipeline.data.samples import ShardSet
from pipeline.data.tokenizer import Tokenizer
from pipeline.errors import PipelineError


def train_batches(
    data: DataConfig,
    augment: AugmentConfig,
    *,
    image_size: int,
    tokenizer: Tokenizer,
    world_rank: int,
    world_size: int,
    global_batch_size: int,
    seed: int,
    start_step: int,
    total_steps: int,
) -> Iterator[Batch]:
    """This rank's batches for steps ``start_step .. total_steps - 1``.

    Over the ranks they concatenate to the same global batches for every ``world_size``, number of workers, and start.

    Raises:
        ConfigError: the global batch does not divide over the ranks, or the seed is negative.
        DataError: at the call, when the shards cannot be opened or hold no usable samples; later, when for one place in
            a batch ``MAX_CANDIDATES`` samples in a row could not be used.
    """
    micro_batch_size(global_batch_size, world_size)
    plan.generator(seed)
    shards = ShardSet.open(data.train, max_member_bytes=data.max_member_bytes)
    shards.preflight()
    rows = _Rows(
        shards.counts,
        seed=seed,
        global_batch_size=global_batch_size,
        shuffle_window=data.shuffle_window,
        start_step=start_step,
        total_steps=total_steps,
        world_rank=world_rank,
        world_size=world_size,
    )
    dataset = TrainBatches(shards, augment, image_size, tokenizer, data.max_image_pixels, seed)
    return _load(dataset, rows, data.workers_per_rank, data.prefetch_batches)


@dataclass(frozen=True)
class _Rows:
    """What this rank reads in each step of the rest of the run; walked lazily in the training process."""

    counts: plan.Indices
    seed: int
    global_batch_size: int
    shuffle_window: int
    start_step: int
    total_steps: int
    world_rank: int
    world_size: int

    def __iter__(self) -> Iterator[tuple[int, plan.Indices]]:
        steps = plan.run_rows(
            self.counts,
            seed=self.seed,
            global_batch_size=self.global_batch_size,
            shuffle_window=self.shuffle_window,
            start_step=self.start_step,
            total_steps=self.total_steps,
        )
        for epoch, rows in steps:
            yield epoch, plan.rank_rows(rows, self.world_rank, self.world_size)


def _load(dataset: TrainBatches, rows: _Rows, num_workers: int, prefetch_batches: int) -> Iterator[Batch]:
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=rows,
        collate_fn=unchanged,
        num_workers=num_workers,
        prefetch_factor=prefetch_batches if num_workers else None,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # torch draws a seed for its workers; not from the generator that dropout uses
        pin_memory=torch.cuda.is_available(),
    )
    for item in loader:
        if isinstance(item, PipelineError):
            raise item
        yield item


def unchanged(item: Any) -> Any:
    """In place of torch's collation, which would take the batch apart."""
    return item


def start_worker(worker: int) -> None:
    """Set up a loader process: one thread of computation, and deaf to signals meant for the training process.

    Slurm sends its warning (USR1, USR2) and its TERM to every process of a job step. The training process answers them
    by finishing the step and saving, for which it needs its workers. So a worker ignores them, except for a TERM from
    its own parent, which is how torch and multiprocessing end it.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # A thread waits for TERM, because only sigwaitinfo tells who sent it; blocked signals stay pending until then.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_parent_says, args=(os.getppid(),), daemon=True).start()


def _end_when_parent_says(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
