"""The learned temperature, as a logit scale (1 / temperature) that is bounded where it is used.

The usual recipe clamps the parameter after each optimizer step. Under ZeRO that clamp is lost: the optimizer owns an fp32
master copy and overwrites the clamped value at the next step. So the bound lives in the forward pass.

A plain ``clamp`` there has zero gradient outside its range, and a parameter that once left could never return. ``_Bound``
passes the gradient whenever a descent step along it moves the parameter back towards the range.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.features import Scalar


class _Bound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(value > high, value < low)
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        above, below = ctx.saved_tensors
        # Descent subtracts the gradient: above the range only a positive one leads back, below it only a negative one.
        outward = (above & (grad < 0)) | (below & (grad > 0))
        return grad.masked_fill(outward, 0.0), None, None


class BoundedScalar(nn.Module):
    """One learned number that a loss asked for, within its bounds in every forward pass; a 0-dim fp32 tensor."""

    def __init__(self, scalar: Scalar) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([scalar.init]))
        self.low, self.high = scalar.low, scalar.high

    def forward(self) -> Tensor:
        """The bounded number."""
        bounded: Tensor = _Bound.apply(self.value.float(), self.low, self.high)
        return bounded.squeeze(0)


class LogitScale(nn.Module):
    """``exp`` of one learned number, within ``[1, 1 / min_temperature]`` in every forward pass.

    The parameter has shape [1]: DeepSpeed cannot broadcast 0-dim parameters. Its forward returns a 0-dim fp32 tensor.
    """

    def __init__(self, init_temperature: float, min_temperature: float, learn: bool) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([-math.log(init_temperature)]), requires_grad=learn)
        # One fp32 step below ln(1 / min_temperature): exp() of it cannot round past the bound.
        self.high = float(np.nextafter(np.float32(-math.log(min_temperature)), np.float32(0)))

    def forward(self) -> Tensor:
        """The scale as a 0-dim fp32 tensor, differentiable if it is learned."""
        bounded: Tensor = _Bound.apply(self.log_scale.float(), 0.0, self.high)
        return bounded.exp().squeeze(0)
