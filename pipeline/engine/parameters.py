"""Optimizer groups: which parameters decay, and how fast each learns.

Matrices and tables decay; biases, norms, and the temperature do not. A model may say by which factor some of its parameters
learn slower (``model.lr_scales``: parameter name -> factor, see ``models/tuning.py``); ``Engine.step(lr)`` gives each group
``lr * lr_scale``.

    groups = parameter_groups(model, cfg.optim)      # the log shows them where a run does more than the usual two:

    group            lr x   decay  tensors  parameters
    decay               1     0.2       50  86,192,640
    no_decay            1       0      102     121,345
    decay-x0.1        0.1     0.2        1     393,216
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from pipeline.config import OptimConfig

_logger = logging.getLogger("unisphere")


def parameter_groups(model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """Optimizer groups over the trainable parameters: ``decay`` and ``no_decay``, and a pair of them per factor other than 1.

    Each group has ``name``, ``params``, ``weight_decay``, ``lr_scale``. Locked parameters and other factors than 1 are reason
    enough for the table in the log. The order depends on the model alone, as a resumed
    optimizer needs: factors from the largest to the smallest, parameters in the model's order.
    """
    scales: Mapping[str, float] = getattr(model, "lr_scales", {})
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale, decays = scales.get(name, 1.0), parameter.ndim >= 2
        if (scale, decays) not in groups:
            label = ("decay" if decays else "no_decay") + ("" if scale == 1 else f"-x{scale:.3g}")
            decay = optim.weight_decay if decays else 0.0
            groups[scale, decays] = {"name": label, "params": [], "weight_decay": decay, "lr_scale": scale}
        groups[scale, decays]["params"].append(parameter)
    ordered = [groups[key] for key in sorted(groups, reverse=True)]
    locked = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    if scales or locked > 1:  # a fixed temperature alone is no news
        _logger.info("%s parameters are locked; the others learn in these groups:\n%s", f"{locked:,}", describe(ordered))
    return ordered


def describe(groups: list[dict[str, Any]]) -> str:
    """The groups as a table for the log: factor on the learning rate, weight decay, number of tensors and of parameters."""
    lines = [f"{'group':16} {'lr x':>7} {'decay':>7} {'tensors':>8} {'parameters':>13}"]
    for group in groups:
        count = sum(getattr(p, "ds_numel", p.numel()) for p in group["params"])
        scale, decay = group["lr_scale"], group["weight_decay"]
        lines.append(f"{group['name']:16} {scale:7.3g} {decay:7.3g} {len(group['params']):8} {count:13,}")
    return "\n".join(lines)
