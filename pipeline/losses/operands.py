"""What the matrix products of tiles work on: rows, columns gathered from all ranks, in the precision of the products.

    operands = Operands(plan, domains, Precision(torch.bfloat16, wire=torch.bfloat16))
    operands.product(operands.rows["image"][:512], operands.columns["text"][:512])       # cosines [512, 512] in fp32

In bf16, embeddings are rounded once, and products of them are accumulated in fp32 and never rounded: on a GPU by the tensor
cores (``torch.mm(..., out_dtype=torch.float32)``), elsewhere by fp32 products of the rounded numbers, which are the same up to
the order of summation. Only negatives come from here. Positives are fp32 products of unrounded rows, which the terms make once
and use in normaliser and gradient alike; taking them from two sources would put the gradient off by 11 % at scale 100.

Shapes: b local rows, B global, d width, K domains that serve as columns, G groups of a sample; r x c one tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.losses import gather
from pipeline.losses.reductions import Domain, Domains, Mixture, Plan


@dataclass(frozen=True)
class Precision:
    """Number formats of the engine; None keeps the embeddings' own."""

    products: torch.dtype | None = None
    """What cosines and the gradients of embeddings are products of; they are accumulated in the embeddings' own."""
    wire: torch.dtype | None = None
    """What embeddings travel between ranks in. Gradients always return in the embeddings' own."""


class Operands:
    """Rows and columns by domain, and the groups that decide who is whose negative."""

    def __init__(self, plan: Plan, domains: Domains, precision: Precision) -> None:
        own = {name: _rows(domains[name]) for name in plan.names}
        like = next(iter(own.values()))
        self.dtype, self.device, self.num_rows = like.dtype, like.device, len(like)
        self.row_offset = gather.row_offset(len(like))
        self._rounded = precision.products if precision.products != like.dtype else None
        self._native = self._rounded is not None and like.is_cuda and hasattr(torch.ops.aten.mm, "dtype")
        self.rows = {name: self.round(rows_bd) for name, rows_bd in own.items()}
        wire = precision.wire or like.dtype
        if gather.world_size() == 1 and wire == like.dtype:
            self.columns = {name: self.rows[name] for name in plan.columns}
        else:
            gathered_BKd = gather.gather_rows(torch.stack([own[name].to(wire) for name in plan.columns], dim=1))
            if not (self._native and wire == self._rounded):
                gathered_BKd = self.round(gathered_BKd.to(like.dtype))
            self.columns = {name: gathered_BKd[:, k] for k, name in enumerate(plan.columns)}
        self.num_columns = len(next(iter(self.columns.values())))
        self.groups = _Groups(plan, domains)

    def round(self, values: Tensor) -> Tensor:
        """To the precision of products: in that type where there are native products of it, else as its nearest values."""
        if self._rounded is None:
            return values
        return values.to(self._rounded) if self._native else values.to(self._rounded).to(self.dtype)

    def product(self, left_rk: Tensor, right_kc: Tensor, out_rc: Tensor) -> Tensor:
        """The matrix product of two rounded factors, accumulated in the embeddings' own type; ``out_rc`` may hold it."""
        if self._native:
            return torch.mm(left_rk, right_kc, out_dtype=self.dtype)
        return torch.mm(left_rk, right_kc, out=out_rc)

    def add_product(self, total_rc: Tensor, left_rk: Tensor, right_kc: Tensor) -> None:
        """Add the matrix product of two rounded factors to ``total_rc``."""
        if self._native:
            total_rc += torch.mm(left_rk, right_kc, out_dtype=self.dtype)
        else:
            total_rc.addmm_(left_rk, right_kc)


def _rows(domain: Domain | Mixture) -> Tensor:
    assert isinstance(domain, Domain), "a mixture of mixtures"
    return domain.rows_bd


class _Groups:
    """Group ids of rows and columns by domain, and the masks that they make."""

    def __init__(self, plan: Plan, domains: Domains) -> None:
        firsts = [exponent.parts[0] for exponent in plan.exponents]
        gathered: dict[int, Tensor] = {}  # most domains share one tensor of ids: by its id in memory

        def gathered_ids(name: str) -> Tensor:
            ids_bG = domains[name].group_bG
            if id(ids_bG) not in gathered:
                gathered[id(ids_bG)] = gather.gather_ids(ids_bG)
            return gathered[id(ids_bG)]

        self.rows = {part.row: domains[part.row].group_bG for part in firsts}
        self.columns = {part.column: gathered_ids(part.column) for part in firsts}
        self._known_meetings: dict[tuple[str, str, int], Tensor] = {}
        self._look = next(iter(self.rows.values())).device.type == "cpu"
        if self._look:
            # Group ids are 63-bit hashes; their places among the sorted ones compare several times faster.
            known = torch.unique(torch.cat([ids_BG.flatten() for ids_BG in self.columns.values()]))
            self.columns = {name: torch.searchsorted(known, ids_BG).int() for name, ids_BG in self.columns.items()}
            self.rows = {name: _places(known, ids_bG) for name, ids_bG in self.rows.items()}

    def same(self, row: str, column: str, rows_r: slice, columns_c: slice) -> Tensor | None:
        """Which entries of a tile are no negatives: bool [r, c]; None where all are.

        Looking whether there is any is cheap on the CPU and spares most tiles the mask. On a GPU it would make the host wait.
        """
        row_rG, column_cG = self.rows[row][rows_r], self.columns[column][columns_c]
        if self._look and not self._meeting(row, column, columns_c)[rows_r].any():
            return None
        same_rc = row_rG[:, :1] == column_cG[:, 0]
        for g in range(row_rG.shape[1]):
            for h in range(column_cG.shape[1]):
                if g or h:
                    same_rc |= row_rG[:, g : g + 1] == column_cG[:, h]
        return same_rc

    def _meeting(self, row: str, column: str, columns_c: slice) -> Tensor:
        """Which rows share a group with any of these columns, bool [b]; looked up once for all tiles of the columns."""
        key = (row, column, columns_c.start)
        if key not in self._known_meetings:
            sorted_ids = self.columns[column][columns_c].flatten().sort().values
            self._known_meetings[key] = (_places(sorted_ids, self.rows[row]) >= 0).any(dim=1)
        return self._known_meetings[key]


def _places(known: Tensor, ids: Tensor) -> Tensor:
    """Place of each id among the sorted ``known`` ones, int32; -1 for an id that is not there."""
    place = torch.searchsorted(known, ids).clamp_max(len(known) - 1)
    return place.masked_fill(known[place] != ids, -1).int()
