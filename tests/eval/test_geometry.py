from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pipeline.eval.geometry import (
    SHIFTS,
    cosine_histogram,
    effective_rank,
    gap_shift,
    hubness,
    linear_separability,
    log_mean_potential,
    measure,
)


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


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def test_modalities_of_one_distribution_cannot_be_told_apart() -> None:
    assert linear_separability(unit(2000, 8, seed=1), unit(2000, 8, seed=2)) == pytest.approx(0.5, abs=0.05)


def test_separability_sees_what_the_centroids_do_not() -> None:
    """Two orthogonal planes: equal means, and apart all the same once a coordinate is squared away from the mean."""
    rows = unit(500, 4, seed=3)
    images = F.normalize(rows + torch.tensor([0.0, 0.0, 0.0, 1.5]), dim=1)
    texts = F.normalize(rows - torch.tensor([0.0, 0.0, 0.0, 1.5]), dim=1)
    assert linear_separability(images, texts) == 1.0
    assert linear_separability(images[:4], texts[:4]) == 0.5, "too few to hold any out"


def test_effective_rank_counts_directions() -> None:
    axes = torch.cat([torch.eye(6), -torch.eye(6)]).double()
    assert effective_rank(axes) == pytest.approx(6.0)
    assert effective_rank(axes[:, :1].expand(12, 6) / 6**0.5) == pytest.approx(1.0)
    assert effective_rank(torch.ones(5, 3).double()) == 1.0


def test_a_hub_is_seen() -> None:
    queries = unit(300, 16, seed=4)
    fair = hubness(queries, unit(300, 16, seed=5))
    gallery = unit(300, 16, seed=5)
    gallery[:10] = F.normalize(queries.mean(dim=0), dim=0)
    queries = F.normalize(queries + 2 * F.normalize(queries.mean(dim=0), dim=0), dim=1)
    assert hubness(queries, gallery) > fair + 1
    assert hubness(torch.eye(4).double(), torch.eye(4).double(), k=4) == 0.0


def test_the_histogram_counts_every_pair() -> None:
    rows = torch.eye(5).double()
    found = cosine_histogram(rows, rows)
    assert found["matched"][-1] == 5
    assert sum(found["other"]) == 5
    assert found["other"][20] == 5, "cosine 0 opens the upper half"


def test_shifting_along_the_gap_closes_it() -> None:
    """Pairs that only a constant offset keeps apart: half the way each, and the centroids meet."""
    rows = unit(200, 12, seed=6)
    offset = torch.zeros(12).double()
    offset[0] = 0.5
    points = gap_shift(F.normalize(rows + offset, dim=1), F.normalize(rows - offset, dim=1), scale=10.0)
    assert [point["shift"] for point in points] == list(SHIFTS)
    distances = [point["distance"] for point in points]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > distances[4] > 0 > distances[-1]
    best = min(points, key=lambda point: point["loss"])
    assert abs(best["distance"]) < distances[4] / 2
    assert gap_shift(rows, rows, 10.0) == [], "no gap, no direction"
