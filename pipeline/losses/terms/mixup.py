"""Geodesic mixup: m2-, V-, L- and VL-Mix; see ``reference/mixup.py``.

Lambdas and partners are drawn for the whole batch from (seed, step, term), so every rank draws the same and the result does not
depend on the number of ranks. m2-Mix forms no mixture: ``<x_i, m_j>`` is a combination of two cosines that other terms need as
well, with coefficients that belong to column j. The other three make their mixed rows, which are domains of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pipeline.losses import gather
from pipeline.losses.reductions import AXES, Domain, Exponent, Part, Reduction
from pipeline.losses.reference.mixup import draw_lambda, random_derangement, slerp, slerp_weights
from pipeline.losses.terms.base import Step, Term, contrast, paired


@dataclass(frozen=True)
class M2Mix(Term):
    """``reference.m2_mix``: clean pairs against image-text mixtures of other samples, at a fixed temperature of its own."""

    name: ClassVar[str] = "m2_mix"
    needs: ClassVar[tuple[str, ...]] = ("image", "text")
    alpha: float = 0.5
    temperature: float = 0.07
    per_sample: bool = False

    def reductions(self, step: Step) -> list[Reduction]:
        """Image anchors along columns, text anchors along rows: the candidate's coefficients lie along the other axis."""
        lam_B = draw_lambda(step.generator(self.name), self.alpha, len(step.group_B), self.per_sample)
        image_bd, text_bd = step.rows["image"], step.rows["text"]
        lam_b = lam_B.to(image_bd)[step.own_b]
        weights = slerp_weights(paired(image_bd, text_bd), lam_b)
        image_b1, text_b1 = ((weight_b / self.temperature)[:, None] for weight_b in weights)
        image_1B, text_1B = (gather.gather_rows(weight_b1).T for weight_b1 in (image_b1, text_b1))
        of_images = Exponent((Part("image", "image", image_1B), Part("image", "text", text_1B)))
        of_texts = Exponent((Part("image", "text", image_b1), Part("text", "text", text_b1)))
        return [Reduction("logsumexp", ((of_images, "columns"),)), Reduction("logsumexp", ((of_texts, "rows"),))]

    def loss(self, step: Step, values: list[Tensor]) -> Tensor:
        """The sum of both directions' means, as in the authors' code."""
        positive_b = paired(step.rows["image"], step.rows["text"]) / self.temperature
        image, text = (contrast(negative_b, positive_b).mean() for negative_b in values)
        return image + text


@dataclass(frozen=True)
class _Mixed:
    """The draws of one step, and mixed rows wherever they are needed."""

    lam_B: Tensor
    partner_B: Tensor
    inverse_B: Tensor
    """Whose partner a sample is."""

    def rows(self, all_Bd: Tensor, index_n: Tensor) -> Tensor:
        """slerp(x_i, x_{partner i}, lam_i) for the samples ``index_n`` [n, d]."""
        return slerp(all_Bd[index_n], all_Bd[self.partner_B[index_n]], self.lam_B[index_n])


def _draw(step: Step, term: str, alpha: float, per_sample: bool) -> _Mixed:
    generator, count = step.generator(term), len(step.group_B)
    lam_B = draw_lambda(generator, alpha, count, per_sample).to(step.rows["image"])
    partner_B = random_derangement(generator, count).to(step.group_b.device)
    return _Mixed(lam_B, partner_B, partner_B.argsort())


