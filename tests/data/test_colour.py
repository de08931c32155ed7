"""Operations on levels: torchvision's to one level, whatever the order, and the same alone as beside other views."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as stock

from pipeline.data.colour import blur, recolour
from pipeline.data.plan import sample_rng
from pipeline.data.views import JITTER, ViewParams, draw_views
from tests.data.test_augment import STRONG

SIZE = 32
NOTHING = ViewParams((SIZE, SIZE), (0, 0, SIZE, SIZE))


def levels(number: int = 0, count: int = 1) -> torch.Tensor:
    rng = np.random.Generator(np.random.PCG64(number))
    smooth = torch.from_numpy(rng.random((count, 3, 6, 6))).float()
    image = torch.nn.functional.interpolate(smooth, (SIZE, SIZE), mode="bilinear") * 1.2 - 0.1
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def expected(image: torch.Tensor, params: ViewParams) -> torch.Tensor:
    """The same with torchvision's operations on floating-point images in [0, 1]."""
    operations = {
        "brightness": stock.adjust_brightness,
        "contrast": stock.adjust_contrast,
        "saturation": stock.adjust_saturation,
        "hue": stock.adjust_hue,
    }
    image = image.float() / 255
    for number in params.jitter_order:
        image = operations[JITTER[number]](image, getattr(params, JITTER[number]))
    if params.grayscale:
        image = stock.rgb_to_grayscale(image, 3)
    if params.blur_sigma:
        image = stock.gaussian_blur(image, [23, 23], [params.blur_sigma, params.blur_sigma])
    if params.solarise is not None:
        image = stock.solarize(image, params.solarise)
    return image * 255


def off_by(image: torch.Tensor, params: ViewParams) -> float:
    return float((recolour(image, [params]).float() - expected(image, params)).abs().max())


@pytest.mark.parametrize(
    "change",
    [
        {"brightness": 1.4},
        {"brightness": 0.0},
        {"contrast": 1.4},
        {"contrast": 0.5},
        {"saturation": 1.9},
        {"saturation": 0.0},
        {"hue": 0.5},
        {"hue": -0.31},
        {"grayscale": True},
        {"blur_sigma": 0.1},
        {"blur_sigma": 2.0},
        {"solarise": 0.0},
    ],
)
def test_each_operation_is_torchvisions(change):
    assert off_by(levels(1), dataclasses.replace(NOTHING, **change)) <= 0.6, "rounding alone is 0.5"


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5])
def test_jitter_in_any_order(order):
    params = dataclasses.replace(NOTHING, brightness=1.3, contrast=0.7, saturation=1.35, hue=0.08, jitter_order=order)
    assert off_by(levels(2), params) <= 1


def test_grey_black_and_white_have_no_hue_to_turn():
    grey = torch.tensor([0, 90, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    assert torch.equal(recolour(grey, [dataclasses.replace(NOTHING, hue=0.3)] * 3), grey)


def test_solarise_inverts_from_its_threshold_upwards():
    image = torch.tensor([0, 127, 128, 255], dtype=torch.uint8).view(1, 1, 1, 4).expand(1, 3, 2, 4)
    assert recolour(image, [dataclasses.replace(NOTHING, solarise=0.5)])[0, 0, 0].tolist() == [0, 127, 127, 0]


def test_nothing_to_do_returns_the_very_view():
    image = levels(3)
    assert recolour(image, [NOTHING]) is image


def test_a_view_does_not_depend_on_its_neighbours():
    image = levels(4, 12)
    params = [draw_views([STRONG], SIZE, SIZE, sample_rng(0, 0, str(n)))[0] for n in range(11)] + [NOTHING]
    together = recolour(image, params)
    alone = torch.cat([recolour(image[n : n + 1], [params[n]]) for n in range(12)])
    assert (together.int() - alone.int()).abs().max() <= 1
    assert (together == alone).float().mean() > 0.999
    assert not torch.equal(together[:11], image[:11])
    assert torch.equal(together[11], image[11])


def test_blur_keeps_flat_pictures_and_small_ones():
    sigma = torch.full((1, 1, 1, 1), 2.0)
    assert torch.allclose(blur(torch.full((1, 3, 9, 9), 77.0), sigma, 2.0), torch.tensor(77.0))
    assert blur(torch.rand(1, 3, 3, 2), sigma, 2.0).shape == (1, 3, 3, 2)
    wider = blur(torch.arange(2700.0).view(3, 3, 20, 15), sigma, 5.0)
    assert torch.equal(wider, blur(torch.arange(2700.0).view(3, 3, 20, 15), sigma, 2.0)), "a neighbour's width changes nothing"
