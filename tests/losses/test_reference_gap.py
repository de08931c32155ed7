"""Alignment and uniformity: the values they take at random, at a simplex, and in collapse; what they leave out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.losses import reference


def random_units(seed: int, count: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, dtype=torch.float64, generator=generator), dim=1)


@pytest.mark.parametrize("width", [32, 64, 128, 512])
def test_uniformity_of_random_rows(width: int) -> None:
    rows = random_units(width, 2000, width)
    assert abs(reference.uniformity(rows, torch.arange(2000)).item() - (-4 + 8 / width)) < 0.005


def test_uniformity_is_least_at_a_simplex() -> None:
    count = 5
    simplex = F.normalize(torch.eye(count, dtype=torch.float64) - 1 / count, dim=1)
    assert abs(reference.uniformity(simplex, torch.arange(count)).item() - (-4 - 4 / (count - 1))) < 1e-12


def test_collapse_is_zero() -> None:
    rows = random_units(0, 1, 6).repeat(4, 1)
    assert abs(reference.uniformity(rows, torch.arange(4)).item()) < 1e-12
    assert abs(reference.cross_uniformity(rows, rows, torch.arange(4)).item()) < 1e-12


@pytest.mark.parametrize("t", [0.5, 2.0, 3.0])
def test_uniformity_equals_the_published_code(t: float) -> None:
    rows = random_units(1, 10, 4)
    theirs = torch.pdist(rows).pow(2).mul(-t).exp().mean().log()
    torch.testing.assert_close(reference.uniformity(rows, torch.arange(10), t), theirs, rtol=1e-12, atol=0)


def test_twins_are_left_out_of_the_sum() -> None:
    image, text, group = random_units(2, 4, 3), random_units(3, 4, 3), torch.tensor([0, 0, 1, 2])
    kernel = [
        math.exp(-2 * float((image[i] - text[j]).square().sum())) for i in range(4) for j in range(4) if group[i] != group[j]
    ]
    expected = math.log(sum(kernel) / len(kernel))
    assert len(kernel) == 10
    assert abs(reference.cross_uniformity(image, text, group).item() - expected) < 1e-12


def test_the_modalities_may_be_swapped() -> None:
    image, text, group = random_units(4, 6, 3), random_units(5, 6, 3), torch.tensor([0, 0, 1, 2, 3, 3])
    for term in (reference.alignment, lambda x, y: reference.cross_uniformity(x, y, group)):
        torch.testing.assert_close(term(image, text), term(text, image), rtol=1e-12, atol=0)


def test_alignment_at_its_landmarks() -> None:
    rows = torch.eye(3, dtype=torch.float64)
    assert reference.alignment(rows, rows).item() == 0
    assert reference.alignment(rows, rows.roll(1, 0)).item() == 2
    assert reference.alignment(rows, -rows).item() == 4
