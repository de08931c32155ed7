"""Small features and the loss of them: where the tests of the weighted sum and of bad input begin."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import ObjectiveConfig
from pipeline.features import Features
from pipeline.losses import Objective
from pipeline.losses.objective import Losses
from pipeline.losses.terms import TERMS
from tests import tiny

VIEWS = ("image", "text")
SINGLE_VIEW: tiny.Terms = {
    name: ({"image_image": "tie", "text_text": "tie"} if name == "uniclip" else {})
    for name in sorted(TERMS)
    if set(TERMS[name].needs) <= {"image", "text"}
}
"""Every term that one view and one caption allow."""


def features(size: int = 8, group: Tensor | None = None, dtype: torch.dtype = torch.float32, **scalars: float) -> Features:
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randn(size, 6, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]
    embeddings = {name: F.normalize(r, dim=1).requires_grad_() for name, r in zip(("image", "text"), rows, strict=True)}
    numbers = {"scale": 10.0, "siglip_bias": -10.0, "uniclip_log_tau_IT": math.log(0.07), **scalars}
    return Features(
        embeddings,
        {k: torch.tensor(v, dtype=dtype) for k, v in numbers.items()},
        torch.arange(size) if group is None else group,
    )


def losses(terms: tiny.Terms, given: Features, **at: Any) -> Losses:
    return Objective(ObjectiveConfig(terms=terms), seed=0, total_steps=10)(
        given, step=at.get("step", 0), epoch=at.get("epoch", 0)
    )
