"""CoCa's captioning loss; see ``reference/clip.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.losses import gather
from pipeline.losses.terms.base import Step, Term

PADDING = -100
"""Label of a position that predicts nothing."""


@dataclass(frozen=True)
class Captioning(Term):
    """``reference.captioning`` of a model that also writes captions: mean over the tokens of the whole batch.

    Not of each rank's mean, in which the tokens of ranks with short captions would count more.
    """

    name: ClassVar[str] = "captioning"
    needs: ClassVar[tuple[str, ...]] = ("caption_logits", "caption_labels")

    def loss(self, step: Step, values: list[Tensor]) -> Tensor:
        """This rank's tokens over the number of all ranks' tokens, times the number of ranks, since the engine averages."""
        logits_bLC, label_bL = step.extras["caption_logits"], step.extras["caption_labels"]
        count = gather.reduce_sum((label_bL != PADDING).sum()).clamp_min(1)
        logits_nC = logits_bLC.flatten(0, 1).to(torch.promote_types(logits_bLC.dtype, torch.float32))
        total = F.cross_entropy(logits_nC, label_bL.flatten(), ignore_index=PADDING, reduction="sum")
        return gather.world_size() * total / count
