"""Geodesic mixup: m2-, V-, L- and VL-Mix; see ``reference/mixup.py``.

Lambdas and partners are drawn for the whole batch from (seed, step, term), so every rank draws the same and the result does not
depend on the number of ranks. No mixture is formed for the sake of negatives: ``<x_i, m_j>`` is a combination of two cosines
that other terms need as well. In m2-Mix these are of two pairs of domains, with coefficients that belong to column j. In the
other three they are two rows (columns) of one pair, the sample's and its partner's, which are drawn to lie in one tile. Where
they cannot (a rank's share of the batch does not consist of whole blocks), mixed rows are formed, and are domains of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pipeline.losses import gather
from pipeline.losses.reductions import AXES, Domain, Exponent, Mixture, Part, Reduction
from pipeline.losses.reference.mixup import derangement_block, draw_lambda, random_derangement, slerp, slerp_weights
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


class _Draw:
    """The lambdas and partners of one step, and mixed rows of a rank's samples."""

    def __init__(self, step: Step, term: str, alpha: float, per_sample: bool) -> None:
        generator, count = step.generator(term), len(step.group_B)
        self._step, self.block = step, derangement_block(count)
        self.lam_B = draw_lambda(generator, alpha, count, per_sample).to(next(iter(step.rows.values())))
        self.partner_B = random_derangement(generator, count, self.block).to(step.group_b.device)
        self.inverse_B = self.partner_B.argsort()
        """Whose partner a sample is."""
        self.in_one_tile = self.block <= 64 and len(step.group_b) % self.block == 0

    def rows(self, name: str, index_n: Tensor, mixed: bool) -> Tensor:
        """Rows of the samples ``index_n`` [n, d], or ``slerp(x_i, x_{partner i}, lam_i)`` of them."""
        # Partners of a rank's samples are the rank's own where blocks are whole; else all ranks' rows are needed.
        pool_nd, start = (self._step.rows[name], self._step.own_b[0]) if self.in_one_tile else (self._step.gathered(name), 0)
        own_nd = pool_nd[index_n - start]
        return slerp(own_nd, pool_nd[self.partner_B[index_n] - start], self.lam_B[index_n]) if mixed else own_nd

    def domain(self, name: str, as_column: bool) -> Domain | Mixture:
        """The mixed rows as the tile engine takes them."""
        step, own_b = self._step, self._step.own_b
        two_bG = torch.stack([step.group_b, step.group_B[self.partner_B[own_b]]], dim=1)
        if not self.in_one_tile:
            return Domain(self.rows(name, own_b, mixed=True), two_bG)
        ends = (self.rows(name, index_b, mixed=False) for index_b in (own_b, self.partner_B[own_b]))
        weights_b2 = torch.stack(slerp_weights(paired(*ends), self.lam_B[own_b]), dim=1)
        return Mixture(name, gather.gather_rows(weights_b2) if as_column else weights_b2, self.partner_B, self.block, two_bG)


@dataclass(frozen=True)
class _PartnerMix(Term):
    """What V-, L- and VL-Mix share: mixed anchors in one or both modalities, and two soft targets per row."""

    needs: ClassVar[tuple[str, ...]] = ("image", "text")
    mixed: ClassVar[tuple[str, ...]]
    """Which of the two modalities is mixed."""
    alpha: float = 0.5
    per_sample: bool = False

    def _sides(self) -> tuple[str, str]:
        """Whose anchors come first; a mixed modality does."""
        return ("text", "image") if self.mixed == ("text",) else ("image", "text")

    def reductions(self, step: Step) -> list[Reduction]:
        """Both directions of the matrix of (mixed) rows and (mixed) columns."""
        draw = _Draw(step, self.name, self.alpha, self.per_sample)
        for name in self.mixed:
            step.domains[f"{self.name} {name}"] = draw.domain(name, as_column=name == "text")
        # Images are the rows of the product, as in the other terms, which then share it.
        image, text = (f"{self.name} {name}" if name in self.mixed else name for name in ("image", "text"))
        logits = Exponent((Part(image, text, step.scalars["scale"]),))
        return [Reduction("logsumexp", ((logits, axis),)) for axis in (AXES if self._sides()[0] == "image" else AXES[::-1])]

    def loss(self, step: Step, values: list[Tensor]) -> Tensor:
        """Cross-entropy with a sample and its partner as targets, mean over both directions and this rank's anchors."""
        draw, scale = _Draw(step, self.name, self.alpha, self.per_sample), step.scalars["scale"]
        rows_name, columns_name = self._sides()
        own_b, partner_b, inverse_b = step.own_b, draw.partner_B[step.own_b], draw.inverse_B[step.own_b]

        def rows(name: str, index_b: Tensor) -> Tensor:
            return draw.rows(name, index_b, mixed=name in self.mixed)

        row_bd, column_bd = rows(rows_name, own_b), rows(columns_name, own_b)
        own = scale * paired(row_bd, column_bd)
        along_row = scale * paired(row_bd, rows(columns_name, partner_b))
        along_column = scale * paired(rows(rows_name, inverse_b), column_bd)
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
