"""``Objective``: the weighted sum of loss terms that a run asks for.

    objective = Objective(cfg.objective, seed=cfg.seed, total_steps=cfg.train.steps)
    objective.check({"image", "text"})                     # a term that lacks what it needs says so before step 1
    model = clip.build(cfg.model, cfg.objective, objective.scalars())
    losses = objective(model(...), step=7, epoch=0)
    losses.total.backward()                                # this rank's share; the mean over ranks is the loss
    losses.terms                                           # {"clip": 3.1, "uniformity": -2.2}, unweighted, detached

In the configuration each term has a weight, optionally a schedule for it, and the settings that its class declares:

    objective:
      terms:
        clip: {label_smoothing: 0.1}
        uniformity: {weight: 0.5, schedule: linear, final_weight: 0.0}

A term whose weight is 0 at a step is not computed at that step, so a run with it is bit for bit the run without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline import strict
from pipeline.config import ObjectiveConfig, WeightConfig
from pipeline.errors import ConfigError, NumericsError
from pipeline.features import Features, Scalar
from pipeline.losses import gather
from pipeline.losses.operands import Precision
from pipeline.losses.terms import TERMS, Step, Term
from pipeline.losses.tiles import TileOptions, reduce_tiles
from pipeline.schedule import weight_at

DTYPES = {"fp32": None, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Losses:
    """One step's loss on this rank."""

    total: Tensor
    """Weighted sum, differentiable; this rank's share."""
    terms: dict[str, Tensor]
    """Each active term by itself, unweighted, this rank's share; differentiable."""
    weights: dict[str, float]


class Objective:
    """The terms of a run, their settings, and their weights over time."""

    def __init__(self, cfg: ObjectiveConfig, *, seed: int, total_steps: int) -> None:
        """Build the terms.

        Raises:
            ConfigError: an unknown term or setting (naming the nearest one), or no term at all.
        """
        if not cfg.terms:
            raise ConfigError(f"objective.terms is empty; name at least one of: {', '.join(sorted(TERMS))}")
        self._seed, self._total_steps = seed, total_steps
        precision = Precision(products=DTYPES[cfg.product_dtype], wire=DTYPES[cfg.gather_dtype])
        self._options = TileOptions(tile=cfg.tile, keep_mb=cfg.keep_mb, precision=precision)
        self._terms: list[tuple[Term, WeightConfig]] = [_build(name, settings) for name, settings in cfg.terms.items()]
        self._checked = False

    def scalars(self) -> dict[str, Scalar]:
        """Learned numbers that the model must hold for these terms."""
        return {name: scalar for term, _ in self._terms for name, scalar in term.scalars().items()}

    def check(self, domains: Collection[str]) -> None:
        """Refuse terms that need embeddings or extras which the model does not make.

        Raises:
            ConfigError: naming the term, what it lacks, and what there is.
        """
        for term, _ in self._terms:
            if problem := term.problem(domains):
                raise ConfigError(f"objective.terms.{term.name}: {problem}; this model makes: {', '.join(sorted(domains))}")

    def __call__(self, features: Features, *, step: int, epoch: int = 0) -> Losses:
        """The loss of one step; every rank, together.

        Raises:
            NumericsError: on every rank, if local batches differ in size (checked in the first step).
        """
        self._check_equal_batches(features.group_b)
        at = Step(*features, seed=self._seed, number=step)
        weights = {
            term.name: weight_at(step, cfg=weight, epoch=epoch, total_steps=self._total_steps) for term, weight in self._terms
        }
        active = [term for term, _ in self._terms if weights[term.name] != 0]
        wanted = [term.reductions(at) for term in active]
        reductions = [reduction for several in wanted for reduction in several]
        values = reduce_tiles(at.domains, reductions, self._options) if reductions else []
        losses: dict[str, Tensor] = {}
        for term, several in zip(active, wanted, strict=True):
            own, values = values[: len(several)], values[len(several) :]
            losses[term.name] = term.loss(at, own)
        parts = [weights[name] * loss for name, loss in losses.items()]
        if not parts:  # every weight is 0 at this step: a loss of 0, which can still be differentiated
            parts = [0.0 * rows_bd.sum() for rows_bd in features.embeddings.values()]
        total = torch.stack(parts).sum()
        return Losses(total, losses, weights)

    def _check_equal_batches(self, group_b: Tensor) -> None:
        if not self._checked and gather.world_size() > 1:
            local = len(group_b)
            most, least = gather.reduce_max(group_b.new_tensor([local, -local])).tolist()
            if most != -least:
                raise NumericsError(f"ranks hold between {-least} and {most} samples; every rank needs equally many")
            self._checked = True


def gradient_norms(losses: Losses, features: Features) -> dict[str, float]:
    """Norm of each weighted term's gradient at what all ranks' models made; collective. Costs a second pass per term."""
    inputs = [value for value in (*features.embeddings.values(), *features.extras.values()) if value.requires_grad]
    norms = {}
    for name, loss in losses.terms.items():
        grads = torch.autograd.grad(losses.weights[name] * loss, inputs, retain_graph=True, allow_unused=True)
        squares = [grad.double().square().sum() for grad in grads if grad is not None]
        # The engine averages over ranks, so a rank's gradient is W times its share of the global one.
        total = gather.reduce_sum(torch.stack(squares).sum())
        norms[name] = float(total.sqrt()) / gather.world_size()
    return norms


def _build(name: str, settings: dict[str, object]) -> tuple[Term, WeightConfig]:
    path = f"objective.terms.{name}"
    if name not in TERMS:
        raise ConfigError(strict.unknown_key(path, name, TERMS))
    weight_keys = {field.name for field in dataclasses.fields(WeightConfig)}
    own = {field.name for field in dataclasses.fields(TERMS[name])}
    for key in settings:
        if key not in weight_keys | own:
            raise ConfigError(strict.unknown_key(f"{path}.{key}", key, weight_keys | own))
    weight = strict.build(WeightConfig, {key: value for key, value in settings.items() if key in weight_keys}, path)
    return strict.build(TERMS[name], {key: value for key, value in settings.items() if key in own}, path), weight
