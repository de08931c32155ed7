"""The specification itself, against published vectors, finite differences, and the limits it promises."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss

from pipeline.losses import reference


def unit(rows: list[list[float]]) -> torch.Tensor:
    return F.normalize(torch.tensor(rows, dtype=torch.float64), dim=1)


def test_known_value() -> None:
    image, text = unit([[1, 0, 0], [0, 1, 0]]), unit([[1, 0, 1], [0, 0, 1]])
    loss = reference.info_nce(image, text, torch.tensor(10.0, dtype=torch.float64), torch.arange(2))
    assert abs(loss.item() - 0.346998) < 1e-6


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


def test_gradient_by_finite_differences() -> None:
    torch.manual_seed(2)
    image, text = (torch.randn(6, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    group = torch.tensor([0, 0, 1, 2, 2, 3])

    def loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return reference.info_nce(F.normalize(image, dim=1), F.normalize(text, dim=1), scale, group, 0.1)

    assert torch.autograd.gradcheck(loss, (image, text, scale))


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
