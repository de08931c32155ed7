"""What a term is, and what it may read of a step.

A term is a frozen dataclass: its fields are its settings in the configuration, its class attributes say what it needs, and two
methods say what it computes. Terms that only know positives leave ``reductions`` as it is.

    @dataclass(frozen=True)
    class Uniformity(Term):
        name: ClassVar[str] = "uniformity"
        needs: ClassVar[tuple[str, ...]] = ("image",)
        t: float = 2.0

        def reductions(self, step): ...          # what the tile engine shall compute over negatives
        def loss(self, step, values): ...        # this rank's share of the loss, from those values and from positives

A term's loss on one rank is about the rank's own anchors; the mean over ranks is the loss of the whole batch.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.features import Scalar
from pipeline.losses import gather
from pipeline.losses.reductions import Domain, Exponent, Mixture, Part, Reduction


class Step:
    """One step as a term sees it: embeddings by domain, learned scalars, groups, and draws that are equal on all ranks."""

    def __init__(
        self,
        rows: dict[str, Tensor],
        scalars: dict[str, Tensor],
        group_b: Tensor,
        extras: Mapping[str, Tensor] | None = None,
        *,
        seed: int = 0,
        number: int = 0,
    ) -> None:
        """``rows`` are unit rows [b, d] of the domains ``image``, ``text``, ``image_2``, ...; ``number`` is the step."""
        self.rows, self.scalars, self.group_b, self.extras = rows, scalars, group_b, extras or {}
        self._seed, self._number = seed, number
        group_b1 = group_b[:, None]
        self.domains: dict[str, Domain | Mixture] = {name: Domain(rows_bd, group_b1) for name, rows_bd in rows.items()}
        self._gathered: dict[str, Tensor] = {}

    @functools.cached_property
    def group_B(self) -> Tensor:
        """Every rank's group ids, int64 [B]."""
        return gather.gather_ids(self.group_b)

    @functools.cached_property
    def own_b(self) -> Tensor:
        """Places of this rank's samples among all, int64 [b]."""
        return torch.arange(len(self.group_b), device=self.group_b.device) + gather.row_offset(len(self.group_b))

    @functools.cached_property
    def num_negatives_b(self) -> Tensor:
        """For each local sample, how many of the B samples are of other groups, int64 [b]."""
        sorted_B = self.group_B.sort().values
        first_b, end_b = (torch.searchsorted(sorted_B, self.group_b, right=right) for right in (False, True))
        return len(self.group_B) - (end_b - first_b)

    @functools.cached_property
    def num_pairs(self) -> Tensor:
        """Ordered pairs of samples of different groups in the whole batch, int64 0-dim."""
        return gather.reduce_sum(self.num_negatives_b.sum())

    def gathered(self, name: str) -> Tensor:
        """All ranks' rows of a domain [B, d], differentiable."""
        if name not in self._gathered:
            self._gathered[name] = gather.gather_rows(self.rows[name])
        return self._gathered[name]

    def generator(self, term: str) -> np.random.Generator:
        """Randomness that depends on seed, step, and term alone: every rank draws the same."""
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._seed, self._number, *term.encode()])))

    def constant(self, value: float) -> Tensor:
        """A 0-dim number in the embeddings' dtype and on their device."""
        return next(iter(self.rows.values())).new_full((), value)  # filled there: no copy for the host to wait for


@dataclass(frozen=True)
class Term(abc.ABC):
    """Base of all terms."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    """What a model must make for the term: domains, and names of ``Features.extras``."""

    def problem(self, domains: Collection[str]) -> str | None:
        """Why the term cannot be computed from what a model makes (domains and extras by name), or None."""
        missing = [name for name in self.needs if name not in domains]
        return f"needs {', '.join(missing)}" if missing else None

    def scalars(self) -> dict[str, Scalar]:
        """Learned numbers that the model must hold for this term, by name."""
        return {}

    def reductions(self, step: Step) -> list[Reduction]:
        """What the tile engine computes over negatives."""
        return []

    @abc.abstractmethod
    def loss(self, step: Step, values: list[Tensor]) -> Tensor:
        """This rank's share; ``values`` are those of ``reductions``, [b] each."""


def cosine(row: str, column: str, coefficient: Tensor, offset: Tensor | None = None) -> Exponent:
    """The plain exponent ``coefficient * <row_i, column_j> + offset``."""
    return Exponent((Part(row, column, coefficient),), offset)


def paired(x_bd: Tensor, y_bd: Tensor) -> Tensor:
    """<x_i, y_i> [b], the positives' cosines."""
    return (x_bd * y_bd).sum(dim=1)


def contrast(negative_b: Tensor, positive_b: Tensor) -> Tensor:
    """``-log( e^p / (e^p + e^n) )`` for each anchor; 0 at n = -inf. Not torch's softplus, which is linear from 20 on."""
    return -F.logsigmoid(positive_b - negative_b)


class _GlobalLogSumExp(torch.autograd.Function):
    """log sum over all ranks' values; the gradient on a rank is W times that of its share, since the engine averages ranks."""

    @staticmethod
    def forward(ctx, values_n: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        highest = gather.reduce_max(values_n.amax())
        shift = highest.masked_fill(highest.isneginf(), 0.0)
        total = shift + gather.reduce_sum((values_n - shift).exp().sum()).log()
        ctx.save_for_backward(values_n, total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        values_n, total = ctx.saved_tensors
        share_n: Tensor = (values_n - total.masked_fill(total.isneginf(), 0.0)).exp()
        return gather.world_size() * grad * share_n


def global_log_mean_exp(values_n: Tensor, count: Tensor) -> Tensor:
    """``log( sum over all ranks of exp(value) / count )``; 0 without a gradient where count is 0. Equal on all ranks.

    Not additive over ranks: averaging each rank's log-mean would be another estimator, so one scalar is exchanged instead.
    """
    total: Tensor = _GlobalLogSumExp.apply(values_n)
    mean = total.masked_fill(count == 0, 0.0) - count.clamp_min(1).to(total.dtype).log()
    return torch.where(count > 0, mean, 0.0)
