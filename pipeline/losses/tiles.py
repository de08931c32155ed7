"""The tile engine: what every batch-coupled term needs, from one pass over shared cosine tiles. Knows no term by name.

Every such term is a function of sums over negatives. With unit rows ``p_i`` and columns ``q_j`` of named domains (image,
text, a second view, ...), a term states *exponents* and which *reductions* of them it wants:

    e_ij  =  sum_k  c_k <p^k_i, q^k_j>  +  o                 an Exponent: cosines of one or more pairs of domains
    n_i   =  log sum_{j: g(j) != g(i)} exp e_ij               a Reduction of kind "logsumexp" along its columns ...
    n_j   =  log sum_{i: g(i) != g(j)} exp e_ij               ... or along its rows (the other direction of the same matrix)
             sum softplus(e_ij)   or   sum e_ij               the other kinds

Only negatives enter: samples of the anchor's own group, itself included, are masked out. Positives are a handful of dot
products per row, computed by the term from unrounded features in plain autograd; InfoNCE is ``softplus(n_i - l_ii)``.

Forward, pass 1: for each tile of rows i and columns j, cosines once per pair of domains, then every exponent, then every
reduction. Backward, pass 2: the cosines again, then with ``G = dL/dn``

    dL/de_ij    =  G_i w(e_ij, n_i) + G_j w(e_ij, n_j)       w = exp(e - n) | sigmoid(e) | 1, by kind
    dL/dcos^k   =  c_k dL/de,   dL/dc_k = sum cos^k dL/de,   dL/do = sum dL/de
    dL/dp_i    +=  sum_j dL/dcos_ij q_j,   dL/dq_j += sum_i dL/dcos_ij p_i

so memory is O(K b d + tile), never b x B. Over ranks: each rank has its own rows and all columns (gathered once, all domains
in one collective). Reductions along rows are merged over ranks by (max, sum); column gradients go home by one reduce-scatter.
Each rank's loss is about its own anchors, and the mean over ranks is the global loss, as ``gather.py`` explains. Tiles are
visited in a fixed order and nothing is accumulated atomically, so results are repeatable bit for bit.

Shapes: b local rows, B global, d width; r x c one tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.losses import gather
from pipeline.losses.reductions import Axis, Domain, Exponent, Plan, Reduction, plan_of

RAW_LIMIT = 40.0
"""Exponents this small need no maximum subtracted: exp(40) summed over 1e9 columns is far below fp32's largest number."""


