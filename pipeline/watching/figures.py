"""The figures of a training's log records, from what the parts of a step know. Collective where ranks know different things."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import torch

from pipeline import dist
from pipeline.config import RunConfig
from pipeline.config.data import data_sources
from pipeline.data.drops import DropBudget
from pipeline.features import Features
from pipeline.losses.objective import Losses


def loss_figures(losses: Losses, features: Features, term_norms: dict[str, float]) -> dict[str, float]:
    """What a log record says about the loss: each term's mean over ranks, weight and gradient norm, and learned scalars."""
    values = dist.all_reduce_mean(torch.stack([loss.detach() for loss in losses.terms.values()])).tolist()
    scalars = {"logit_scale" if name == "scale" else name: value.item() for name, value in features.scalars.items()}
    return {
        **{f"loss/{name}": value for name, value in zip(losses.terms, values, strict=True)},
        **{f"weight/{name}": weight for name, weight in losses.weights.items()},
        **{f"grad_norm/{name}": norm for name, norm in term_norms.items()},
        **scalars,
    }


def drop_figures(drops: DropBudget, cfg: RunConfig) -> dict[str, float]:
    """Samples that could not be used, over all ranks since the start, and each source's share of those that were."""
    names = [source.name for source in data_sources(cfg.data)]
    mix = zip(names, drops.mix(len(names)), strict=True) if len(names) > 1 else ()
    return {"dropped": drops.num_dropped, **{f"mix/{name}": share for name, share in mix}}


def keys_digest(keys: Sequence[str]) -> int:
    """A number that tells one set of samples from another; those of several ranks add up (modulo 2**64) to that of all."""
    return sum(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) for key in keys) % 2**64


def eval_figures(results: list[dict[str, Any]]) -> dict[str, float]:
    """The numbers of evaluations by name, ``SET/zero_shot/accuracy@1`` for example; by these a best checkpoint is chosen."""
    figures: dict[str, float] = {}

    def visit(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(f"{name}/{key}", inner)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            figures[name] = float(value)

    for result in results:
        visit(os.path.basename(result["set"]), result)
    return figures
