"""Terms of related methods: CyCLIP's two consistencies and the in-modal contrast of SimCLR and SLIP.

Shapes: B global batch, d embedding width.

Example:
    >>> view_Bd = torch.eye(2)
    >>> round(simclr(view_Bd, view_Bd, torch.tensor(1.0), torch.arange(2)).item(), 4)    # log(1 + 2 e^-1)
    0.5514
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.losses.reference.masks import apart, contrast
from pipeline.losses.reference.structure import REFERENCE_BATCH, cross_consistency, intra_consistency


def cyclip(
    image_Bd: Tensor,
    text_Bd: Tensor,
    in_modal_weight: float = 0.25,
    cross_modal_weight: float = 0.25,
    reference_batch: float = REFERENCE_BATCH,
) -> Tensor:
    """The in-modal and cross-modal consistency that CyCLIP (Goel et al. 2022) adds to the CLIP loss, with its weights.

    ``in_modal_weight * intra_consistency + cross_modal_weight * cross_consistency``, see there for shapes and limits. The
    authors' code divides the double sums by B once, at a global batch of 128; here that strength holds at every batch, and
    ``reference_batch=B`` gives their formula.
    """
    in_modal = intra_consistency(image_Bd, text_Bd, reference_batch)
    return in_modal_weight * in_modal + cross_modal_weight * cross_consistency(image_Bd, text_Bd, reference_batch)


def simclr(first_Bd: Tensor, second_Bd: Tensor, scale: Tensor, group_B: Tensor) -> Tensor:
    """NT-Xent of SimCLR (Chen et al. 2020, equation 1), as in SLIP (Mu et al. 2022): two views of each image.

    Each of the 2B rows is an anchor; its positive is the sample's other view, its negatives both views of all samples of
    other groups. SLIP adds it with weight 1 at temperature 0.1, on a head of its own.

    Args:
        first_Bd, second_Bd: unit rows [B, d] of the two views.
        scale: 0-dim, 1 / temperature.
        group_B: int64 [B].

    Returns:
        0-dim loss, the mean over the 2B anchors, >= 0; 0 where nobody has a negative.
    """
    row_Nd = torch.cat([first_Bd, second_Bd])
    positive_B = scale * (first_Bd * second_Bd).sum(dim=1)
    return contrast(positive_B.repeat(2), scale * row_Nd @ row_Nd.T, apart(group_B.repeat(2))).mean()
