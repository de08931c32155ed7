"""Batches for training: ``train_batches`` is the whole interface between stored shards and the training loop. Layer 2.

    batches = train_batches(cfg.data, cfg.augment, image_size=64, tokenizer=tokenizer, world_rank=0, world_size=2,
                            global_batch_size=256, seed=cfg.seed, start_step=state.step, total_steps=cfg.train.steps)
    for batch in batches:                       # exactly total_steps - start_step of them
        batch = batch.to(device)                # image_BCHW uint8, tokens_BL int64, group_B int64
        budget.add(len(batch.keys), batch.drops)

One torch DataLoader serves the whole run: what it calls an index is (epoch, this rank's rows of one global batch), so
that one worker builds one whole batch, batches come back in order whatever the number of workers, and nothing restarts
or stalls where one epoch ends and the next begins. Resuming is starting the list of indices at another step.

Shapes: B pairs per rank and step, C = 3, H = W = image_size, L tokens per caption.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.config import AugmentConfig, DataConfig, micro_batch_size
from pipeline.data import plan
from pipeline.data.augment import View, decode, smallest_useful_side, train_view
from pipeline.data.drops import BadSample, Drop, DropBudget
from pipeline.data.samples import Sample, ShardSet
from pipeline.data.tokenizer import Tokenizer
from pipeline.errors import DataError, PipelineError

__all__ = ["Batch", "Drop", "DropBudget", "train_batches"]

MAX_CANDIDATES = 16
"""Samples tried for one place in a batch before the set is declared unusable."""


@dataclass(frozen=True)
class Batch:
    """One rank's part of one global batch, and what had to be replaced in it."""

    image_BCHW: torch.Tensor
    tokens_BL: torch.Tensor
    group_B: torch.Tensor
    keys: tuple[str, ...]
    drops: tuple[Drop, ...] = ()
    epoch: int = 0

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on ``device``; the copy from pinned memory overlaps with computation."""
        return self._with(*(tensor.to(device, non_blocking=True) for tensor in self._tensors()))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; torch's DataLoader calls this where there is a GPU."""
        return self._with(*(tensor.pin_memory() for tensor in self._tensors()))

    def _tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.image_BCHW, self.tokens_BL, self.group_B

    def _with(self, image_BCHW: torch.Tensor, tokens_BL: torch.Tensor, group_B: torch.Tensor) -> Batch:
        return dataclasses.replace(self, image_BCHW=image_BCHW, tokens_BL=tokens_BL, group_B=group_B)


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


class TrainBatches(Dataset["Batch | PipelineError"]):
    """Builds the batch for ``(epoch, sample indices [B])``; pure, so that any process may build any batch."""

    def __init__(
        self,
        shards: ShardSet,
        augment: AugmentConfig,
        image_size: int,
        tokenizer: Tokenizer,
        max_pixels: int,
        seed: int,
    ) -> None:
        self._shards, self._augment, self._image_size = shards, augment, image_size
        self._tokenizer, self._max_pixels, self._seed = tokenizer, max_pixels, seed
        self._at_least = smallest_useful_side(augment, image_size)

    def __getitem__(self, item: tuple[int, plan.Indices]) -> Batch | PipelineError:
        """The batch; or the error that ends the run, as a value, so that it is not buried in a worker's traceback."""
        epoch, indices = item
        try:
            return self._batch(epoch, indices)
        except PipelineError as error:
            return DataError(str(error)) if isinstance(error, BadSample) else error

    def _batch(self, epoch: int, indices: plan.Indices) -> Batch:
        image_BCHW = np.empty((len(indices), 3, self._image_size, self._image_size), np.uint8)
        captions, groups, keys, drops = [], [], [], []
        for place, index in enumerate(indices.tolist()):
            sample, view, caption, bad = self._usable(epoch, index)
            image_BCHW[place] = view
            captions.append(caption)
            groups.append(sample.group)
            keys.append(sample.key)
            drops += bad
        group_B = torch.tensor(groups, dtype=torch.int64)
        return Batch(torch.from_numpy(image_BCHW), self._tokenizer(captions).long(), group_B, tuple(keys), tuple(drops), epoch)

    def _usable(self, epoch: int, index: int) -> tuple[Sample, View, str, list[Drop]]:
        """Sample ``index`` or the first usable one of its stand-ins, and a Drop for each that was passed over."""
        drops: list[Drop] = []
        for candidate in self._candidates(epoch, index):
            try:
                sample = self._shards.read(candidate)
                view, caption = self._view(epoch, sample)
                return sample, view, caption, drops
            except BadSample as bad:
                drops.append(bad.drop)
        budget = DropBudget()
        budget.add(0, drops)
        raise DataError(
            f"no usable sample: sample {index} and {len(drops) - 1} others tried in its place all failed, so that most "
            f"of the set must be bad:\n{budget.summary()}\ncheck the shards with `unisphere shards verify`"
        )

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        yield index
        num_others = len(self._shards) - 1
        rng = plan.replacement_rng(self._seed, epoch, index)
        for other in rng.choice(num_others, min(MAX_CANDIDATES - 1, num_others), replace=False).tolist():
            yield other + (other >= index)

    def _view(self, epoch: int, sample: Sample) -> tuple[View, str]:
        rng = plan.sample_rng(self._seed, epoch, sample.key)
        caption = sample.captions[rng.integers(len(sample.captions))]
        try:
            image = decode(sample.image, self._max_pixels, self._at_least)
        except BadSample as bad:
            raise bad.located(sample.shard, sample.key) from bad
        return train_view(image, self._augment, self._image_size, rng), caption


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
