"""Sums over negatives under way, tile by tile, and the weights that they give each exponent in the way back.

    pass 1     n = log sum e^e  |  sum softplus(e)  |  sum e        Running
    pass 2     dL/de = G w(e, n),  w = e^(e - n) | sigmoid(e) | 1   weights

A logsumexp is kept as (maximum, sum relative to it), so that nothing overflows or vanishes at any scale. Where exponents are
known to be small ("raw") the maximum is left at 0 and one exponential serves every sum of an exponent, in both directions.

Shapes: b local rows, B global; r x c one tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.losses import gather
from pipeline.losses.operands import Operands
from pipeline.losses.reductions import Axis, Exponent, Reduction
from pipeline.losses.tile import Tile, exp_

RAW_LIMIT = 40.0
"""Exponents this small need no maximum subtracted: exp(40) summed over 1e9 columns is far below fp32's largest number."""
_LOWEST = -1e4
"""Start of a running maximum: below every exponent, and finite, so that two of them may be subtracted."""


def is_raw(reduction: Reduction) -> bool:
    """Whether no exponent can exceed ``RAW_LIMIT``; looked up on the CPU only, since with a GPU the host would have to wait."""
    return all(_bound(exponent) <= RAW_LIMIT for exponent, _ in reduction.over)


def _bound(exponent: Exponent) -> float:
    """Largest absolute value that the exponent can take, since cosines are within [-1, 1] and mixtures not longer than 1."""
    if exponent.parts[0].coefficient.device.type != "cpu":
        return float("inf")
    bound = sum(part.coefficient.detach().abs().amax() for part in exponent.parts)
    return float(bound if exponent.offset is None else bound + exponent.offset.detach().abs())


def fill(values_rc: Tensor, same_rc: Tensor | None, value: float) -> Tensor:
    """In place: ``value`` where there is no negative."""
    return values_rc if same_rc is None else values_rc.masked_fill_(same_rc, value)


class Terms:
    """The exponents of a tile, and what their reductions share: the masked values, and their plain exponentials."""

    def __init__(self, tile: Tile, exponent: Exponent, overwrite: bool) -> None:
        """With ``overwrite`` the exponentials take the exponents' place, which nobody needs otherwise."""
        self._tile, self._e_rc, self._same_rc = tile, tile.exponent(exponent), tile.same_group(exponent)
        self._overwrite = overwrite
        self._exp: Tensor | None = None

    def exp(self) -> Tensor:
        """exp(e) with 0 in place of what is no negative; for exponents within RAW_LIMIT."""
        if self._exp is None:
            exp_rc = self._e_rc if self._overwrite else self._e_rc.clone()
            self._exp = fill(exp_(exp_rc), self._same_rc, 0.0)
        return self._exp

    def masked(self, value: float) -> Tensor:
        """Exponents with ``value`` in place of what is no negative."""
        return self._e_rc if self._same_rc is None else self._e_rc.masked_fill(self._same_rc, value)

    def relative_exp(self, shift: Tensor) -> Tensor:
        """exp(e - shift), 0 in place of what is no negative; overwritten by the next call."""
        buffer = self._tile.scratch.take("relative", *self._tile.shape)
        return exp_(torch.sub(self.masked(-torch.inf), shift, out=buffer))


def softplus(e_rc: Tensor) -> Tensor:
    """log(1 + e^e) to full relative precision at both ends, which torch's own is not (it is linear from 20 on).

    On the CPU ``log1p(x) = log(u) + (x - (u - 1)) / u`` with u = 1 + x as rounded, which is as exact and much faster there.
    """
    x_rc = exp_(e_rc.abs().neg_())
    if x_rc.device.type != "cpu":
        return x_rc.log1p_().add_(e_rc.clamp_min(0))
    u_rc = 1 + x_rc
    lost_rc = x_rc.sub_(u_rc - 1).div_(u_rc)
    return u_rc.log_().add_(lost_rc).add_(e_rc.clamp_min(0))


class Running:
    """A reduction under way: what the row anchors [b] and the column anchors [B] have seen so far."""

    def __init__(self, reduction: Reduction, raw: bool, operands: Operands) -> None:
        self.reduction, self._raw, self._offset = reduction, raw, operands.row_offset
        # Coefficients that are one number are the same on all ranks, and so is what follows from them.
        self.raw_everywhere = raw and all(part.coefficient.ndim == 0 for used, _ in reduction.over for part in used.parts)
        axes = list(dict.fromkeys(axis for _, axis in reduction.over))
        sizes: dict[Axis, int] = {"columns": operands.num_rows, "rows": operands.num_columns}
        like = next(iter(operands.rows.values()))
        self.totals = {axis: like.new_zeros(sizes[axis], dtype=operands.dtype) for axis in axes}
        self.maxima = {axis: torch.full_like(total, 0.0 if raw else _LOWEST) for axis, total in self.totals.items()}
        """What was subtracted before exp."""

    def add(self, terms: Terms, axis: Axis, tile: Tile) -> None:
        """What a tile has to say along one axis."""
        dim, at = (1, tile.rows_r) if axis == "columns" else (0, tile.columns_c)
        total, maximum = self.totals[axis], self.maxima[axis]
        if self.reduction.kind == "sum":
            total[at] += terms.masked(0.0).sum(dim)
        elif self.reduction.kind == "softplus":
            total[at] += softplus(terms.masked(-torch.inf)).sum(dim)
        elif self._raw:
            total[at] += terms.exp().sum(dim)
        else:
            higher = torch.maximum(maximum[at], terms.masked(-torch.inf).amax(dim))
            total[at] = total[at] * torch.exp(maximum[at] - higher) + terms.relative_exp(higher.unsqueeze(dim)).sum(dim)
            maximum[at] = higher

    def finish(self) -> Tensor:
        """Merged over axes: the value of this rank's anchors [b]."""
        if self.reduction.kind != "logsumexp":
            return torch.stack([self._own(total, axis) for axis, total in self.totals.items()]).sum(dim=0)
        logs = [self._own(total.log() + self.maxima[axis], axis) for axis, total in self.totals.items()]
        return torch.stack(logs).logsumexp(dim=0) if len(logs) > 1 else logs[0]

    def _own(self, values: Tensor, axis: Axis) -> Tensor:
        if axis == "columns":
            return values
        return values[self._offset : self._offset + gather.local_count(len(values))]


