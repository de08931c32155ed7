"""From sample numbers to a ``Batch``: read, decode, make views, tokenise, and replace what cannot be used. Layer 2.

    make = TrainBatches(shards, cfg.augment, 64, tokenizer, cfg.data.max_image_pixels, cfg.seed)
    batch = make[(epoch, indices)]              # a pure function, so that any process may build any batch
    batch = batch.to(device)                    # image_VBCHW uint8, view_params_VBK fp32, tokens_BL, group_B int64

Shapes: V views, B pairs per rank and step, C = 3, H = W = image_size, K numbers that describe a view, L tokens per caption.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.config import AugmentConfig
from pipeline.data import plan
from pipeline.data.augment import View, decode, smallest_useful_side, train_view
from pipeline.data.drops import BadSample, Drop, DropBudget
from pipeline.data.samples import Sample, ShardSet
from pipeline.data.tokenizer import Tokenizer
from pipeline.errors import DataError, PipelineError

MAX_CANDIDATES = 16
"""Samples tried for one place in a batch before the set is declared unusable."""


@dataclass(frozen=True)
class Batch:
    """One rank's part of one global batch, and what had to be replaced in it."""

    image_VBCHW: torch.Tensor
    """uint8; V views of each sample."""
    view_params_VBK: torch.Tensor
    """fp32; what was done to make each view, all zeros for nothing at all."""
    tokens_BL: torch.Tensor
    group_B: torch.Tensor
    keys: tuple[str, ...]
    drops: tuple[Drop, ...] = ()
    epoch: int = 0

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on ``device``; the copy from pinned memory overlaps with computation."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; torch's DataLoader calls this where there is a GPU."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return dataclasses.replace(
            self,
            image_VBCHW=function(self.image_VBCHW),
            view_params_VBK=function(self.view_params_VBK),
            tokens_BL=function(self.tokens_BL),
            group_B=function(self.group_B),
        )


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
        image_VBCHW = np.empty((1, len(indices), 3, self._image_size, self._image_size), np.uint8)
        captions, groups, keys, drops = [], [], [], []
        for place, index in enumerate(indices.tolist()):
            sample, view, caption, bad = self._usable(epoch, index)
            image_VBCHW[0, place] = view
            captions.append(caption)
            groups.append(sample.group)
            keys.append(sample.key)
            drops += bad
        group_B = torch.tensor(groups, dtype=torch.int64)
        params_VBK = torch.zeros(1, len(indices), 0)
        tokens_BL = self._tokenizer(captions).long()
        return Batch(torch.from_numpy(image_VBCHW), params_VBK, tokens_BL, group_B, tuple(keys), tuple(drops), epoch)

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
