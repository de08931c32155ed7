"""The words in which a term says what it wants from the tile engine: exponents, and reductions of them over negatives.

    logits = Exponent((Part("image", "text", scale),))            # e_ij = scale <image_i, text_j>
    Reduction("logsumexp", ((logits, "columns"),))                # log sum_j e^e_ij, a value per image
    Reduction("logsumexp", ((logits, "rows"),))                   # log sum_i e^e_ij, a value per text

``tiles.py`` computes them. Shapes: b local rows, B global, d width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Kind = Literal["logsumexp", "softplus", "sum"]
Axis = Literal["columns", "rows"]
"""What is summed over: "columns" gives a value per row anchor, "rows" a value per column anchor."""
AXES: tuple[Axis, Axis] = ("columns", "rows")


@dataclass(frozen=True)
class Domain:
    """One kind of embedding: this rank's rows, and the group ids that its negatives must not share."""

    rows_bd: Tensor
    group_bG: Tensor
    """int64 [b, G]: one group each, or two for a mixture of two samples."""


@dataclass(frozen=True)
class Mixture:
    """Rows ``m_i = u_i x_i + w_i x_{partner i}`` of another domain's rows x, which are never formed.

    Products with them are combinations of products with x: ``<m_i, y> = u_i <x_i, y> + w_i <x_{partner i}, y>``. Partners lie
    within aligned blocks of ``block`` consecutive samples, so that both are in one tile; ``block`` divides b.
    """

    of: str
    weights_n2: Tensor
    """u and w, of this rank's samples in a mixture that serves as rows, of all ranks' in one that serves as columns."""
    partner_B: Tensor
    """int64, places among all ranks' samples."""
    block: int
    group_bG: Tensor


Domains = Mapping[str, Domain | Mixture]


@dataclass(frozen=True, eq=False)
class Part:
    """``coefficient * <row_i, column_j>``; the coefficient is 0-dim, [b, 1] (by row) or [1, B] (by column)."""

    row: str
    column: str
    coefficient: Tensor


@dataclass(frozen=True, eq=False)
class Exponent:
    """A sum of parts plus a 0-dim offset. All parts share the groups of the first part's domains."""

    parts: tuple[Part, ...]
    offset: Tensor | None = None

    @property
    def num_scalars(self) -> int:
        """Coefficients and offset: tensors besides the embeddings that get a gradient."""
        return len(self.parts) + (self.offset is not None)


@dataclass(frozen=True, eq=False)
class Reduction:
    """One value per anchor, over one or more exponents: a logsumexp over several is one over all their negatives together."""

    kind: Kind
    over: tuple[tuple[Exponent, Axis], ...]


@dataclass(eq=False)
class Plan:
    """The reductions, indexed: every tensor that needs a gradient has a place in a flat list."""

    reductions: list[Reduction]
    names: list[str] = field(default_factory=list)
    """Domains with rows of their own, mixtures by what they mix; ``columns`` are those that serve as columns."""
    columns: list[str] = field(default_factory=list)
    exponents: list[Exponent] = field(default_factory=list)
    scalars: list[Tensor] = field(default_factory=list)
    """Coefficients and offsets, in the order in which the exponents list them."""
    mixtures: dict[str, bool] = field(default_factory=dict)
    """Mixtures by name, and whether they serve as columns."""

    def only_logsumexp(self, exponent: Exponent) -> bool:
        """Whether every reduction of the exponent is a logsumexp."""
        return all(r.kind == "logsumexp" for r in self.reductions for used, _ in r.over if used is exponent)


def plan_of(reductions: Sequence[Reduction], domains: Domains) -> Plan:
    """Index what the reductions use, in the order in which they name it."""
    plan = Plan(list(reductions))

    def use(name: str, as_column: bool) -> None:
        domain = domains[name]
        if isinstance(domain, Mixture):
            assert plan.mixtures.setdefault(name, as_column) == as_column, f"{name} serves as rows and as columns"
            name = domain.of
        plan.names = list(dict.fromkeys([*plan.names, name]))
        if as_column:
            plan.columns = list(dict.fromkeys([*plan.columns, name]))

    for exponent, _ in (pair for reduction in reductions for pair in reduction.over):
        if exponent in plan.exponents:
            continue
        plan.exponents.append(exponent)
        for part in exponent.parts:
            use(part.row, as_column=False)
            use(part.column, as_column=True)
            plan.scalars.append(part.coefficient)
        if exponent.offset is not None:
            plan.scalars.append(exponent.offset)
    return plan
