from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pipeline.eval.geometry import log_mean_potential, measure


def test_known_values() -> None:
    image = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    text = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, math.sqrt(2)]]) / math.sqrt(2)
    values = measure(image, text)
    assert values["pairs"] == 2
    assert values["alignment"] == pytest.approx(1.292893, abs=1e-6)
    assert values["uniformity_image"] == pytest.approx(-4.0, abs=1e-6)
    assert values["uniformity_text"] == pytest.approx(-1.171573, abs=1e-6)
    assert values["uniformity_cross"] == pytest.approx(-4.0, abs=1e-6)
    assert values["matched_cosine"] == pytest.approx(math.sqrt(0.5) / 2, abs=1e-6)
    centroids = (image.mean(0) - text.mean(0)).norm()
    assert values["centroid_distance"] == pytest.approx(float(centroids), abs=1e-6)


@pytest.mark.parametrize("d", [32, 128])
def test_random_directions_are_uniform(d: int) -> None:
    rows = F.normalize(torch.randn(3000, d, generator=torch.Generator().manual_seed(0)), dim=1)
    assert log_mean_potential(rows, rows) == pytest.approx(-4 + 8 / d, abs=0.02 if d == 32 else 0.005)


def test_chunks_leave_out_the_diagonal() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (F.normalize(torch.randn(700, 5, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    potential = (-2 * torch.cdist(x, y) ** 2).exp()
    expected = math.log(float(potential.sum() - potential.diagonal().sum()) / (700 * 699))
    assert log_mean_potential(x, y) == pytest.approx(expected, abs=1e-9)


def test_collapsed_embeddings_are_zero() -> None:
    same = torch.tensor([[0.6, 0.8]]).expand(9, 2)
    values = measure(same, -same)
    assert values["uniformity_image"] == pytest.approx(0, abs=1e-6)
    assert values["matched_cosine"] == pytest.approx(-1, abs=1e-6)
    assert values["centroid_distance"] == pytest.approx(2, abs=1e-6)
