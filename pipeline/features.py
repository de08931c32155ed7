"""What models hand to losses: ``Features``, and the ``Scalar`` by which a loss asks the model for a learned number.

Shapes: b local batch, d embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Scalar:
    """A learned number that a loss brings along: its start, and bounds that hold in every forward pass. Never decayed."""

    init: float
    low: float
    high: float


class Features(NamedTuple):
    """The local rows of one step, as the model returns them.

    A tuple, because ZeRO stage 3 hangs its backward hooks on the tensors it finds in a module's output, and it looks into
    tuples and dicts but not into arbitrary classes.
    """

    embeddings: dict[str, Tensor]
    """Unit rows by domain, fp32 [b, d]: ``image`` and ``text``; row i of each belongs to sample i."""
    scalars: dict[str, Tensor]
    """``scale`` (1 / temperature, bounded) and what the losses asked for; fp32, 0-dim, differentiable if learned."""
    group_b: Tensor
    """int64 [b]. Samples with equal ids show the same thing and are never each other's negatives."""
