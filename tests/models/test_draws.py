"""Patch dropout as a function of step and sample: the same on any number of ranks, in any number of micro-batches."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from open_clip.transformer import PatchDropout as OpenClipDropout
from timm.layers import DropPath, PatchDropoutWithIndices
from timm.layers import PatchDropout as TimmDropout
from torch import Tensor, nn

from pipeline.models import draws
from pipeline.models.draws import PatchDropout
from pipeline.models.towers import Towers
from tests import tiny

B, L, PREFIX = 12, 16, 1
TOKENS = torch.arange(float(L + PREFIX)).view(1, -1, 1)
"""Each token is its own number, so that the output says which were kept."""


def kept(drop: PatchDropout, rows: int) -> Tensor:
    """Numbers of the patches that stay, in order, [rows, K]."""
    left = drop(TOKENS.expand(rows, -1, 2))
    assert left[:, 0].eq(0).all()  # the class token
    return left[:, PREFIX:, 0].sort(dim=1).values


def drawn(seed: int = 5, first: int = 0, count: int = B, views: int = 1, number: int = 0) -> Tensor:
    """What one forward pass of ``views`` times ``count`` samples keeps."""
    drop = PatchDropout(0.5, PREFIX, number)
    drop.draw_from(seed, first, count)
    return kept(drop, views * count)


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_parts_of_a_batch_keep_what_the_whole_batch_keeps(parts: int) -> None:
    """Ranks and micro-batches are parts; with two views, side by side or one after the other."""
    size, whole = B // parts, drawn(views=2).view(2, B, -1)
    found = [drawn(first=part * size, count=size, views=2).view(2, size, -1) for part in range(parts)]
    assert torch.equal(torch.cat(found, dim=1), whole)
    drop = PatchDropout(0.5, PREFIX, 0)
    drop.draw_from(5, 0, B)
    assert torch.equal(torch.stack([kept(drop, B), kept(drop, B)]), whole)


def test_everything_that_should_differ_does() -> None:
    base = drawn()
    others = [drawn(seed=6), drawn(seed=5 + 2**32), drawn(first=B), drawn(number=1), drawn(views=2)[B:]]
    assert not any(torch.equal(base, other) for other in others)
    assert len({tuple(row.tolist()) for row in base}) == B  # and so do the samples of one batch


def test_every_patch_and_every_pair_is_kept_equally_often() -> None:
    count = 20_000
    keep = torch.zeros(count, L).scatter_(1, drawn(seed=2**64 - 1, count=count).long() - PREFIX, 1.0)
    assert keep.sum(dim=1).eq(L // 2).all()
    assert keep.mean(dim=0).sub(0.5).abs().max() < 5 * (0.25 / count) ** 0.5
    together = (keep.T @ keep / count).fill_diagonal_(0) + torch.eye(L) * 7 / 30
    assert together.sub(7 / 30).abs().max() < 5 * (7 / 30 * 23 / 30 / count) ** 0.5  # 8 / 16 * 7 / 15


@pytest.mark.parametrize(
    "library", [lambda: OpenClipDropout(0.25), lambda: TimmDropout(0.25), lambda: PatchDropoutWithIndices(0.25, ordered=True)]
)
def test_the_libraries_modules_are_replaced_with_the_same_manners(library: Callable[[], nn.Module]) -> None:
    theirs = library()
    tower = nn.Sequential(copy.deepcopy(theirs))
    draws.by_sample(Towers(tower, nn.Identity()))
    ours, inputs = tower[0], torch.randn(3, L + 1, 4)
    assert isinstance(ours, PatchDropout)
    for training in (True, False):
        mine, other = ours.train(training)(inputs), theirs.train(training)(inputs)
        if isinstance(other, tuple):
            (mine, indices), (other, their_indices) = mine, other
            assert (indices is None) == (their_indices is None)
            if indices is not None:
                assert torch.equal(indices, indices.sort(dim=1).values)
                assert torch.equal(mine[:, 1:], inputs[:, 1:].gather(1, indices[:, :, None].expand(-1, -1, 4)))
        assert mine.shape == other.shape and torch.equal(mine[:, 0], inputs[:, 0])
        assert training or torch.equal(mine, inputs)


def test_two_image_towers_and_separate_views_draw_as_they_should() -> None:
    model = tiny.model(patch_dropout=0.5, second_tower="image").train()
    numbers = [module.number for module in model.modules() if isinstance(module, PatchDropout)]
    assert numbers == [0, 1]
    together, apart = (tiny.model(patch_dropout=0.5, views_together=both).train() for both in (True, False))
    inputs = tiny.batch(4, num_views=2)
    for clip in (together, apart):
        clip.draw_from(3, first=8, count=4)
    ours, theirs = together(*inputs), apart(*inputs)
    for name in ours.embeddings:
        torch.testing.assert_close(ours.embeddings[name], theirs.embeddings[name])


def test_what_each_rank_draws_is_named_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    sound = nn.ModuleDict(
        {"a": nn.Dropout(0.0), "b": PatchDropout(0.5, 1, 0), "c": nn.MultiheadAttention(4, 2), "d": nn.Linear(2, 2)}
    )
    assert draws.drawn_by_each_rank(sound) == []
    draws.announce(sound)
    assert caplog.text == ""
    drawing = nn.ModuleDict({"e": nn.Dropout(0.1), "f": nn.MultiheadAttention(4, 2, dropout=0.1), "g": DropPath(0.2), **sound})
    assert draws.drawn_by_each_rank(drawing) == ["e", "f", "g"]
    draws.announce(drawing)
    assert "each rank and micro-batch draws its own dropout in 3 modules (e, ...)" in caplog.text
