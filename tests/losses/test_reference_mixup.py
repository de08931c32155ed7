"""Geodesic mixup: the arc and its limits, the released code's losses written out, and the draws."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.losses import reference

B, D = 6, 5
SCALE = torch.tensor(8.0, dtype=torch.float64)
REVERSED = torch.arange(B).flip(0)
DISTINCT = torch.arange(B)


def random_units(seed: int, count: int = B, width: int = D) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, dtype=torch.float64, generator=generator), dim=1)


def shared(lam: float, count: int = B) -> Tensor:
    return torch.full((count,), lam, dtype=torch.float64)


def test_the_arc_is_walked_at_constant_speed() -> None:
    x, y = random_units(0), random_units(1)
    lam = torch.linspace(0, 1, B, dtype=torch.float64)
    angle = (x * y).sum(dim=1).acos()
    point = reference.slerp(x, y, lam)
    torch.testing.assert_close(point.norm(dim=1), torch.ones(B, dtype=torch.float64))
    torch.testing.assert_close((point * x).sum(dim=1), ((1 - lam) * angle).cos())
    torch.testing.assert_close((point * y).sum(dim=1), (lam * angle).cos())
    torch.testing.assert_close(reference.slerp(x, y, shared(1.0)), x)
    torch.testing.assert_close(reference.slerp(x, y, shared(0.0)), y)


LIMITS = {
    "identical": (lambda x: x, lambda x, lam: x),
    "nearly parallel": (lambda x: F.normalize(x + 1e-9 * x.roll(1, 1), dim=1), lambda x, lam: x),
    "opposite": (
        lambda x: -x,
        lambda x, lam: (math.sin(lam * math.acos(-0.999)) - math.sin((1 - lam) * math.acos(-0.999)))
        / math.sin(math.acos(-0.999)) * x,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("lam", [0.0, 0.3, 0.5, 1.0])
def test_limits_of_the_arc(name: str, lam: float) -> None:
    other, expected = LIMITS[name]
    x = random_units(2).requires_grad_()
    y = other(x.detach()).requires_grad_()
    point = reference.slerp(x, y, shared(lam))
    torch.testing.assert_close(point, expected(x, lam), rtol=0, atol=1e-6)
    point.square().sum().backward()
    assert x.grad is not None and y.grad is not None
    assert x.grad.isfinite().all() and y.grad.isfinite().all()
    weight_x, weight_y = reference.slerp_weights((x * y).sum(dim=1), shared(lam))
    assert max(weight_x.abs().max().item(), weight_y.abs().max().item()) < 23


def test_the_arc_has_no_jump_on_the_way_to_opposite() -> None:
    angle = torch.linspace(0, math.pi, 20001, dtype=torch.float64)
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(len(angle), 2)
    y = torch.stack([angle.cos(), angle.sin()], dim=1)
    for lam in (0.1, 0.5, 0.9):
        point = reference.slerp(x, y, shared(lam, len(angle)))
        assert (point[1:] - point[:-1]).norm(dim=1).max() < 25 * math.pi / 20000
        assert point.norm(dim=1).max() < 1 + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_coarse_types_meet_no_division_by_zero(dtype: torch.dtype) -> None:
    x = random_units(3).to(dtype)
    for y in (x, -x):
        point = reference.slerp(x, y, shared(0.3))
        assert point.dtype == dtype and point.isfinite().all()


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    rows = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    columns = -(target.T * logits.T.log_softmax(dim=1)).sum(dim=1).mean()
    return (rows + columns) / 2


def released_mixes(image: Tensor, text: Tensor, lam: float) -> dict[str, Tensor]:
    """As the authors compute them: the batch reversed, one lambda, targets on the diagonal and the anti-diagonal."""
    diagonal = torch.eye(B, dtype=torch.float64)
    share = lam * diagonal + (1 - lam) * diagonal.flip(0)
    mixed_image, mixed_text = (reference.slerp(x, x.flip(0), shared(lam)) for x in (image, text))
    return {
        "v_mix": soft_cross_entropy(SCALE * mixed_image @ text.T, share),
        "l_mix": soft_cross_entropy(SCALE * image @ mixed_text.T, share),
        "vl_mix": soft_cross_entropy(SCALE * mixed_image @ mixed_text.T, diagonal + diagonal.flip(0)),
    }


@pytest.mark.parametrize("name", ["v_mix", "l_mix", "vl_mix"])
@pytest.mark.parametrize("lam", [0.0, 0.3, 0.9])
def test_equals_the_released_code_on_a_reversed_batch(name: str, lam: float) -> None:
    image, text = random_units(4), random_units(5)
    ours = getattr(reference, name)(image, text, shared(lam), REVERSED, SCALE, DISTINCT)
    torch.testing.assert_close(ours, released_mixes(image, text, lam)[name])


def test_m2_mix_by_cross_entropy_with_a_clean_diagonal() -> None:
    image, text = random_units(6), random_units(7)
    lam = torch.linspace(0.1, 0.9, B, dtype=torch.float64)
    mixed = reference.slerp(image, text, lam)
    expected = torch.zeros((), dtype=torch.float64)
    for anchor in (image, text):
        logits = torch.where(torch.eye(B, dtype=torch.bool), image @ text.T, anchor @ mixed.T)
        expected = expected + F.cross_entropy(SCALE * logits, DISTINCT)
    torch.testing.assert_close(reference.m2_mix(image, text, lam, SCALE, DISTINCT), expected)


def test_m2_mix_at_the_ends_uses_plain_negatives() -> None:
    """Lambda 0 makes every mixture its text: image anchors then see CLIP's logits."""
    image, text = random_units(8), random_units(9)
    image_rows = F.cross_entropy(SCALE * image @ text.T, DISTINCT)
    logits = torch.where(torch.eye(B, dtype=torch.bool), image @ text.T, text @ text.T)
    expected = image_rows + F.cross_entropy(SCALE * logits, DISTINCT)
    torch.testing.assert_close(reference.m2_mix(image, text, shared(0.0), SCALE, DISTINCT), expected)


