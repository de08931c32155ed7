"""What a step hands to models and losses: ``Inputs`` for the towers, ``Features`` from them, ``Scalar`` for learned numbers.

Shapes: V image views, b local batch, C = 3 channels, H = W pixels, K numbers that say what was done to a view, L tokens,
d embedding width.
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


class Inputs(NamedTuple):
    """The local samples of one step, ready for the towers."""

    image_VbCHW: Tensor
    """Normalised pixels of V views of each sample, fp32; view 0 is the one that plain CLIP trains on."""
    tokens_bL: Tensor
    """Token ids, int64."""
    group_b: Tensor
    """int64; see ``Features``."""
    view_params_VbK: Tensor
    """What was done to make each view, fp32; all zeros is nothing at all."""
    length_b: Tensor | None = None
    """Tokens of each caption without its padding, int64 in host memory, so that the text tower can leave padding out without
    asking the device; None where nobody knows."""

    def chunk(self, count: int) -> list[Inputs]:
        """The samples in ``count`` equal parts, in order; b divides evenly."""
        parts = (
            self.image_VbCHW.chunk(count, dim=1),
            self.tokens_bL.chunk(count),
            self.group_b.chunk(count),
            self.view_params_VbK.chunk(count, dim=1),
            [None] * count if self.length_b is None else self.length_b.chunk(count),
        )
        return [Inputs(*part) for part in zip(*parts, strict=True)]


def view_name(view: int) -> str:
    """Domain of image view ``view`` (from 0): ``image``, ``image_2``, ``image_3``, ..."""
    return "image" if view == 0 else f"image_{view + 1}"


class Features(NamedTuple):
    """The local rows of one step, as the model returns them.

    A tuple, because ZeRO stage 3 hangs its backward hooks on the tensors it finds in a module's output, and it looks into
    tuples and dicts but not into arbitrary classes.
    """

    embeddings: dict[str, Tensor]
    """Unit rows by domain, fp32 [b, d]: ``image``, ``text``, further views as ``view_name`` says; row i belongs to sample i."""
    scalars: dict[str, Tensor]
    """``scale`` (1 / temperature, bounded) and what the losses asked for; fp32, 0-dim, differentiable if learned."""
    group_b: Tensor
    """int64 [b]. Samples with equal ids show the same thing and are never each other's negatives."""
    extras: dict[str, Tensor] = {}  # never written to
    """What else a model makes of each sample, first axis b. A captioning model: ``caption_logits`` fp32 [b, L, vocabulary] and
    ``caption_labels`` int64 [b, L], the token that position l should predict, -100 for padding."""
