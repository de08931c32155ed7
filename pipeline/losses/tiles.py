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

so memory is O(K b d + tile), never b x B. Cosines of the first pass may be kept for the second while a given memory lasts:
three matrix products for those tiles instead of four. A domain may be a mixture of two rows of another (geodesic mixup): its
cosines are combinations of that one's, without a product of their own.

Over ranks: each rank has its own rows and all columns (gathered once, all domains in one collective). Reductions along rows are
merged over ranks by (max, sum); column gradients go home by one reduce-scatter.
Each rank's loss is about its own anchors, and the mean over ranks is the global loss, as ``gather.py`` explains. Tiles are
visited in a fixed order and nothing is accumulated atomically, so results are repeatable bit for bit.

    operands.py   rows and gathered columns in the precision of products, masks
    tile.py       one tile: cosines, exponents, and the way back
    sums.py       reductions under way, and the weights they give to exponents in pass 2

Shapes: b local rows, B global, d width; r x c one tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.losses import gather, sums
from pipeline.losses.operands import Operands, Precision
from pipeline.losses.reductions import Domains, Mixture, Plan, Reduction, plan_of
from pipeline.losses.tile import Gradients, Kept, Scratch, Tile


@dataclass(frozen=True)
class TileOptions:
    """How the engine works; results differ by rounding only."""

    tile: int | None = None
    """Rows and columns of a tile; None: 512 on the CPU, where it fits the cache, 4096 on a GPU, which is to be filled."""
    keep_mb: float = 0
    """Memory for cosines of the first pass that are kept for the second."""
    precision: Precision = Precision()


def reduce_tiles(domains: Domains, reductions: Sequence[Reduction], options: TileOptions | None = None) -> list[Tensor]:
    """The value of each reduction for this rank's anchors, [b] each, differentiable in embeddings, coefficients and offsets.

    Args:
        domains: what the exponents name. Rows are unit vectors, so that exponents are bounded.
        reductions: what to compute. An anchor without negatives has -inf (logsumexp) or 0 (the other kinds).
        options: tile size, memory, number formats.
    """
    plan = plan_of(reductions, domains)
    inputs = [
        *(_tensor(domains, name) for name in plan.names),
        *plan.scalars,
        *(_tensor(domains, name) for name in plan.mixtures),
    ]
    values: tuple[Tensor, ...] = _Tiles.apply(plan, domains, options or TileOptions(), *inputs)
    return list(values)


def _tensor(domains: Domains, name: str) -> Tensor:
    domain = domains[name]
    return domain.weights_n2 if isinstance(domain, Mixture) else domain.rows_bd


class _Tiles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, domains: Domains, options: TileOptions, *inputs: Tensor) -> tuple[Tensor, ...]:
        operands = Operands(plan, domains, options.precision)
        kept = Kept(options.keep_mb * 2**20)
        raw = [sums.is_raw(reduction) for reduction in plan.reductions]
        running = [sums.Running(reduction, raw[k], operands) for k, reduction in enumerate(plan.reductions)]
        # The exponentials may take an exponent's place where nothing but they is asked of it.
        needed = {
            exponent for k, r in enumerate(plan.reductions) if not raw[k] or r.kind != "logsumexp" for exponent, _ in r.over
        }
        for tile in _tiles(plan, domains, operands, kept, options.tile):
            for exponent in plan.exponents:
                terms = sums.Terms(tile, exponent, overwrite=exponent not in needed)
                for one in running:
                    for used, axis in one.reduction.over:
                        if used is exponent:
                            one.add(terms, axis, tile)
        sums.merge_ranks(running)
        values = [one.finish() for one in running]
        ctx.plan, ctx.domains, ctx.options, ctx.operands, ctx.kept, ctx.raw = plan, domains, options, operands, kept, raw
        ctx.save_for_backward(*values)
        ctx.set_materialize_grads(False)
        return tuple(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        plan, domains, operands = ctx.plan, ctx.domains, ctx.operands
        # A reduction without a gradient (the loss of one term alone is differentiated, say) costs nothing.
        given = zip(plan.reductions, ctx.raw, grads, ctx.saved_tensors, strict=True)
        anchors = [sums.Anchors(r, raw, grad_b, value_b) for r, raw, grad_b, value_b in given if grad_b is not None]
        sums.gather_anchors(anchors)
        used = {exponent for anchor in anchors for exponent, _ in anchor.reduction.over}
        found, column_grads_BKd = _empty_gradients(plan, domains, operands)
        for tile in _tiles(plan, domains, operands, ctx.kept, ctx.options.tile):
            place = 0
            for exponent in plan.exponents:
                if exponent in used:
                    own = found.scalars[place : place + exponent.num_scalars]
                    tile.pull(exponent, sums.weights(tile, exponent, anchors), own)
                place += exponent.num_scalars
            tile.push(found)
        if column_grads_BKd is not None:
            home_bKd = gather.scatter_sum(column_grads_BKd)
            for k, name in enumerate(plan.columns):
                found.rows[name] += home_bKd[:, k]
        return (None, None, None, *found.rows.values(), *found.scalars, *found.mixtures.values())


def _empty_gradients(plan: Plan, domains: Domains, operands: Operands) -> tuple[Gradients, Tensor | None]:
    """Zeros for all gradients, and the tensor that holds those of all columns; with one rank rows and columns share theirs."""
    rows = {name: torch.zeros_like(_tensor(domains, name)) for name in plan.names}
    column_grads_BKd = None
    columns = {name: rows[name] for name in plan.columns}
    if gather.world_size() > 1:
        width = next(iter(rows.values())).shape[1]
        options: dict[str, Any] = {"dtype": operands.dtype, "device": operands.device}
        column_grads_BKd = torch.zeros(operands.num_columns, len(plan.columns), width, **options)
        columns = {name: column_grads_BKd[:, k] for k, name in enumerate(plan.columns)}
    mixtures = {name: torch.zeros_like(_tensor(domains, name)) for name in plan.mixtures}
    return Gradients(rows, columns, mixtures, [torch.zeros_like(scalar) for scalar in plan.scalars]), column_grads_BKd


def _tiles(plan: Plan, domains: Domains, operands: Operands, kept: Kept, size: int | None) -> Iterator[Tile]:
    """Tiles in a fixed order, row by row; their size is a multiple of the blocks within which mixtures have their partners."""
    block = math.lcm(*(mixture.block for name in plan.mixtures if isinstance(mixture := domains[name], Mixture)))
    size = -(-(size or (4096 if operands.device.type == "cuda" else 512)) // block) * block
    scratch = Scratch(operands, size)
    for i in range(0, operands.num_rows, size):
        for j in range(0, operands.num_columns, size):
            rows_r, columns_c = slice(i, min(i + size, operands.num_rows)), slice(j, min(j + size, operands.num_columns))
            yield Tile(domains, operands, scratch, kept, rows_r, columns_c)
