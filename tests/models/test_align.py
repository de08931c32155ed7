"""Procrustes finds a known rotation, and lays one tower's cone over the other's."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.models.align import align, procrustes
from tests import tiny


def test_a_known_rotation_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    x_Nd = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    rotation_dd = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    torch.testing.assert_close(procrustes(x_Nd, x_Nd @ rotation_dd), rotation_dd)


def test_the_cones_of_two_towers_are_superposed() -> None:
    model = tiny.model(second_tower="image")
    images = [tiny.batch(16, seed=seed).image_VbCHW[0] for seed in range(3)]
    before, after = align(model, images)
    first, second = (torch.cat([encode(image) for image in images]) for encode in (model.encode_image, model.encode_text))
    assert after < 0.1 < before
    assert (first.mean(dim=0) - second.mean(dim=0)).norm().item() == pytest.approx(after, abs=1e-5)
    features = model(*tiny.batch(4))
    torch.testing.assert_close(features.embeddings["text"], model.encode_text(tiny.batch(4).image_VbCHW[0]))


def test_a_text_tower_is_not_aligned() -> None:
    with pytest.raises(ConfigError, match="model.second_tower = image"):
        align(tiny.model(), [])
