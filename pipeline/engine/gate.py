"""The last door before the weights: a step whose numbers are bad leaves weights and optimizer state bitwise as they were.

    gate = Gate(adamw, deepspeed_optimizer, device)
    gate.arm(max_norm, veto)       # veto: a bool tensor on the device, something is wrong already (a loss that is not finite)
    deepspeed_engine.step()        # the optimizer asks the gate
    gate.skipped                   # 1.0 or 0.0, on the device

The decision is a tensor and stays one: torch's fused AdamW takes it as ``found_inf`` and does nothing where it is 1, so no step
waits for the device. Every rank decides alike, because both numbers it rests on are reduced over ranks: the mean loss and the
global gradient norm, which is not finite as soon as one gradient of one rank is not. Zeroed gradients would not do: AdamW would
still decay the weights and age its moments. An optimizer without ``found_inf`` (DeepSpeed's for offloading) is simply not
called; that costs one look at the device per step.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.zero import stage3, stage_1_and_2
from torch import Tensor

for _module in (stage_1_and_2, stage3):
    # There DeepSpeed asks whether the norm is finite, and waits for the answer, in every step. The gate answers on the device.
    _module.is_invalid_grad_norm = lambda norm: False


class Gate:
    """Decides, between the gradient norm and the update, whether a step happens."""

    def __init__(self, optimizer: Any, wrapper: Any, device: torch.device) -> None:
        """Stand before ``optimizer``.

        Args:
            optimizer: the torch optimizer that moves the weights.
            wrapper: DeepSpeed's optimizer around it, or the same one where there is none (stage 0 in fp32 or under autocast).
        """
        self._wrapper, self._device = wrapper, device
        self._max_norm: float | None = None
        self._veto: Tensor | None = None
        self._norm: Tensor | None = None
        self._decided: Tensor | None = None
        self.skipped = torch.zeros((), device=device)
        """1.0 where the last step changed nothing, for whatever reason; else 0.0."""
        self.clip_norm: float | None = None
        """Gradients are scaled down to this norm where the optimizer takes them; None where somebody else clips."""
        self.searching = False
        """The last step was skipped because fp16's loss scale was too high and went down: usual, and no sign of bad numbers."""
        self.can_clip = bool(getattr(optimizer, "_step_supports_amp_scaling", False))
        """Whether the optimizer takes a factor on its gradients."""
        if self.can_clip:
            optimizer.register_step_pre_hook(self._before_step)
        else:
            update = optimizer.step
            optimizer.step = lambda *args, **kwargs: None if bool(self._decide()) else update(*args, **kwargs)
        scaler: Any = getattr(wrapper, "loss_scaler", None)
        if getattr(scaler, "raise_error_at_min_scale", False):
            scaler.raise_error_at_min_scale = False  # an overflow at the lowest scale is a bad step, not a crash on one rank
        if hasattr(wrapper, "check_grad_overflow") and wrapper.dtype != torch.float16:
            wrapper.check_grad_overflow = False  # asks every gradient, and waits; the norm knows

    def arm(self, max_norm: float | None, veto: Tensor | None, norm: Tensor | None = None) -> None:
        """Prepare for one step.

        Args:
            max_norm: a gradient norm above it skips the step.
            veto: 0-dim bool on the device, equal on all ranks; True skips the step. None is False.
            norm: the gradient norm where no wrapper computes it.
        """
        self._max_norm, self._veto, self._norm, self._decided = max_norm, veto, norm, None
        self._scale_before, self._floor = self._scale()

    def settle(self) -> Tensor:
        """After the step: the global gradient norm before clipping, fp32 0-dim on the device; infinite if it is not finite."""
        if getattr(self._wrapper, "overflow", False):  # DeepSpeed found it in fp16 gradients and returned before the optimizer
            self.searching = self._scale_before > self._floor
            self.skipped = torch.ones((), device=self._device)
            return torch.full((), float("inf"), device=self._device)
        self.searching = False
        self.skipped = self._decide()
        return self._read_norm().nan_to_num(nan=float("inf"), posinf=float("inf"))

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        optimizer.found_inf = self._decide()
        if self.clip_norm is not None:  # within the update itself: no further pass over the gradients
            optimizer.grad_scale = ((self._read_norm() + 1e-6) / self.clip_norm).clamp(min=1.0)

    def _decide(self) -> Tensor:
        if self._decided is None:
            norm = self._read_norm()
            bad = ~norm.isfinite()
            if self._veto is not None:
                bad = bad | self._veto
            if self._max_norm is not None:
                bad = bad | (norm > self._max_norm)
            self._decided = bad.float()
        return self._decided

    def _read_norm(self) -> Tensor:
        norm = self._wrapper._global_grad_norm if self._norm is None else self._norm
        return norm.float() if isinstance(norm, Tensor) else torch.full((), float(norm), device=self._device)

    def _scale(self) -> tuple[float, float]:
        """fp16's loss scale and the lowest it can go; equal where it does not adapt."""
        wrapper = self._wrapper
        scaler = getattr(wrapper, "loss_scale_config", None) or getattr(wrapper, "loss_scaler", None)
        scale = float(getattr(scaler, "cur_scale", 1.0))
        return scale, float(getattr(scaler, "min_scale", getattr(scaler, "min_loss_scale", scale)))
