"""From sample numbers to a ``Batch``: read, decode, make views, tokenise, and replace what cannot be used. Layer 2.

    make = TrainBatches(shards, cfg.augment, 64, tokenizer, cfg.data.max_image_pixels, cfg.seed)
    batch = make[(epoch, indices)]              # or a mixture's Rows; a pure function: any process may build any batch
    batch = batch.to(device)                    # image_VBCHW uint8, view_params_VBK fp32, tokens_BL, group_B int64

With ``augment.on_device`` a batch leaves its worker with decoded pixels instead of views, and ``to`` makes the views.

Shapes: V views, B pairs per rank and step, C = 3, H = W = image_size, K = len(VIEW_PARAMS) numbers that describe a view,
L tokens per caption.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.config import AugmentConfig
from pipeline.data import plan, text
from pipeline.data.augment import Encoded, draw, make_views
from pipeline.data.device_views import Canvas, Canvases, cut
from pipeline.data.device_views import make_views as make_views_on_device
from pipeline.data.drops import FILTERED, BadSample, Drop, DropBudget
from pipeline.data.mixture import Rows
from pipeline.data.samples import Sample, ShardSet
from pipeline.data.sources import Sources
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.views import ViewParams, vector
from pipeline.errors import DataError, PipelineError

MAX_CANDIDATES = 16
"""Samples that may fail in a row for one place in a batch before the set is declared unusable."""
MAX_FILTERED = 1000
"""Samples that filters may pass over in a row for one place in a batch."""


@dataclass(frozen=True)
class Batch:
    """One rank's part of one global batch, and what had to be replaced in it."""

    image_VBCHW: torch.Tensor
    """uint8; V views of each sample. Empty (V, B, 3, 0, 0) as long as there are ``canvases``."""
    view_params_VBK: torch.Tensor
    """fp32; what was done to make each view, all zeros for nothing at all; ``views.VIEW_PARAMS`` names the K numbers."""
    tokens_BL: torch.Tensor
    group_B: torch.Tensor
    keys: tuple[str, ...]
    drops: tuple[Drop, ...] = ()
    epoch: int = 0
    canvases: Canvases | None = None
    """Decoded pixels, of which ``to`` makes the views."""
    sources: tuple[int, ...] = ()
    """The source of each sample, numbered as in ``config.data.sources``."""
    length_B: torch.Tensor | None = None
    """int64, always in host memory: tokens of each caption without the zeros behind it."""

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on ``device``, all views made; the copy from pinned memory overlaps with computation."""
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=True))
        if self.canvases is None:
            return moved
        image_VBCHW = make_views_on_device(self.canvases.to(device))
        return dataclasses.replace(moved, image_VBCHW=image_VBCHW, canvases=None)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; torch's DataLoader calls this where there is a GPU."""
        pinned = self._map(torch.Tensor.pin_memory)
        return pinned if self.canvases is None else dataclasses.replace(pinned, canvases=self.canvases.pin_memory())

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return dataclasses.replace(
            self,
            image_VBCHW=function(self.image_VBCHW),
            view_params_VBK=function(self.view_params_VBK),
            tokens_BL=function(self.tokens_BL),
            group_B=function(self.group_B),
        )


class _Item(NamedTuple):
    """One sample, ready to be laid beside others: its V views, or the canvas from which the device makes them."""

    key: str
    group: int
    caption: str
    params_V: tuple[ViewParams, ...]
    views: Sequence[torch.Tensor]
    canvas: Canvas | None


