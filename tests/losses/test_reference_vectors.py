"""Values worked out by hand, outside this project: two samples, two image views, one text each, in three dimensions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.losses import reference
from pipeline.losses.reference import masks


def unit(*rows: tuple[float, float, float]) -> Tensor:
    return F.normalize(torch.tensor(rows, dtype=torch.float64), dim=1)


IMAGE = unit((1, 0, 0), (0, 1, 0))
AUGMENTED = unit((1, 1, 0), (0, 1, 1))
TEXT = unit((1, 0, 1), (0, 0, 1))
GROUP = torch.arange(2)
LAMBDA = torch.full((2,), 0.3, dtype=torch.float64)
TAU = torch.full((3,), 0.1, dtype=torch.float64)
NO_OFFSET = torch.zeros(3, dtype=torch.float64)
ANCHORS = (0.002545, 3.883804, 1.525618, 0.225502, 1.525618, 3.883804)


def scale(temperature: float) -> Tensor:
    return torch.tensor(1 / temperature, dtype=torch.float64)


def mp_nce(text_text: reference.DomainRule) -> Tensor:
    return reference.mp_nce(torch.stack([IMAGE, AUGMENTED]), TEXT[None], TAU.log(), NO_OFFSET, GROUP, text_text=text_text)


VECTORS = {
    "info_nce": (lambda: reference.info_nce(IMAGE, TEXT, scale(0.1), GROUP), 0.346998),
    "mp_nce": (lambda: mp_nce("tie"), 1.841148),
    "mp_nce, mean of the anchors": (lambda: mp_nce("tie"), sum(ANCHORS) / 6),
    "mp_nce without text-text": (lambda: mp_nce("drop"), 1.099269),
    "alignment": (lambda: reference.alignment(IMAGE, TEXT), 1.292893),
    "uniformity of images": (lambda: reference.uniformity(IMAGE, GROUP), -4.0),
    "uniformity of texts": (lambda: reference.uniformity(TEXT, GROUP), -1.171573),
    "mean uniformity": (lambda: (reference.uniformity(IMAGE, GROUP) + reference.uniformity(TEXT, GROUP)) / 2, -2.585786),
    "cross_uniformity": (lambda: reference.cross_uniformity(IMAGE, TEXT, GROUP), -4.0),
    "brownian_bridge": (lambda: reference.brownian_bridge(IMAGE, TEXT, AUGMENTED, t=0.25), 0.520745),
    "cross_consistency": (lambda: reference.cross_consistency(IMAGE, TEXT, reference_batch=2), 0.0),
    "intra_consistency": (lambda: reference.intra_consistency(IMAGE, TEXT, reference_batch=2), 0.5),
    "m2_mix": (lambda: reference.m2_mix(IMAGE, TEXT, LAMBDA, scale(0.07), GROUP), 4.222556),
}


@pytest.mark.parametrize("name", VECTORS)
def test_known_value(name: str) -> None:
    compute, expected = VECTORS[name]
    assert abs(compute().item() - expected) < 1e-6


def test_known_arc() -> None:
    expected = torch.tensor([[0.852640, 0.0, 0.522499], [0.0, 0.453990, 0.891007]], dtype=torch.float64)
    torch.testing.assert_close(reference.slerp(IMAGE, TEXT, LAMBDA), expected, rtol=0, atol=1e-6)


def test_each_anchor_of_mp_nce() -> None:
    """One anchor at a time: the mean over its two positives, each alone against the anchor's negatives."""
    rows, sample = torch.cat([IMAGE, AUGMENTED, TEXT]), torch.arange(2).repeat(3)
    logits = 10 * rows @ rows.T
    others = torch.tensor([[2, 4], [3, 5], [0, 4], [1, 5], [0, 2], [1, 3]])
    by_positive = [masks.contrast(logits.gather(1, p[:, None]).squeeze(1), logits, masks.apart(sample)) for p in others.T]
    expected = torch.tensor(ANCHORS, dtype=torch.float64)
    torch.testing.assert_close(torch.stack(by_positive).mean(dim=0), expected, rtol=0, atol=1e-6)
