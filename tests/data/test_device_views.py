"""Views made from canvases in one pass equal those that workers make: crops bit for bit, colours to one level."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from pipeline.config import AugmentConfig, ViewConfig
from pipeline.data import augment, device_views
from pipeline.data.plan import sample_rng
from pipeline.data.views import ViewParams
from tests.data.on_disk import encoded
from tests.data.test_augment import MAX, STRONG, jpeg

SIZES = ((301, 203), (120, 400), (64, 64), (33, 57), (500, 90), (9, 7))


def both(cfg: AugmentConfig, size: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Views [V, B, 3, size, size] of the same pictures: from workers, and from canvases."""
    from_worker, canvases, params_BV = [], [], []
    for n, (width, height) in enumerate(SIZES):
        kind = "JPEG" if n % 2 == 0 else "PNG"
        data = encoded(augment.decode(jpeg(n, width, height), MAX), kind)
        opened = augment.Encoded(data, MAX)
        params_V = augment.draw(opened, cfg, size, sample_rng(0, 0, str(n)))
        from_worker.append(torch.cat(augment.make_views(opened, params_V, size, cfg.interpolation)))
        canvases.append(device_views.cut(opened.pixels(params_V[0].reduction), params_V))
        params_BV.append(params_V)
    pack = device_views.Canvases.pack(canvases, params_BV, size, cfg.interpolation)
    return torch.stack(from_worker, dim=1), device_views.make_views(pack.to(torch.device("cpu")))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [48, 7])
def test_crops_are_equal_bit_for_bit(interpolation, size):
    cfg = AugmentConfig(
        crop_scale=(0.02, 1.0),
        flip_probability=0.5,
        interpolation=interpolation,
        more_views=(ViewConfig(crop_scale=(0.5, 1.0)), ViewConfig(crop_scale=(1.0, 1.0), flip_probability=1.0)),
    )
    workers, device = both(cfg, size)
    assert device.shape == (3, len(SIZES), 3, size, size)
    assert device.dtype == torch.uint8
    assert torch.equal(workers, device)


def test_colours_are_equal_to_one_level(monkeypatch):
    cfg = AugmentConfig(flip_probability=0.5, more_views=(STRONG, dataclasses.replace(STRONG, jitter_order="fixed")))
    workers, device = both(cfg)
    difference = (workers.int() - device.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-3
    monkeypatch.setattr(device_views, "CHUNK_BYTES", 3_000_000)
    in_chunks = both(cfg)[1]
    assert (in_chunks.int() - device.int()).abs().max() <= 1


def test_a_canvas_is_the_smallest_part_that_holds_all_crops():
    pixels = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    params = [ViewParams((60, 40), box, reduction=2) for box in ((10, 4, 30, 20), (20, 8, 40, 36))]
    canvas, left, upper = device_views.cut(pixels, params)
    assert (left, upper) == (5, 2)
    assert np.array_equal(canvas, pixels[2:18, 5:20])


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("length", "size"), [(5, 48), (48, 48), (300, 48), (1000, 16), (1, 1)])
def test_any_scale_is_torchs_own_resize(interpolation, length, size):
    """From enlarging tenfold to reducing 60-fold: sums of products stay exact."""
    image = torch.from_numpy(np.random.Generator(np.random.PCG64(length)).integers(0, 2, (1, 3, length, length)) * 255)
    image = image.to(torch.uint8).contiguous(memory_format=torch.channels_last)
    stock = torch.nn.functional.interpolate(image, (size, size), mode=interpolation, antialias=True)
    ours = device_views.resized(image.float(), [(0, 0, length, length)], [False], size, interpolation)
    assert torch.equal(ours, stock)