def reduce_tiles(
    domains: dict[str, Domain],
    reductions: Sequence[Reduction],
    *,
    tile: int = 512,
    gather_dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """The value of each reduction for this rank's anchors, [b] each, differentiable in embeddings, coefficients and offsets.

    Args:
        domains: what the exponents name. Rows are unit vectors, so that exponents are bounded.
        reductions: what to compute. An anchor without negatives has -inf (logsumexp) or 0 (the other kinds).
        tile: rows and columns of a tile; changes memory and speed, and results by rounding only.
        gather_dtype: what embeddings travel in; None keeps their own. Gradients return in full precision.
    """
    plan = plan_of(reductions)
    tensors = [domains[name].rows_bd for name in plan.names]
    values: tuple[Tensor, ...] = _Tiles.apply(plan, domains, tile, gather_dtype, *tensors, *plan.scalars)
    return list(values)


class _Columns:
    """All ranks' rows of the domains that serve as columns, and their groups; one collective for the embeddings."""

    def __init__(self, plan: Plan, domains: dict[str, Domain], dtype: torch.dtype | None) -> None:
        local_bKd = torch.stack([domains[name].rows_bd for name in plan.columns], dim=1)
        gathered_BKd = gather.gather_rows(local_bKd.to(dtype or local_bKd.dtype)).to(local_bKd.dtype)
        self.rows = {name: gathered_BKd[:, k].contiguous() for k, name in enumerate(plan.columns)}
        self.count = len(gathered_BKd)
        # Group ids are 63-bit hashes; their places among the sorted ones compare several times faster.
        ids = {name: gather.gather_ids(domains[name].group_bG) for name in plan.columns}
        known = torch.unique(torch.cat([ids_BG.flatten() for ids_BG in ids.values()]))
        self.groups = {name: torch.searchsorted(known, ids_BG).int() for name, ids_BG in ids.items()}
        own = {name: domains[name].group_bG for name in plan.names}
        self.row_groups = {name: _places(known, ids_bG) for name, ids_bG in own.items()}


def _places(known: Tensor, ids: Tensor) -> Tensor:
    """Place of each id among the sorted ``known`` ones; -1 for an id that is not there."""
    place = torch.searchsorted(known, ids).clamp_max(len(known) - 1)
    return place.masked_fill(known[place] != ids, -1).int()


class _Tiles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, domains: dict[str, Domain], tile: int, dtype: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        columns = _Columns(plan, domains, dtype)
        raw = [_bound(exponent) <= RAW_LIMIT for exponent in plan.exponents]
        scratch = _Scratch(inputs[0], tile)
        plain = [raw[k] and plan.only_logsumexp(exponent) for k, exponent in enumerate(plan.exponents)]
        sums = [_Running(reduction, len(inputs[0]), columns.count, inputs[0]) for reduction in plan.reductions]
        for rows_r, columns_c in _tiles(len(inputs[0]), columns.count, tile):
            view = _View(domains, columns, scratch, rows_r, columns_c)
            for k, exponent in enumerate(plan.exponents):
                e_rc = view.exponent(exponent)
                same_rc = view.same_group(exponent)
                terms = _Terms(e_rc, same_rc, raw[k], overwrite=plain[k])
                for running in sums:
                    for used, axis in running.reduction.over:
                        if used is exponent:
                            running.add(terms, axis, rows_r, columns_c)
        offset = gather.row_offset(len(inputs[0]))
        values = [running.finish(offset) for running in sums]
        ctx.plan, ctx.domains, ctx.columns, ctx.tile, ctx.raw = plan, domains, columns, tile, raw
        ctx.num_inputs = len(inputs)
        ctx.save_for_backward(*values)
        ctx.set_materialize_grads(False)
        return tuple(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        plan, domains, columns = ctx.plan, ctx.domains, ctx.columns
        values: tuple[Tensor, ...] = ctx.saved_tensors
        # A reduction without a gradient (the loss of one term alone is differentiated, say) costs nothing.
        given = zip(plan.reductions, grads, values, strict=True)
        anchors = [_Anchors(reduction, grad_b, value_b) for reduction, grad_b, value_b in given if grad_b is not None]
        used = {exponent for anchor in anchors for exponent, _ in anchor.reduction.over}
        row_grads = {name: torch.zeros_like(domains[name].rows_bd) for name in plan.names}
        column_grads = {name: torch.zeros_like(columns.rows[name]) for name in plan.columns}
        scratch = _Scratch(values[0], ctx.tile)
        scalar_grads = [torch.zeros_like(scalar) for scalar in plan.scalars]
        for rows_r, columns_c in _tiles(len(values[0]), columns.count, ctx.tile):
            view = _View(domains, columns, scratch, rows_r, columns_c)
            place = 0
            for k, exponent in enumerate(plan.exponents):
                if exponent in used:
                    view.pull(
                        exponent,
                        _weights(view, exponent, anchors, ctx.raw[k]),
                        scalar_grads[place : place + exponent.num_scalars],
                    )
                place += exponent.num_scalars
            view.push(row_grads, column_grads)
        home_bKd = gather.scatter_sum(torch.stack([column_grads[name] for name in plan.columns], dim=1))
        for k, name in enumerate(plan.columns):
            row_grads[name] += home_bKd[:, k]
        return (None, None, None, None, *(row_grads[name] for name in plan.names), *scalar_grads)


def _tiles(num_rows: int, num_columns: int, tile: int) -> list[tuple[slice, slice]]:
    """Tiles in a fixed order, row by row."""
    return [
        (slice(i, min(i + tile, num_rows)), slice(j, min(j + tile, num_columns)))
        for i in range(0, num_rows, tile)
        for j in range(0, num_columns, tile)
    ]


def _bound(exponent: Exponent) -> float:
    """Largest absolute value that the exponent can take, since cosines are within [-1, 1]."""
    bound = sum(part.coefficient.detach().abs().amax() for part in exponent.parts)
    return float(bound if exponent.offset is None else bound + exponent.offset.detach().abs())


def _cut(coefficient: Tensor, rows_r: slice, columns_c: slice) -> Tensor:
    """The tile's share of a coefficient of shape [], [b, 1] or [1, B]."""
    if coefficient.ndim == 0:
        return coefficient
    return coefficient[rows_r] if coefficient.shape[1] == 1 else coefficient[:, columns_c]


class _Scratch:
    """Memory of one tile's size for each purpose, reused from tile to tile: allocating it anew costs as much as filling it."""

    def __init__(self, like: Tensor, tile: int) -> None:
        self._like, self._size, self._buffers = like, tile * tile, dict[object, Tensor]()

    def take(self, purpose: object, r: int, c: int) -> Tensor:
        """A contiguous [r, c] tensor with whatever it held before."""
        if purpose not in self._buffers:
            self._buffers[purpose] = self._like.new_empty(self._size)
        return self._buffers[purpose][: r * c].view(r, c)


class _View:
    """One tile: its cosines by pair of domains, computed when first asked for, and the gradients of those cosines."""

    def __init__(
        self, domains: dict[str, Domain], columns: _Columns, scratch: _Scratch, rows_r: slice, columns_c: slice
    ) -> None:
        self.domains, self.columns, self.scratch, self.rows_r, self.columns_c = domains, columns, scratch, rows_r, columns_c
        self.cosines: dict[tuple[str, str], Tensor] = {}
        self.cosine_grads: dict[tuple[str, str], Tensor] = {}
        self.masks: dict[tuple[str, str], Tensor | None] = {}

    def cosine(self, row: str, column: str) -> Tensor:
        """<row_i, column_j> [r, c]."""
        if (row, column) not in self.cosines:
            rows_rd, columns_cd = self.domains[row].rows_bd[self.rows_r], self.columns.rows[column][self.columns_c]
            buffer = self.scratch.take((row, column), len(rows_rd), len(columns_cd))
            self.cosines[row, column] = torch.mm(rows_rd, columns_cd.T, out=buffer)
        return self.cosines[row, column]

    def exponent(self, exponent: Exponent) -> Tensor:
        """The exponents [r, c], unmasked."""
        first, *others = exponent.parts
        cosine_rc = self.cosine(first.row, first.column)
        e_rc = self.scratch.take(exponent, *cosine_rc.shape)
        torch.mul(cosine_rc, _cut(first.coefficient.detach(), self.rows_r, self.columns_c), out=e_rc)
        for part in others:
            e_rc.addcmul_(self.cosine(part.row, part.column), _cut(part.coefficient.detach(), self.rows_r, self.columns_c))
        return e_rc if exponent.offset is None else e_rc.add_(exponent.offset.detach())

    def same_group(self, exponent: Exponent) -> Tensor | None:
        """Which entries are no negatives: bool [r, c]; None where all are (known on the CPU, where looking costs nothing)."""
        key = exponent.parts[0].row, exponent.parts[0].column
        if key not in self.masks:
            row_rG, column_cG = self.columns.row_groups[key[0]][self.rows_r], self.columns.groups[key[1]][self.columns_c]
            same_rc = row_rG[:, :1] == column_cG[:, 0]
            for g in range(row_rG.shape[1]):
                for h in range(column_cG.shape[1]):
                    if g or h:
                        same_rc |= row_rG[:, g : g + 1] == column_cG[:, h]
            self.masks[key] = same_rc if same_rc.is_cuda or same_rc.any() else None
        return self.masks[key]

    def pull(self, exponent: Exponent, weight_rc: Tensor, scalar_grads: list[Tensor]) -> None:
        """Add dL/de to the gradients of the exponent's cosines, and of its coefficients and offset, ``scalar_grads``."""
        last = None if exponent.offset is not None else exponent.parts[-1]
        for part, grad in zip(exponent.parts, scalar_grads, strict=False):
            coefficient = part.coefficient
            cosine_rc = self.cosine(part.row, part.column)
            if coefficient.requires_grad:
                if coefficient.ndim == 0:
                    grad += torch.dot(weight_rc.flatten(), cosine_rc.flatten())
                elif coefficient.shape[1] == 1:
                    grad[self.rows_r] += (weight_rc * cosine_rc).sum(dim=1, keepdim=True)
                else:
                    grad[:, self.columns_c] += (weight_rc * cosine_rc).sum(dim=0, keepdim=True)
            share = _cut(coefficient.detach(), self.rows_r, self.columns_c)
            # The last part may overwrite the weights: nobody reads them after it.
            scaled_rc = weight_rc.mul_(share) if part is last else weight_rc * share
            key = part.row, part.column
            self.cosine_grads[key] = self.cosine_grads[key].add_(scaled_rc) if key in self.cosine_grads else scaled_rc
        if exponent.offset is not None:
            scalar_grads[len(exponent.parts)] += weight_rc.sum()

    def push(self, row_grads: dict[str, Tensor], column_grads: dict[str, Tensor]) -> None:
        """Add the tile's share of the gradients of rows and columns."""
        for (row, column), grad_rc in self.cosine_grads.items():
            row_grads[row][self.rows_r].addmm_(grad_rc, self.columns.rows[column][self.columns_c])
            column_grads[column][self.columns_c].addmm_(grad_rc.T, self.domains[row].rows_bd[self.rows_r])


class _Terms:
    """The exponents of a tile, and what their reductions share: the masked values, and their plain exponentials."""

    def __init__(self, e_rc: Tensor, same_rc: Tensor | None, raw: bool, overwrite: bool) -> None:
        self.e_rc, self.same_rc, self.raw, self._overwrite = e_rc, same_rc, raw, overwrite
        self._exp: Tensor | None = None

    def exp(self) -> Tensor:
        """exp(e) with 0 in place of what is no negative; for exponents within RAW_LIMIT."""
        if self._exp is None:
            self._exp = _fill(self.e_rc.exp_() if self._overwrite else self.e_rc.exp(), self.same_rc, 0.0)
        return self._exp

    def masked(self, value: float) -> Tensor:
        """Exponents with ``value`` in place of what is no negative."""
        return self.e_rc if self.same_rc is None else self.e_rc.masked_fill(self.same_rc, value)


def _fill(values_rc: Tensor, same_rc: Tensor | None, value: float) -> Tensor:
    """In place: ``value`` where there is no negative."""
    return values_rc if same_rc is None else values_rc.masked_fill_(same_rc, value)


class _Running:
    """A reduction under way: what the row anchors [b] and the column anchors [B] have seen so far."""

    def __init__(self, reduction: Reduction, num_rows: int, num_columns: int, like: Tensor) -> None:
        self.reduction = reduction
        axes = {axis for _, axis in reduction.over}
        sizes: dict[Axis, int] = {"columns": num_rows, "rows": num_columns}
        self.totals = {axis: like.new_zeros(sizes[axis]) for axis in axes}
        self.maxima = {axis: like.new_zeros(sizes[axis]) for axis in axes}
        """What was subtracted before exp; 0 until an exponent beyond RAW_LIMIT asks for more."""

    def add(self, terms: _Terms, axis: Axis, rows_r: slice, columns_c: slice) -> None:
        dim, at = (1, rows_r) if axis == "columns" else (0, columns_c)
        total = self.totals[axis]
        if self.reduction.kind == "sum":
            total[at] += terms.masked(0.0).sum(dim)
        elif self.reduction.kind == "softplus":
            total[at] += F.logsigmoid(-terms.masked(-torch.inf)).neg().sum(dim)
        elif terms.raw:
            total[at] += terms.exp().sum(dim) * torch.exp(-self.maxima[axis][at])
        else:
            e_rc, maximum = terms.masked(-torch.inf), self.maxima[axis]
            higher = torch.maximum(maximum[at], e_rc.amax(dim))
            total[at] = total[at] * torch.exp(maximum[at] - higher) + (e_rc - higher.unsqueeze(dim)).exp_().sum(dim)
            maximum[at] = higher

    def finish(self, offset: int) -> Tensor:
        """Merge over ranks and over axes; the value of this rank's anchors [b]."""
        if "rows" in self.totals:
            self._merge_ranks()
        if self.reduction.kind != "logsumexp":
            parts = [self._own(self.totals, axis, offset) for axis in self.totals]
            return torch.stack(parts).sum(dim=0)
        logs = [self._own(self.totals, axis, offset).log() + self._own(self.maxima, axis, offset) for axis in self.totals]
        return torch.stack(logs).logsumexp(dim=0) if len(logs) > 1 else logs[0]

    def _merge_ranks(self) -> None:
        """Column anchors met other rows on every rank: bring their sums to one maximum, then add.

        Every rank takes part in both collectives, whether its own exponents needed a shift or not.
        """
        highest = gather.reduce_max(self.maxima["rows"])
        self.totals["rows"] *= torch.exp(self.maxima["rows"] - highest)
        self.maxima["rows"] = highest
        self.totals["rows"] = gather.reduce_sum(self.totals["rows"])

    def _own(self, values: dict[Axis, Tensor], axis: Axis, offset: int) -> Tensor:
        if axis == "columns":
            return values[axis]
        count = len(values["columns"]) if "columns" in values else gather.local_count(len(values[axis]))
        return values[axis][offset : offset + count]


class _Anchors:
    """dL/dn and n of a reduction, for row anchors (local) and, if some exponent needs them, for all column anchors."""

    def __init__(self, reduction: Reduction, grad_b: Tensor, value_b: Tensor) -> None:
        self.reduction = reduction
        # Nothing flows through an anchor without negatives; its -inf must not meet a zero.
        empty_b = value_b.isneginf()
        self.grads = {"columns": grad_b.masked_fill(empty_b, 0.0)}
        self.values = {"columns": value_b.masked_fill(empty_b, 0.0)}
        if any(axis == "rows" for _, axis in reduction.over):
            both_bN = torch.stack([self.grads["columns"], self.values["columns"]], dim=1)
            both_BN = gather.gather_rows(both_bN)
            self.grads["rows"], self.values["rows"] = both_BN[:, 0], both_BN[:, 1]


def _weights(view: _View, exponent: Exponent, anchors: list[_Anchors], raw: bool) -> Tensor:
    """dL/de of one exponent in one tile, from every reduction of it; 0 where there is no negative."""
    e_rc = view.exponent(exponent)
    factor: Tensor | None = None  # what multiplies exp(e) itself, shared by both directions
    weight_rc: Tensor | None = None
    for anchor in anchors:
        for used, axis in anchor.reduction.over:
            if used is not exponent:
                continue
            dim, at = (1, view.rows_r) if axis == "columns" else (0, view.columns_c)
            grad, value = (both[axis][at].unsqueeze(dim) for both in (anchor.grads, anchor.values))
            if anchor.reduction.kind == "logsumexp" and raw:
                share = grad * torch.exp(-value)
                both = view.scratch.take("factor", *e_rc.shape)
                factor = share if factor is None else torch.add(factor, share, out=both)
                continue
            if anchor.reduction.kind == "logsumexp":
                share_rc = (e_rc - value).exp_().mul_(grad)
            elif anchor.reduction.kind == "softplus":
                share_rc = e_rc.sigmoid().mul_(grad)
            else:
                share_rc = grad.expand_as(e_rc).clone()
            weight_rc = share_rc if weight_rc is None else weight_rc.add_(share_rc)
    if factor is not None:
        shared_rc = e_rc.exp_().mul_(factor)  # the exponents themselves are not needed any more
        weight_rc = shared_rc if weight_rc is None else weight_rc.add_(shared_rc)
    assert weight_rc is not None, "an exponent that no reduction uses"
    return _fill(weight_rc, view.same_group(exponent), 0.0)
