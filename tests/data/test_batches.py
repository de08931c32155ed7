"""Batches of several views: the same views and vectors wherever and whenever they are made, on the device or in a worker."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from pipeline.config import AugmentConfig, TextConfig, ViewConfig
from pipeline.data import augment
from pipeline.data.batches import Batch, TrainBatches, lengths
from pipeline.data.plan import sample_rng
from pipeline.data.samples import ShardSet
from pipeline.data.views import VIEW_PARAMS, vector
from tests.data.on_disk import encoded, letters, picture, write_set
from tests.data.test_augment import EVERYTHING, MAX, STRONG, jpeg

THREE = dataclasses.replace(EVERYTHING, more_views=(STRONG, ViewConfig()))
COUNT = 6


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> ShardSet:
    caption = b'{"captions": ["one two three four", "five six seven eight"]}'
    replace = {n: {"jpg": jpeg(n, 90 + 10 * n, 120), "json": caption} for n in range(COUNT - 1)}
    replace[COUNT - 1] = {"png": encoded(picture(3, 70)), "json": caption}
    return ShardSet.open(str(write_set(tmp_path_factory.mktemp("shards"), [COUNT], replace=replace)))


def batch(shards: ShardSet, cfg: AugmentConfig, epoch: int = 0, size: int = 32) -> Batch:
    made = TrainBatches(shards, cfg, size, letters, MAX, seed=1)[epoch, np.arange(COUNT)]
    assert isinstance(made, Batch), made
    return made


def test_views_and_vectors_are_those_of_the_drawn_parameters(shards):
    made = batch(shards, THREE, epoch=2)
    assert made.image_VBCHW.shape == (3, COUNT, 3, 32, 32)
    assert made.view_params_VBK.shape == (3, COUNT, len(VIEW_PARAMS))
    assert made.view_params_VBK.dtype == torch.float32
    for n, key in enumerate(made.keys):
        rng = sample_rng(1, 2, key)
        rng.random()  # the choice of the caption
        opened = augment.Encoded(shards.read(n).image, MAX)
        params = augment.draw(opened, THREE, 32, rng)
        views = augment.make_views(opened, params, 32, "bicubic")
        for view in range(3):
            assert torch.equal(made.image_VBCHW[view, n], views[view][0])
            assert made.view_params_VBK[view, n].tolist() == vector(params[view]).tolist()


def test_nothing_done_is_zeros_in_the_batch(shards):
    whole = ViewConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    cfg = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(0.1, 10.0), more_views=(whole,))
    square = batch(shards, cfg).view_params_VBK[1, COUNT - 1]
    assert not square.any()
    assert batch(shards, cfg).view_params_VBK[1, 0].any(), "a picture that is not square was cropped"


def test_a_further_view_leaves_the_others_and_the_captions_alone(shards):
    one, three = batch(shards, EVERYTHING), batch(shards, dataclasses.replace(THREE, reduced_decoding=False))
    plain = batch(shards, dataclasses.replace(EVERYTHING, reduced_decoding=False))
    assert torch.equal(plain.image_VBCHW[0], three.image_VBCHW[0])
    assert torch.equal(one.tokens_BL, three.tokens_BL)


def test_words_are_edited_without_touching_the_views(shards):
    cfg = dataclasses.replace(EVERYTHING, text=TextConfig(edit_probability=1.0, delete=0.5))
    plain, edited = batch(shards, EVERYTHING), batch(shards, cfg)
    assert torch.equal(plain.image_VBCHW, edited.image_VBCHW)
    assert not torch.equal(plain.tokens_BL, edited.tokens_BL)
    assert torch.equal(edited.tokens_BL, batch(shards, cfg).tokens_BL)
    assert not torch.equal(edited.tokens_BL, batch(shards, cfg, epoch=1).tokens_BL)


def test_the_device_makes_the_views_that_workers_would_have_made(shards):
    workers = batch(shards, THREE)
    sent = batch(shards, dataclasses.replace(THREE, on_device=True))
    assert sent.image_VBCHW.shape == (3, COUNT, 3, 0, 0)
    assert sent.canvases is not None
    assert sent.canvases.pixel_N.numel() < sum(90 * 120 * 3 + 3600 * n for n in range(COUNT)), "cut to what is shown"
    made = sent.to(torch.device("cpu"))
    assert made.canvases is None
    difference = (made.image_VBCHW.int() - workers.image_VBCHW.int()).abs()
    assert difference.max() <= 1
    assert torch.equal(made.image_VBCHW[2], workers.image_VBCHW[2]), "a view that is only a crop is equal bit for bit"
    for field in ("view_params_VBK", "tokens_BL", "group_B"):
        assert torch.equal(getattr(made, field), getattr(workers, field))
    assert (made.keys, made.drops, made.epoch, made.sources) == (workers.keys, workers.drops, workers.epoch, workers.sources)


def test_a_batch_knows_the_lengths_of_its_captions_on_the_host(shards):
    made = batch(shards, AugmentConfig())
    assert made.length_B.tolist() == [int(row.nonzero().max()) + 1 for row in made.tokens_BL]
    assert made.to(torch.device("meta")).length_B is made.length_B, "it stays where the host can read it"
    assert lengths(torch.tensor([[5, 9, 4, 9, 0], [5, 9, 0, 0, 0], [0, 0, 0, 0, 0]])).tolist() == [4, 2, 5]
