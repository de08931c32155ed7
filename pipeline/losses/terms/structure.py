"""Latent modality structures and CyCLIP: in-modal contrast, feature separation, Brownian bridge, geometric consistency.

See ``reference/structure.py`` and ``reference/relatives.py``. Consistency terms take the route over d x d Gram matrices: three
matrices are summed over ranks, no embedding is gathered, and the cost does not grow with the square of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.losses import gather
from pipeline.losses.reductions import Reduction
from pipeline.losses.terms.base import Step, Term, contrast, cosine, global_log_mean_exp, paired
from pipeline.losses.terms.gap import potential

REFERENCE_BATCH = 128.0
"""The batch at which the published consistency weights hold; the terms are as strong at every other one."""


def _in_modal(step: Step, row: str, column: str) -> Reduction:
    return Reduction("logsumexp", ((cosine(row, column, step.scalars["scale"]), "columns"),))


def _in_modal_loss(step: Step, row: str, column: str, negative_b: Tensor) -> Tensor:
    return contrast(negative_b, step.scalars["scale"] * paired(step.rows[row], step.rows[column])).mean()


@dataclass(frozen=True)
class InModal(Term):
    """``reference.in_modal_info_nce`` of images and their second view, and of texts where they have one; the mean of both."""

    name: ClassVar[str] = "in_modal"
    needs: ClassVar[tuple[str, ...]] = ("image", "image_2")

    def _pairs(self, step: Step) -> list[tuple[str, str]]:
        return [("image", "image_2")] + ([("text", "text_2")] if "text_2" in step.rows else [])

    def reductions(self, step: Step) -> list[Reduction]:
        """Anchors against augmented keys of others."""
        return [_in_modal(step, *pair) for pair in self._pairs(step)]

    def loss(self, step: Step, values: list[Tensor]) -> Tensor:
        """Mean over modalities and this rank's samples."""
        losses = [_in_modal_loss(step, *pair, value_b) for pair, value_b in zip(self._pairs(step), values, strict=True)]
        return torch.stack(losses).mean()


@dataclass(frozen=True)
class Separation(Term):
    """Deep feature separation: ``orthogonality + independent_contrast + independent_uniformity``, weights 1 as in the paper."""

    name: ClassVar[str] = "separation"
    needs: ClassVar[tuple[str, ...]] = ("image", "text", "independent_image", "independent_text", "independent_image_2")
    t: float = 2.0

    def _pairs(self, step: Step) -> list[tuple[str, str]]:
        pairs = [("independent_image", "independent_image_2")]
        return pairs + ([("independent_text", "independent_text_2")] if "independent_text_2" in step.rows else [])

    def reductions(self, step: Step) -> list[Reduction]:
        """In-modal contrast, then the two potentials of the uniformity."""
        between = [_in_modal(step, *pair) for pair in self._pairs(step)]
        return between + [potential(step, name, name, self.t) for name in ("independent_image", "independent_text")]

    def loss(self, step: Step, values: list[Tensor]) -> Tensor:
        """Local means plus the global log-mean over both modalities' pairs."""
        rows, pairs = step.rows, self._pairs(step)
        own = (
            paired(rows["image"], rows["independent_image"]).square() + paired(rows["text"], rows["independent_text"]).square()
        )
        between = [_in_modal_loss(step, *pair, value_b) for pair, value_b in zip(pairs, values, strict=False)]
        uniformity = global_log_mean_exp(torch.cat(values[len(pairs) :]), 2 * step.num_pairs)
        return own.mean() + torch.stack(between).sum() + uniformity


@dataclass(frozen=True)
class BrownianBridge(Term):
    """``reference.brownian_bridge``: the second view lies near the point a share t of the way from text to image."""

    name: ClassVar[str] = "brownian_bridge"
    needs: ClassVar[tuple[str, ...]] = ("image", "text", "image_2")
    t: float = 0.25

    def loss(self, step: Step, values: list[Tensor]) -> Tensor:
        """Mean over this rank's samples."""
        mean_bd = F.normalize(self.t * step.rows["image"] + (1 - self.t) * step.rows["text"], dim=1, eps=1e-6)
        return (step.rows["image_2"] - mean_bd).square().sum(dim=1).mean()


def _gram(x_bd: Tensor, y_bd: Tensor) -> Tensor:
    """x^T y over all ranks' rows [d, d], in float64: the consistencies are small differences of large sums of squares."""
    return gather.all_reduce_sum(x_bd.double().T @ y_bd.double())


def intra(x_bd: Tensor, y_bd: Tensor) -> Tensor:
    """``sum_jk (<x_j, x_k> - <y_j, y_k>)^2`` over the global batch."""
    return _gram(x_bd, x_bd).square().sum() + _gram(y_bd, y_bd).square().sum() - 2 * _gram(x_bd, y_bd).square().sum()


def cross(x_bd: Tensor, y_bd: Tensor) -> Tensor:
    """``sum_jk (<x_j, y_k> - <x_k, y_j>)^2`` over the global batch."""
    between_dd = _gram(x_bd, y_bd)
    return 2 * (_gram(x_bd, x_bd) * _gram(y_bd, y_bd)).sum() - 2 * (between_dd * between_dd.T).sum()


def _strength(step: Step, total: Tensor) -> Tensor:
    return (total * REFERENCE_BATCH / len(step.group_B) ** 2).to(step.rows["image"].dtype)


@dataclass(frozen=True)
class GeometricConsistency(Term):
    """``reference.geometric_consistency``, and ``augmented_consistency`` where there is a second view."""

    name: ClassVar[str] = "geometric_consistency"
    needs: ClassVar[tuple[str, ...]] = ("image", "text")

    def loss(self, step: Step, values: list[Tensor]) -> Tensor:
        """The global value, equal on all ranks but for the paired part, a local mean."""
        rows = step.rows
        total = cross(rows["image"], rows["text"]) + intra(rows["image"], rows["text"])
        if "image_2" not in rows:
            return _strength(step, total)
        total = total + intra(rows["image"], rows["image_2"])
        if "text_2" not in rows:
            return _strength(step, total)
        total = total + intra(rows["text"], rows["text_2"])
        drift_b = paired(rows["image"], rows["text"]) - paired(rows["image_2"], rows["text_2"])
        return _strength(step, total) + drift_b.square().mean()


@dataclass(frozen=True)
class CyClip(Term):
    """``reference.cyclip``: in-modal and cross-modal consistency of image and text, with CyCLIP's weights."""

    name: ClassVar[str] = "cyclip"
    needs: ClassVar[tuple[str, ...]] = ("image", "text")
    in_modal_weight: float = 0.25
    cross_modal_weight: float = 0.25

    def loss(self, step: Step, values: list[Tensor]) -> Tensor:
        """The global value, equal on all ranks."""
        image_bd, text_bd = step.rows["image"], step.rows["text"]
        return _strength(
            step, self.in_modal_weight * intra(image_bd, text_bd) + self.cross_modal_weight * cross(image_bd, text_bd)
        )