def test_v_mix_without_mixing_is_info_nce() -> None:
    """Lambda 1 leaves every image itself; the partner's text is then an ordinary negative."""
    image, text = random_units(10), random_units(11)
    partner = torch.tensor([1, 2, 3, 4, 5, 0])
    ours = reference.v_mix(image, text, shared(1.0), partner, SCALE, DISTINCT)
    torch.testing.assert_close(ours, reference.info_nce(image, text, SCALE, DISTINCT))


def test_a_partner_that_shows_the_same_thing_divides_nothing() -> None:
    """Mixing within one group only: every target is the own pair, every twin is masked, as in InfoNCE on the mixed rows."""
    image, text = random_units(12), random_units(13)
    group, partner = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([1, 0, 3, 2, 5, 4])
    lam = torch.linspace(0.2, 0.8, B, dtype=torch.float64)
    mixed_image, mixed_text = (reference.slerp(x, x[partner], lam) for x in (image, text))
    mixes = (lam, partner, SCALE, group)
    torch.testing.assert_close(reference.v_mix(image, text, *mixes), reference.info_nce(mixed_image, text, SCALE, group))
    torch.testing.assert_close(reference.l_mix(image, text, *mixes), reference.info_nce(image, mixed_text, SCALE, group))
    torch.testing.assert_close(reference.vl_mix(image, text, *mixes), reference.info_nce(mixed_image, mixed_text, SCALE, group))


def test_the_middle_of_an_odd_reversed_batch_is_its_own_partner() -> None:
    image, text, count = random_units(14, 3), random_units(15, 3), 3
    ours = reference.v_mix(image, text, shared(0.3, count), torch.arange(count).flip(0), SCALE, torch.arange(count))
    mixed = reference.slerp(image, image.flip(0), shared(0.3, count))
    target = torch.tensor([[0.3, 0, 0.7], [0, 1, 0], [0.7, 0, 0.3]], dtype=torch.float64)
    torch.testing.assert_close(ours, soft_cross_entropy(SCALE * mixed @ text.T, target), rtol=0, atol=1e-6)


def test_vl_mix_masks_the_mixture_of_which_one_is_the_partner() -> None:
    """A cycle of four: mixture 0 is of samples 0 and 1; mixture 3, of 3 and 0, shares sample 0; only mixture 2 is apart."""
    image, text = random_units(16, 4), random_units(17, 4)
    partner, lam = torch.tensor([1, 2, 3, 0]), shared(0.4, 4)
    logits = SCALE * reference.slerp(image, image[partner], lam) @ reference.slerp(text, text[partner], lam).T
    expected = 0.0
    for i in range(4):
        kept = [i, (i + 1) % 4, (i + 2) % 4]
        expected -= float(logits[i, kept].log_softmax(dim=0)[:2].sum()) / 8
        kept = [i, (i - 1) % 4, (i - 2) % 4]
        expected -= float(logits[kept, i].log_softmax(dim=0)[:2].sum()) / 8
    ours = reference.vl_mix(image, text, lam, partner, SCALE, torch.arange(4))
    assert abs(ours.item() - expected) < 1e-12
    assert ours.item() >= 2 * math.log(2)


def test_derangements_are_uniform_and_repeatable() -> None:
    generator = np.random.default_rng(0)
    drawn = Counter(tuple(reference.random_derangement(generator, 4).tolist()) for _ in range(1800))
    assert len(drawn) == 9  # all derangements of four
    assert all(own != other for partner in drawn for own, other in enumerate(partner))
    assert min(drawn.values()) > 130 and max(drawn.values()) < 270  # 200 each, 5 standard deviations
    first, second = (reference.random_derangement(np.random.default_rng(5), 50) for _ in range(2))
    assert first.dtype == torch.int64 and torch.equal(first, second)
    assert torch.equal(first.sort().values, torch.arange(50))


@pytest.mark.parametrize(("count", "block"), [(4096, 64), (96, 32), (12, 4), (6, 2), (9, 9), (1, 1)])
def test_partners_lie_in_blocks_that_depend_on_the_batch_alone(count: int, block: int) -> None:
    assert reference.derangement_block(count) == block
    partner = reference.random_derangement(np.random.default_rng(3), count, block)
    own = torch.arange(count)
    assert torch.equal(partner.sort().values, own) and torch.equal(partner // block, own // block)
    assert count == 1 or not (partner == own).any()
    if count // block > 8 and block > 8:  # blocks are permuted each by itself
        assert len({tuple((part - part.min()).tolist()) for part in partner.view(-1, block)}) > 1


def test_one_sample_is_its_own_partner() -> None:
    assert reference.random_derangement(np.random.default_rng(0), 1).tolist() == [0]


def test_lambdas_are_shared_or_per_sample() -> None:
    generator = np.random.default_rng(1)
    one = reference.draw_lambda(generator, 0.5, 8)
    many = reference.draw_lambda(generator, 0.2, 20000, per_sample=True)
    assert one.shape == (8,) and one.dtype == torch.float64 and len(one.unique()) == 1
    assert many.shape == (20000,) and bool(((many >= 0) & (many <= 1)).all())
    assert abs(((many < 0.1) | (many > 0.9)).double().mean().item() - 0.67) < 0.02
    assert torch.equal(one, reference.draw_lambda(np.random.default_rng(1), 0.5, 8))
