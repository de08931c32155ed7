"""CLIP's InfoNCE and SigLIP's pairwise sigmoid loss; see ``reference/clip.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.features import Scalar
from pipeline.losses.reductions import AXES, Kind, Reduction
from pipeline.losses.terms.base import Step, Term, contrast, cosine, paired


@dataclass(frozen=True)
class Clip(Term):
    """``reference.info_nce`` of image and text at the learned temperature."""

    name: ClassVar[str] = "clip"
    needs: ClassVar[tuple[str, ...]] = ("image", "text")
    label_smoothing: float = 0.0

    def reductions(self, step: Step) -> list[Reduction]:
        """Both directions of one matrix; with smoothing also the sums of its logits."""
        logits = cosine("image", "text", step.scalars["scale"])
        kinds: list[Kind] = ["logsumexp", "sum"] if self.label_smoothing else ["logsumexp"]
        return [Reduction(kind, ((logits, axis),)) for kind in kinds for axis in AXES]

    def loss(self, step: Step, values: list[Tensor]) -> Tensor:
        """Mean over this rank's images and texts."""
        positive_b = step.scalars["scale"] * paired(step.rows["image"], step.rows["text"])
        loss_2b = torch.stack([contrast(negative_b, positive_b) for negative_b in values[:2]])
        if self.label_smoothing:
            # -log p of the pair is loss; -mean log p over candidates is log of the denominator less the mean logit.
            sums_2b = torch.stack(values[2:]) + positive_b
            uniform_2b = loss_2b + positive_b - sums_2b / (1 + step.num_negatives_b)
            loss_2b = (1 - self.label_smoothing) * loss_2b + self.label_smoothing * uniform_2b
        return loss_2b.mean()


@dataclass(frozen=True)
class SigLip(Term):
    """``reference.siglip`` at the learned temperature, with a learned bias."""

    name: ClassVar[str] = "siglip"
    needs: ClassVar[tuple[str, ...]] = ("image", "text")
    init_bias: float = -10.0

    def scalars(self) -> dict[str, Scalar]:
        """The bias of the logits."""
        return {"siglip_bias": Scalar(self.init_bias, -100.0, 100.0)}

    def reductions(self, step: Step) -> list[Reduction]:
        """Sum of softplus over negatives, each pair once."""
        logits = cosine("image", "text", step.scalars["scale"], step.scalars["siglip_bias"])
        return [Reduction("softplus", ((logits, "columns"),))]

    def loss(self, step: Step, values: list[Tensor]) -> Tensor:
        """Sum over each image's pairs, mean over images."""
        positive_b = step.scalars["scale"] * paired(step.rows["image"], step.rows["text"]) + step.scalars["siglip_bias"]
        return (values[0] - F.logsigmoid(positive_b)).mean()
