"""Which parameters the optimizer decays: matrices and tables do; biases, norms, and the temperature do not."""

from __future__ import annotations

from typing import Any

from torch import nn

from pipeline.config import OptimConfig


def parameter_groups(model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """Optimizer groups named ``decay`` and ``no_decay`` over the trainable parameters; empty groups are left out."""
    groups: dict[str, dict[str, Any]] = {
        "decay": {"name": "decay", "params": [], "weight_decay": optim.weight_decay},
        "no_decay": {"name": "no_decay", "params": [], "weight_decay": 0.0},
    }
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups["decay" if parameter.ndim >= 2 else "no_decay"]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]
