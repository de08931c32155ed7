"""InfoNCE, SigLIP and captioning: against open_clip and torch, and the limits they promise."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, CoCaLoss, SigLipLoss

from pipeline.losses import reference


def double(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def pairs(seed: int, count: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = (torch.randn(count, width, dtype=torch.float64, generator=generator) for _ in range(2))
    return F.normalize(image, dim=1), F.normalize(text, dim=1)


def test_equals_open_clip_without_groups() -> None:
    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(16, 8, dtype=torch.float64), dim=1) for _ in range(2))
    theirs = ClipLoss()(image, text, torch.tensor(20.0, dtype=torch.float64))
    ours = reference.info_nce(image, text, torch.tensor(20.0, dtype=torch.float64), torch.arange(16))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_label_smoothing_equals_torch_without_groups() -> None:
    torch.manual_seed(1)
    image, text = (F.normalize(torch.randn(9, 4, dtype=torch.float64), dim=1) for _ in range(2))
    scale, target = torch.tensor(5.0, dtype=torch.float64), torch.arange(9)
    logits = scale * image @ text.T
    theirs = sum(F.cross_entropy(rows, target, label_smoothing=0.2) for rows in (logits, logits.T)) / 2
    torch.testing.assert_close(reference.info_nce(image, text, scale, target, 0.2), theirs, rtol=1e-12, atol=0)


def test_a_batch_of_one_group_has_loss_zero_and_no_gradient() -> None:
    image = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    text = torch.randn(4, 3, dtype=torch.float64)
    loss = reference.info_nce(image, text, torch.tensor(3.0, dtype=torch.float64), torch.zeros(4, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert image.grad is not None and not image.grad.any()


def test_equal_captions_in_one_group_do_not_repel() -> None:
    """Two drawings of one thing: with the group known, the pair's loss is that of a batch without the twin."""
    generator = torch.Generator().manual_seed(3)
    image, text = (F.normalize(torch.randn(3, 4, dtype=torch.float64, generator=generator), dim=1) for _ in range(2))
    scale = torch.tensor(7.0, dtype=torch.float64)
    twice = torch.tensor([0, 1, 2, 0, 1, 2])
    doubled = reference.info_nce(image.repeat(2, 1), text.repeat(2, 1), scale, twice)
    # Each of the other two now appears twice among the negatives.
    logits = scale * image @ text.T
    weights = torch.full((3, 3), 2.0, dtype=torch.float64).fill_diagonal_(1.0).log()
    expected = sum(F.cross_entropy(rows + weights, torch.arange(3)) for rows in (logits, logits.T)) / 2
    torch.testing.assert_close(doubled, expected, rtol=1e-12, atol=0)


def test_siglip_equals_open_clip_without_groups() -> None:
    image, text = pairs(4, 12, 8)
    theirs = SigLipLoss()(image, text, double(10.0), double(-10.0))
    ours = reference.siglip(image, text, double(10.0), double(-10.0), torch.arange(12))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_siglip_leaves_twins_out() -> None:
    image, text = pairs(5, 4, 3)
    scale, bias, group = double(6.0), double(-1.0), torch.tensor([0, 0, 1, 2])
    expected = 0.0
    for i in range(4):
        for j in range(4):
            logit = 6.0 * float(image[i] @ text[j]) - 1.0
            if i == j:
                expected += math.log1p(math.exp(-logit))
            elif group[i] != group[j]:
                expected += math.log1p(math.exp(logit))
    assert abs(reference.siglip(image, text, scale, bias, group).item() - expected / 4) < 1e-12


def test_siglip_of_one_group_only_attracts() -> None:
    image, text = pairs(6, 3, 4)
    positive = -F.logsigmoid(5.0 * (image * text).sum(dim=1) - 2.0).mean()
    ours = reference.siglip(image, text, double(5.0), double(-2.0), torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(ours, positive, rtol=1e-12, atol=0)


@pytest.mark.parametrize("pad_id", [0, 6, -100])
def test_captioning_equals_open_clip(pad_id: int) -> None:
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(3, 5, 7, dtype=torch.float64, generator=generator)
    target = torch.randint(1, 6, (3, 5), generator=generator)
    target[0, 2:], target[1, 4:] = pad_id, pad_id
    coca = CoCaLoss(caption_loss_weight=1.0, clip_loss_weight=0.0, pad_id=pad_id)
    _, theirs = coca(None, None, logits, target, None)
    torch.testing.assert_close(reference.captioning(logits, target, pad_id), theirs, rtol=1e-12, atol=0)


def test_captioning_is_a_mean_over_tokens_not_over_captions() -> None:
    logits = torch.zeros(2, 3, 4, dtype=torch.float64)
    logits[0, 0, 1] = 50.0  # the only token of the first caption is certain; the second has three, uniform
    target = torch.tensor([[1, 0, 0], [1, 2, 3]])
    assert abs(reference.captioning(logits, target, pad_id=0).item() - 3 * math.log(4) / 4) < 1e-12


def test_captioning_of_padding_alone_is_zero() -> None:
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    loss = reference.captioning(logits, torch.zeros(2, 3, dtype=torch.int64), pad_id=0)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_captioning_gradient_by_finite_differences() -> None:
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[1, 0, 0], [1, 2, 3]])
    assert torch.autograd.gradcheck(lambda logits: reference.captioning(logits, target, 0), (logits,))
