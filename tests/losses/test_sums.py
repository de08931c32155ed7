"""The pointwise functions of the engine are as exact as fp32 allows, where the quick way round would not be."""

from __future__ import annotations

import pytest
import torch

from pipeline.losses.sums import softplus
from pipeline.losses.tile import exp_


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_softplus_keeps_its_relative_precision_at_both_ends(dtype: torch.dtype, limit: float) -> None:
    """At -20 the value is 2e-9, which log(1 + e^x) loses altogether; SigLIP sums many of these."""
    e = torch.cat([torch.linspace(-80, 80, 4001), torch.tensor([0.0, -1e-6, 1e-6, -16.7])]).to(dtype)[None]
    truth = torch.logaddexp(e.double(), torch.zeros_like(e, dtype=torch.float64))
    truth = torch.where(e < -30, e.double().exp(), truth)  # there logaddexp itself has no digits left in float64
    assert float(((softplus(e) - truth) / truth).abs().max()) < limit * (1 + float(e.abs().max()))
    assert softplus(torch.tensor([[-torch.inf, torch.inf]])).tolist() == [[0.0, torch.inf]]


def test_exponentials_by_powers_of_two() -> None:
    e = torch.linspace(-40, 40, 8001)
    truth = e.double().exp()
    assert float(((exp_(e.clone()) - truth) / truth).abs().max()) < 3e-6
    assert exp_(torch.tensor([-torch.inf, 0.0])).tolist() == [0.0, 1.0]
