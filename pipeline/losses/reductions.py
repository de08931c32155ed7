"""The words in which a term says what it wants from the tile engine: exponents, and reductions of them over negatives.

    logits = Exponent((Part("image", "text", scale),))            # e_ij = scale <image_i, text_j>
    Reduction("logsumexp", ((logits, "columns"),))                # log sum_j e^e_ij, a value per image
    Reduction("logsumexp", ((logits, "rows"),))                   # log sum_i e^e_ij, a value per text

``tiles.py`` computes them. Shapes: b local rows, B global, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    columns: list[str] = field(default_factory=list)
    exponents: list[Exponent] = field(default_factory=list)
    scalars: list[Tensor] = field(default_factory=list)
    """Coefficients and offsets, in the order in which the exponents list them."""

    def only_logsumexp(self, exponent: Exponent) -> bool:
        """Whether every reduction of the exponent is a logsumexp."""
        return all(r.kind == "logsumexp" for r in self.reductions for used, _ in r.over if used is exponent)


def plan_of(reductions: Sequence[Reduction]) -> Plan:
    """Index what the reductions use, in the order in which they name it."""
    plan = Plan(list(reductions))
    for exponent, _ in (use for reduction in reductions for use in reduction.over):
        if exponent in plan.exponents:
            continue
        plan.exponents.append(exponent)
        for part in exponent.parts:
            plan.names = list(dict.fromkeys([*plan.names, part.row, part.column]))
            plan.columns = list(dict.fromkeys([*plan.columns, part.column]))
            plan.scalars.append(part.coefficient)
        if exponent.offset is not None:
            plan.scalars.append(exponent.offset)
    return plan
