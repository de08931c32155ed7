"""``Features``: what models hand to losses, everything that a loss term may read of one step.

Shapes: b local batch, d embedding width.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Features(NamedTuple):
    """The local rows of one step, as the model returns them.

    A tuple, because ZeRO stage 3 hangs its backward hooks on the tensors it finds in a module's output, and it looks into
    tuples but not into arbitrary classes.
    """

    image_bd: Tensor
    """L2-normalised image embeddings, fp32 [b, d]."""
    text_bd: Tensor
    """L2-normalised text embeddings, fp32 [b, d]; row i belongs to image row i."""
    scale: Tensor
    """Bounded logit scale, 1 / temperature; fp32, 0-dim, differentiable if it is learned."""
    group_b: Tensor
    """int64 [b]. Samples with equal ids show the same thing and are never each other's negatives."""