@dataclass(frozen=True)
class _PartnerMix(Term):
    """What V-, L- and VL-Mix share: mixed anchors in one or both modalities, and two soft targets per row."""

    needs: ClassVar[tuple[str, ...]] = ("image", "text")
    mixed: ClassVar[tuple[str, ...]]
    """Which of the two modalities is mixed."""
    alpha: float = 0.5
    per_sample: bool = False

    def _sides(self) -> tuple[str, str]:
        """Rows and columns; a mixed modality first, so that rows are mixed always."""
        return ("text", "image") if self.mixed == ("text",) else ("image", "text")

    def _side(self, step: Step, draw: _Mixed, name: str, index_n: Tensor) -> Tensor:
        all_Bd = step.gathered(name)
        return draw.rows(all_Bd, index_n) if name in self.mixed else all_Bd[index_n]

    def reductions(self, step: Step) -> list[Reduction]:
        """Both directions of the matrix of (mixed) rows and (mixed) columns."""
        draw = _draw(step, self.name, self.alpha, self.per_sample)
        two_bG = torch.stack([step.group_b, step.group_B[draw.partner_B[step.own_b]]], dim=1)
        names = []
        for name in self._sides():
            mixed = name in self.mixed
            names.append(f"{self.name} {name}")
            step.domains[names[-1]] = Domain(
                self._side(step, draw, name, step.own_b), two_bG if mixed else step.group_b[:, None]
            )
        logits = Exponent((Part(names[0], names[1], step.scalars["scale"]),))
        return [Reduction("logsumexp", ((logits, axis),)) for axis in AXES]

    def loss(self, step: Step, values: list[Tensor]) -> Tensor:
        """Cross-entropy with a sample and its partner as targets, mean over both directions and this rank's anchors."""
        draw, scale = _draw(step, self.name, self.alpha, self.per_sample), step.scalars["scale"]
        rows_name, columns_name = self._sides()
        own_b, partner_b, inverse_b = step.own_b, draw.partner_B[step.own_b], draw.inverse_B[step.own_b]
        row_bd, column_bd = (self._side(step, draw, name, own_b) for name in (rows_name, columns_name))
        own = scale * paired(row_bd, column_bd)
        along_row = scale * paired(row_bd, self._side(step, draw, columns_name, partner_b))
        along_column = scale * paired(self._side(step, draw, rows_name, inverse_b), column_bd)
        other_b = step.group_b != step.group_B[partner_b]
        other_inverse_b = step.group_b != step.group_B[inverse_b]
        share_b, partner_share_b = self._targets(draw.lam_B[own_b], other_b)
        _, inverse_share_b = self._targets(draw.lam_B[inverse_b], other_inverse_b)
        by_row = _soft(values[0], own, share_b, along_row, partner_share_b, other_b)
        by_column = _soft(values[1], own, share_b, along_column, inverse_share_b, other_inverse_b)
        return (by_row + by_column) / 2

    def _targets(self, lam_b: Tensor, other_b: Tensor) -> tuple[Tensor, Tensor]:
        """Target of the sample itself, and of the partner where it shows something else."""
        share_b = torch.where(other_b, lam_b, 1.0)
        return share_b, 1 - share_b


def _soft(
    negative_b: Tensor, own_b: Tensor, share_b: Tensor, other_b: Tensor, other_share_b: Tensor, is_other_b: Tensor
) -> Tensor:
    """Mean of ``-sum target log softmax`` over two targets and the negatives."""
    candidate_b = torch.where(is_other_b, other_b, -torch.inf)
    log_total_b = torch.stack([negative_b, own_b, candidate_b]).logsumexp(dim=0)
    return (share_b * (log_total_b - own_b) + other_share_b * (log_total_b - other_b)).mean()


@dataclass(frozen=True)
class VMix(_PartnerMix):
    """``reference.v_mix``: mixed images against clean texts."""

    name: ClassVar[str] = "v_mix"
    mixed: ClassVar[tuple[str, ...]] = ("image",)


@dataclass(frozen=True)
class LMix(_PartnerMix):
    """``reference.l_mix``: clean images against mixed texts."""

    name: ClassVar[str] = "l_mix"
    mixed: ClassVar[tuple[str, ...]] = ("text",)


@dataclass(frozen=True)
class VLMix(_PartnerMix):
    """``reference.vl_mix``: mixed images against mixed texts, each target counting in full."""

    name: ClassVar[str] = "vl_mix"
    mixed: ClassVar[tuple[str, ...]] = ("image", "text")

    def _targets(self, lam_b: Tensor, other_b: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(lam_b), other_b.to(lam_b.dtype)
