"""UniCLIP's multi-positive contrast over all views and texts, its rivals, and SimCLR; see ``reference/uniclip.py``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pipeline.features import Scalar
from pipeline.losses.reductions import Axis, Exponent, Reduction
from pipeline.losses.terms.base import Step, Term, contrast, cosine, paired

Rule = Literal["own", "tie", "drop"]
DOMAINS = ("II", "IT", "TT")


@dataclass(frozen=True)
class UniClip(Term):
    """``reference.mp_nce`` (or ``mil_nce``, ``supcon``) over the image views and texts of a step.

    Temperatures and offsets are learned per domain of a pair (II, IT, TT), bounded, and without weight decay. ``image_image``
    and ``text_text`` say what is done with a domain: parameters of its "own", "tie" to those of IT, or "drop" it.
    """

    name: ClassVar[str] = "uniclip"
    needs: ClassVar[tuple[str, ...]] = ("image", "text")
    form: Literal["mp_nce", "mil_nce", "supcon"] = "mp_nce"
    image_image: Rule = "own"
    text_text: Rule = "tie"
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Of positive pairs in the domains II, IT, TT (mp_nce only)."""
    init_temperature: float = 0.07

    def problem(self, domains: Collection[str]) -> str | None:
        """A domain without positive pairs would learn to switch its negatives off, so "own" needs a second view or text."""
        for setting, rule, name in (("image_image", self.image_image, "image_2"), ("text_text", self.text_text, "text_2")):
            if rule == "own" and name not in domains:
                return f"{setting}: own needs {name}; use tie or drop"
        return super().problem(domains)

    def scalars(self) -> dict[str, Scalar]:
        """Temperatures within [0.01, 1], offsets within [-1, 1]; that of IT is 0, since one of the three is redundant."""
        temperature = Scalar(math.log(self.init_temperature), math.log(0.01), 0.0)
        found = {"uniclip_log_tau_IT": temperature}
        for domain, rule in (("II", self.image_image), ("TT", self.text_text)):
            if rule == "own":
                found |= {f"uniclip_log_tau_{domain}": temperature, f"uniclip_offset_{domain}": Scalar(0.0, -1.0, 1.0)}
        return found

    def _names(self, step: Step) -> list[str]:
        """Domains in the order images, texts."""
        views = [name for name in step.rows if name.split("_")[0] == "image"]
        return views + [name for name in step.rows if name.split("_")[0] == "text"]

    def _domain(self, row: str, column: str) -> str:
        return DOMAINS[row.startswith("text") + column.startswith("text")]

    def _used(self, row: str, column: str) -> bool:
        return {"II": self.image_image, "IT": "own", "TT": self.text_text}[self._domain(row, column)] != "drop"

    def _coefficients(self, step: Step, row: str, column: str) -> tuple[Tensor, Tensor]:
        """1 / tau and -b / tau of a pair of domains."""
        domain = self._domain(row, column)
        rule = {"II": self.image_image, "IT": "own", "TT": self.text_text}[domain]
        inverse_tau = torch.exp(-step.scalars[f"uniclip_log_tau_{domain if rule == 'own' else 'IT'}"])
        offset = step.scalars[f"uniclip_offset_{domain}"] if rule == "own" and domain != "IT" else torch.zeros_like(inverse_tau)
        return inverse_tau, -offset * inverse_tau

    def reductions(self, step: Step) -> list[Reduction]:
        """One per domain: everything of other groups, in all domains at once."""
        over: dict[str, list[tuple[Exponent, Axis]]] = {name: [] for name in self._names(step)}
        for row, column in itertools.combinations_with_replacement(self._names(step), 2):
            if self._used(row, column):
                logits = cosine(row, column, *self._coefficients(step, row, column))
                over[row].append((logits, "columns"))
                if column != row:
                    over[column].append((logits, "rows"))
        return [Reduction("logsumexp", tuple(uses)) for uses in over.values()]

    def loss(self, step: Step, values: list[Tensor]) -> Tensor:
        """Mean over this rank's anchors of all domains."""
        names = self._names(step)
        losses = []
        for name, negative_b in zip(names, values, strict=True):
            others = [other for other in names if other != name and self._used(name, other)]
            coefficients = [self._coefficients(step, name, other) for other in others]
            positive_Pb = torch.stack(
                [
                    scale * paired(step.rows[name], step.rows[other]) + offset
                    for other, (scale, offset) in zip(others, coefficients, strict=True)
                ]
            )
            weights = [self.weights[DOMAINS.index(self._domain(name, other))] for other in others]
            losses.append(self._anchor_loss(positive_Pb, negative_b, positive_Pb.new_tensor(weights)[:, None]))
        return torch.stack(losses).mean()

    def _anchor_loss(self, positive_Pb: Tensor, negative_b: Tensor, weight_P1: Tensor) -> Tensor:
        if self.form == "mp_nce":
            return (weight_P1 * contrast(negative_b, positive_Pb)).mean(dim=0)
        together_b = positive_Pb.logsumexp(dim=0)
        if self.form == "mil_nce":
            return contrast(negative_b, together_b)
        everything_b = torch.logaddexp(together_b, negative_b)
        return (everything_b - positive_Pb).mean(dim=0).masked_fill(negative_b.isneginf(), 0.0)


@dataclass(frozen=True)
class SimClr(Term):
    """``reference.simclr`` of the first two image views, at a fixed temperature: SLIP's in-modal term.

    Of their projections where the model has a projector for it (``model.heads.projector``), as SimCLR and SLIP do.
    """

    name: ClassVar[str] = "simclr"
    needs: ClassVar[tuple[str, ...]] = ("image", "image_2")
    temperature: float = 0.1

    def _views(self, step: Step) -> tuple[str, str]:
        return ("projected_image", "projected_image_2") if "projected_image" in step.rows else ("image", "image_2")

    def reductions(self, step: Step) -> list[Reduction]:
        """Each view against both views of others."""
        scale = step.constant(1 / self.temperature)
        first, second = self._views(step)
        within, between, within_2 = (cosine(*pair, scale) for pair in ((first, first), (first, second), (second, second)))
        return [
            Reduction("logsumexp", ((within, "columns"), (between, "columns"))),
            Reduction("logsumexp", ((between, "rows"), (within_2, "columns"))),
        ]

    def loss(self, step: Step, values: list[Tensor]) -> Tensor:
        """Mean over both views of this rank's samples."""
        first, second = self._views(step)
        positive_b = paired(step.rows[first], step.rows[second]) / self.temperature
        return torch.stack([contrast(negative_b, positive_b) for negative_b in values]).mean()
