"""Alignment, uniformity, cross-modal uniformity; see ``reference/gap.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pipeline.losses.reductions import Reduction
from pipeline.losses.terms.base import Step, Term, cosine, global_log_mean_exp


def potential(step: Step, row: str, column: str, t: float) -> Reduction:
    """``log sum_j exp(-t ||row_i - column_j||^2)`` over negatives, [b]."""
    return Reduction("logsumexp", ((cosine(row, column, step.constant(2 * t), step.constant(-2 * t)), "columns"),))


@dataclass(frozen=True)
class Alignment(Term):
    """``reference.alignment``: mean squared distance of the pairs."""

    name: ClassVar[str] = "alignment"
    needs: ClassVar[tuple[str, ...]] = ("image", "text")

    def loss(self, step: Step, values: list[Tensor]) -> Tensor:
        """Mean over this rank's pairs."""
        return (step.rows["image"] - step.rows["text"]).square().sum(dim=1).mean()


@dataclass(frozen=True)
class Uniformity(Term):
    """Half of ``reference.uniformity`` of the images plus half of that of the texts."""

    name: ClassVar[str] = "uniformity"
    needs: ClassVar[tuple[str, ...]] = ("image", "text")
    t: float = 2.0

    def reductions(self, step: Step) -> list[Reduction]:
        """Each modality against itself."""
        return [potential(step, name, name, self.t) for name in self.needs]

    def loss(self, step: Step, values: list[Tensor]) -> Tensor:
        """The global value, equal on all ranks."""
        image, text = (global_log_mean_exp(value_b, step.num_pairs) for value_b in values)
        return (image + text) / 2


@dataclass(frozen=True)
class CrossUniformity(Term):
    """``reference.cross_uniformity`` of images and texts."""

    name: ClassVar[str] = "cross_uniformity"
    needs: ClassVar[tuple[str, ...]] = ("image", "text")
    t: float = 2.0

    def reductions(self, step: Step) -> list[Reduction]:
        """Images against texts of others."""
        return [potential(step, "image", "text", self.t)]

    def loss(self, step: Step, values: list[Tensor]) -> Tensor:
        """The global value, equal on all ranks."""
        return global_log_mean_exp(values[0], step.num_pairs)
