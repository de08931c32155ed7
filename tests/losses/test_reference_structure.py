"""Latent structures: brute-force sums, the d x d route, batch-independent strength, and degenerate bridges."""

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


SCALE = torch.tensor(5.0, dtype=torch.float64)


def test_in_modal_info_nce_is_one_direction_of_cross_entropy() -> None:
    rows, augmented = random_units(0, 6, 4), random_units(1, 6, 4)
    theirs = F.cross_entropy(SCALE * rows @ augmented.T, torch.arange(6))
    torch.testing.assert_close(reference.in_modal_info_nce(rows, augmented, SCALE, torch.arange(6)), theirs)


def test_orthogonality() -> None:
    rows, other = random_units(2, 4000, 64), random_units(3, 4000, 64)
    assert abs(reference.orthogonality(rows, other, rows, other.flip(0)).item() - 2 / 64) < 0.002
    eye = torch.eye(3, dtype=torch.float64)
    assert reference.orthogonality(eye, eye, eye, -eye).item() == 2
    assert reference.orthogonality(eye, eye.roll(1, 0), eye, eye.roll(1, 0)).item() == 0


def test_independent_terms_are_sums_over_modalities() -> None:
    image, image_a, text, text_a = (random_units(seed, 5, 4) for seed in range(4, 8))
    group = torch.tensor([0, 1, 1, 2, 3])
    halves = [reference.in_modal_info_nce(x, x_a, SCALE, group) for x, x_a in ((image, image_a), (text, text_a))]
    both = reference.independent_contrast(image, image_a, text, text_a, SCALE, group)
    torch.testing.assert_close(both, halves[0] + halves[1])
    torch.testing.assert_close(reference.independent_contrast(image, image_a, None, None, SCALE, group), halves[0])
    kernels = [reference.uniformity(x, group).exp() for x in (image, text)]
    torch.testing.assert_close(reference.independent_uniformity(image, text, group), ((kernels[0] + kernels[1]) / 2).log())


def test_brownian_bridge_equals_its_expanded_form() -> None:
    image, text, augmented = (random_units(seed, 5, 4) for seed in range(8, 11))
    total = 0.0
    for v, x, a in zip(image, text, augmented, strict=True):
        length = math.sqrt(0.25**2 + 0.75**2 + 2 * 0.25 * 0.75 * float(v @ x))
        total += 2 - 2 * (0.25 * float(v @ a) + 0.75 * float(x @ a)) / length
    assert abs(reference.brownian_bridge(image, text, augmented).item() - total / 5) < 1e-12


def test_brownian_bridge_ends_at_image_and_text() -> None:
    image, text, augmented = (random_units(seed, 5, 4) for seed in range(11, 14))
    torch.testing.assert_close(reference.brownian_bridge(image, text, augmented, 1.0), reference.alignment(image, augmented))
    torch.testing.assert_close(reference.brownian_bridge(image, text, augmented, 0.0), reference.alignment(text, augmented))


def test_no_point_lies_between_opposites() -> None:
    image, augmented = (random_units(seed, 3, 4).requires_grad_() for seed in (14, 15))
    loss = reference.brownian_bridge(image, -image, augmented, t=0.5)
    loss.backward()
    assert abs(loss.item() - 1) < 1e-12
    assert image.grad is not None and not image.grad.any()


def test_brownian_bridge_refuses_a_time_outside_the_way() -> None:
    rows = random_units(16, 2, 3)
    with pytest.raises(ValueError, match=r"t is 1\.5, but .* choose it in \[0, 1\]"):
        reference.brownian_bridge(rows, rows, rows, t=1.5)


def test_consistency_by_brute_force() -> None:
    v, x, count = random_units(17, 5, 3), random_units(18, 5, 3), 5
    cross = sum(float(v[j] @ x[k] - v[k] @ x[j]) ** 2 for j in range(count) for k in range(count)) / count
    intra = sum(float(v[j] @ v[k] - x[j] @ x[k]) ** 2 for j in range(count) for k in range(count)) / count
    assert abs(reference.cross_consistency(v, x, count).item() - cross) < 1e-12
    assert abs(reference.intra_consistency(v, x, count).item() - intra) < 1e-12
    assert abs(reference.geometric_consistency(v, x, count).item() - cross - intra) < 1e-12


@pytest.mark.parametrize("name", ["cross_consistency", "intra_consistency"])
@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (1, 3)])
def test_the_gram_route_is_an_identity(name: str, shape: tuple[int, int]) -> None:
    """In value and gradient, for any rows: neither normalisation nor B > d is needed."""
    results = []
    for route in (getattr(reference, name), getattr(reference, f"{name}_gram")):
        generator = torch.Generator().manual_seed(19)
        leaves = [torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2)]
        loss = route(*leaves)
        results.append((loss, *torch.autograd.grad(loss, leaves)))
    for pairwise, gram in zip(*results, strict=True):
        torch.testing.assert_close(gram, pairwise, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("count", [128, 1024])
def test_strength_at_random_does_not_depend_on_the_batch(count: int) -> None:
    image, text = random_units(20, count, 512), random_units(21, count, 512)
    for term in (reference.cross_consistency, reference.intra_consistency):
        assert abs(term(image, text).item() - 0.5) < 0.02
        printed = term(image, text, reference_batch=count).item()
        assert abs(printed / ((count - 1) * 2 / 512) - 1) < 0.02  # the published form grows with the batch


def test_augmented_consistency() -> None:
    v, v_a, x, x_a = (random_units(seed, 5, 4) for seed in range(22, 26))
    halves = reference.intra_consistency(v, v_a, 5) + reference.intra_consistency(x, x_a, 5)
    pair = sum(float(v[j] @ x[j] - v_a[j] @ x_a[j]) ** 2 for j in range(5)) / 5
    torch.testing.assert_close(reference.augmented_consistency(v, v_a, x, x_a, 5), halves + pair)
    torch.testing.assert_close(
        reference.augmented_consistency(v, v_a, reference_batch=5), reference.intra_consistency(v, v_a, 5)
    )
    assert reference.augmented_consistency(v, v, x, x).item() == 0


def test_consistency_is_unchanged_when_modalities_swap_and_when_both_rotate() -> None:
    image, text = random_units(27, 6, 4), random_units(28, 6, 4)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    expected = reference.geometric_consistency(image, text)
    torch.testing.assert_close(reference.geometric_consistency(text, image), expected)
    torch.testing.assert_close(reference.geometric_consistency(image @ rotation, text @ rotation), expected)