class TrainBatches(Dataset["Batch | PipelineError"]):
    """Builds the batch for ``(epoch, sample indices [B])`` or ``Rows``; pure, so that any process may build any batch."""

    def __init__(
        self,
        shards: ShardSet | Sources,
        augment: AugmentConfig,
        image_size: int,
        tokenizer: Tokenizer,
        max_pixels: int,
        seed: int,
    ) -> None:
        self._shards, self._augment, self._image_size = shards, augment, image_size
        self._tokenizer, self._max_pixels, self._seed = tokenizer, max_pixels, seed

    def __getitem__(self, item: Rows | tuple[int, plan.Indices]) -> Batch | PipelineError:
        """The batch; or the error that ends the run, as a value, so that it is not buried in a worker's traceback."""
        try:
            return self._batch(item if isinstance(item, Rows) else Rows.of(*item))
        except PipelineError as error:
            return DataError(str(error)) if isinstance(error, BadSample) else error

    def _batch(self, rows: Rows) -> Batch:
        num_views = len(self._augment.views)
        side = 0 if self._augment.on_device else self._image_size
        # Channels last in memory, as decoders and image towers like it.
        image_VBCHW = torch.empty((num_views, len(rows.index_B), side, side, 3), dtype=torch.uint8).permute(0, 1, 4, 2, 3)
        used, drops = [], []
        sources = rows.source_B.tolist()
        for place, (index, epoch) in enumerate(zip(rows.index_B.tolist(), rows.epoch_B.tolist(), strict=True)):
            item, bad = self._usable(epoch, index)
            for view, made_1CHW in enumerate(item.views):
                image_VBCHW[view, place] = made_1CHW[0]
            used.append(item._replace(views=()))  # copied above
            drops += [dataclasses.replace(drop, source=sources[place]) for drop in bad]
        tokens_BL = self._tokenizer([item.caption for item in used]).long()
        return Batch(
            image_VBCHW,
            torch.from_numpy(np.stack([[vector(params) for params in item.params_V] for item in used], axis=1)),
            tokens_BL,
            torch.tensor([item.group for item in used], dtype=torch.int64),
            tuple(item.key for item in used),
            tuple(drops),
            rows.epoch,
            self._canvases(used) if self._augment.on_device else None,
            tuple(sources),
            lengths(tokens_BL),
        )

    def _canvases(self, used: Sequence[_Item]) -> Canvases:
        canvases = [item.canvas for item in used if item.canvas is not None]
        return Canvases.pack(canvases, [item.params_V for item in used], self._image_size, self._augment.interpolation)

    def _usable(self, epoch: int, index: int) -> tuple[_Item, list[Drop]]:
        """Sample ``index`` or the first usable one of its stand-ins, and a Drop for each that was passed over."""
        drops: list[Drop] = []
        for candidate in self._candidates(epoch, index):
            try:
                sample = self._shards.read(candidate)
                return self._item(epoch, sample), drops
            except BadSample as bad:
                drops.append(bad.drop)
                if sum(drop.cause != FILTERED for drop in drops) == MAX_CANDIDATES:
                    break
        budget = DropBudget()
        budget.add(0, drops)
        raise DataError(
            f"no usable sample: sample {index} and {len(drops) - 1} others tried in its place all failed, so that most "
            f"of the set must be bad:\n{budget.summary()}\ncheck the shards with `unisphere shards verify`"
        )

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        yield index
        rng = plan.replacement_rng(self._seed, epoch, index)
        yield from plan.stand_ins(rng, index, *self._shards.span(index), MAX_CANDIDATES + MAX_FILTERED)

    def _item(self, epoch: int, sample: Sample) -> _Item:
        cfg, size = self._augment, self._image_size
        rng = plan.sample_rng(self._seed, epoch, sample.key)
        caption = text.choose(sample.captions, cfg.text, rng)
        try:
            encoded = Encoded(sample.image, self._max_pixels)
            params_V = draw(encoded, cfg, size, rng)
            canvas = cut(encoded.pixels(params_V[0].reduction), params_V) if cfg.on_device else None
            views = [] if cfg.on_device else make_views(encoded, params_V, size, cfg.interpolation)
        except BadSample as bad:
            raise bad.located(sample.shard, sample.key) from bad
        # A generator of its own, so that settings about words do not touch the views.
        caption = text.augmented(caption, cfg.text, rng.spawn(1)[0]) if text.is_on(cfg.text) else caption
        return _Item(sample.key, sample.group, caption, params_V, views, canvas)


def lengths(tokens_BL: torch.Tensor) -> torch.Tensor:
    """Tokens of each row up to its last one that is not zero, int64 [B]; all of them where every one is zero.

    Counted from behind, so that an end token that somebody wrote into a caption does not end it: whoever is read there is
    not changed by what follows.

    >>> lengths(torch.tensor([[5, 0, 9, 0], [5, 9, 0, 0]])).tolist()
    [3, 2]
    """
    return tokens_BL.shape[1] - tokens_BL.ne(0).int().flip(1).argmax(dim=1)