def merge_ranks(sums: list[Running]) -> None:
    """Column anchors met other rows on every rank: bring their sums to one maximum, then add; one exchange for all.

    Ranks may differ in whether their own exponents needed a maximum, and all must take part in the same exchanges: it is left
    out only where every rank knows that no rank has one.
    """
    open_ends = [running for running in sums if "rows" in running.totals]
    if not open_ends or gather.world_size() == 1:
        return
    maxima_RB = torch.stack([running.maxima["rows"] for running in open_ends])
    highest_RB = maxima_RB if all(running.raw_everywhere for running in open_ends) else gather.reduce_max(maxima_RB)
    totals_RB = torch.stack([running.totals["rows"] for running in open_ends])
    totals_RB = gather.reduce_sum(totals_RB * torch.exp(maxima_RB - highest_RB))
    for running, highest_B, total_B in zip(open_ends, highest_RB, totals_RB, strict=True):
        running.maxima["rows"], running.totals["rows"] = highest_B, total_B


class Anchors:
    """dL/dn and n of a reduction, for row anchors (local) and, if some exponent needs them, for all column anchors."""

    def __init__(self, reduction: Reduction, raw: bool, grad_b: Tensor, value_b: Tensor) -> None:
        self.reduction, self.raw = reduction, raw
        # Nothing flows through an anchor without negatives; its -inf must not meet a zero.
        empty_b = value_b.isneginf()
        self.grads = {"columns": grad_b.masked_fill(empty_b, 0.0)}
        self.values = {"columns": value_b.masked_fill(empty_b, 0.0)}

    def for_tile(self, axis: Axis, tile: Tile) -> tuple[Tensor, Tensor]:
        """Gradients and values that broadcast over the tile: [r, 1] or [1, c]."""
        dim, at = (1, tile.rows_r) if axis == "columns" else (0, tile.columns_c)
        return self.grads[axis][at].unsqueeze(dim), self.values[axis][at].unsqueeze(dim)


def gather_anchors(anchors: list[Anchors]) -> None:
    """Give column anchors of all ranks their gradients and values; one exchange for all reductions."""
    open_ends = [anchor for anchor in anchors if any(axis == "rows" for _, axis in anchor.reduction.over)]
    if not open_ends:
        return
    local_bN = torch.stack([part["columns"] for anchor in open_ends for part in (anchor.grads, anchor.values)], dim=1)
    all_NB = gather.gather_rows(local_bN).T.contiguous()
    for k, anchor in enumerate(open_ends):
        anchor.grads["rows"], anchor.values["rows"] = all_NB[2 * k], all_NB[2 * k + 1]


def weights(tile: Tile, exponent: Exponent, anchors: list[Anchors]) -> Tensor:
    """dL/de of one exponent in one tile, from every reduction of it; 0 where there is no negative."""
    e_rc = tile.exponent(exponent)
    factors: dict[Axis, Tensor] = {}  # what multiplies exp(e) itself, shared by both directions
    weight_rc: Tensor | None = None
    for anchor in anchors:
        for used, axis in anchor.reduction.over:
            if used is not exponent:
                continue
            grad, value = anchor.for_tile(axis, tile)
            if anchor.reduction.kind == "logsumexp" and anchor.raw:
                share = grad * torch.exp(-value)
                factors[axis] = factors[axis] + share if axis in factors else share
                continue
            if anchor.reduction.kind == "logsumexp":
                share_rc = exp_(e_rc - value).mul_(grad)
            elif anchor.reduction.kind == "softplus":
                share_rc = e_rc.sigmoid().mul_(grad)
            else:
                share_rc = grad.expand_as(e_rc).clone()
            weight_rc = share_rc if weight_rc is None else weight_rc.add_(share_rc)
    if factors:
        first, *second = factors.values()
        factor = torch.add(first, *second, out=tile.scratch.take("factor", *tile.shape)) if second else first
        shared_rc = exp_(e_rc).mul_(factor)  # the exponents themselves are not needed any more
        weight_rc = shared_rc if weight_rc is None else weight_rc.add_(shared_rc)
    assert weight_rc is not None, "an exponent that no reduction uses"
    return fill(weight_rc, tile.same_group(exponent), 0.0)
