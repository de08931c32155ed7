"""CyCLIP and SimCLR: against their published code's form, written out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.losses import reference


def random_units(seed: int, count: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, dtype=torch.float64, generator=generator), dim=1)


def test_cyclip_equals_the_published_form_on_logits() -> None:
    image, text, scale, count = random_units(0, 7, 4), random_units(1, 7, 4), 12.0, 7
    image_image, text_text, cross = scale * image @ image.T, scale * text @ text.T, scale * image @ text.T
    in_modal = F.mse_loss(image_image, text_text) / scale**2 * count
    cross_modal = F.mse_loss(cross, cross.T) / scale**2 * count
    expected = 0.25 * in_modal + 0.25 * cross_modal
    torch.testing.assert_close(reference.cyclip(image, text, reference_batch=count), expected)
    torch.testing.assert_close(reference.cyclip(image, text) * count / 128, expected)
    torch.testing.assert_close(reference.cyclip(image, text, 1.0, 0.0, count), in_modal)


def test_simclr_is_cross_entropy_without_the_self_pair() -> None:
    first, second, count = random_units(2, 6, 4), random_units(3, 6, 4), 6
    rows = torch.cat([first, second])
    logits = (10.0 * rows @ rows.T).fill_diagonal_(-torch.inf)
    expected = F.cross_entropy(logits, torch.arange(2 * count).roll(count))
    ours = reference.simclr(first, second, torch.tensor(10.0, dtype=torch.float64), torch.arange(count))
    torch.testing.assert_close(ours, expected)


def test_simclr_leaves_twins_out() -> None:
    """With twins known, a doubled batch counts each negative twice and nothing else."""
    first, second, scale = random_units(4, 3, 4), random_units(5, 3, 4), torch.tensor(3.0, dtype=torch.float64)
    rows = torch.cat([first, second])
    logits = scale * rows @ rows.T
    terms = []
    for anchor in range(6):
        negatives = [j for j in range(6) if j % 3 != anchor % 3]
        denominator = logits[anchor, (anchor + 3) % 6].exp() + 2 * logits[anchor, negatives].exp().sum()
        terms.append(denominator.log() - logits[anchor, (anchor + 3) % 6])
    doubled = reference.simclr(first.repeat(2, 1), second.repeat(2, 1), scale, torch.arange(3).repeat(2))
    torch.testing.assert_close(doubled, torch.stack(terms).mean())
