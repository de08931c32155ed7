"""The differentiable gather that makes every contrastive term exact at any world size.

Each rank scores its own ``b`` rows against the ``B = W b`` gathered columns and averages over its own rows; the engine then
averages parameter gradients over ranks. For that mean to be the gradient of the one global loss, the gather's backward must
return to every rank the *sum* of what all ranks' losses say about its rows:

    forward   all-gather       y = [x_0; x_1; ...; x_{W-1}]
    backward  reduce-scatter   dL/dx_r = sum over ranks q of (dL_q/dy)[rows of r]

Anything else is silently wrong while the loss value stays the same: a detached gather loses the column half of the gradient,
a gather whose backward averages is too small by W against every term that needs no gather.
(B: global batch, b: local batch, W: ranks, d: embedding width.)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor

# torch 2.14 renamed these two; older releases have only the old names.
_all_gather = getattr(torch_dist, "all_gather_single", None) or torch_dist.all_gather_into_tensor
_reduce_scatter_on_device = getattr(torch_dist, "reduce_scatter_single", None) or torch_dist.reduce_scatter_tensor


def _reduce_scatter(own_b: Tensor, columns_B: Tensor, op: Any) -> None:
    """Sum over ranks, each keeping its rows. On gloo parts are exchanged and summed here: half the CPU time of its own way."""
    if torch_dist.get_backend() != "gloo":
        _reduce_scatter_on_device(own_b, columns_B, op=op)
        return
    parts_B = torch.empty_like(columns_B)
    torch_dist.all_to_all_single(parts_B, columns_B)
    torch.sum(parts_B.view(-1, *own_b.shape), dim=0, out=own_b)  # in the order of ranks: repeatable


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_bd: Tensor) -> Tensor:
        size = torch_dist.get_world_size()
        columns_Bd = rows_bd.new_empty((size * rows_bd.shape[0], *rows_bd.shape[1:]))
        _all_gather(columns_Bd, rows_bd.contiguous())
        return columns_Bd

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad_Bd,) = grads
        grad_bd = grad_Bd.new_empty((grad_Bd.shape[0] // torch_dist.get_world_size(), *grad_Bd.shape[1:]))
        _reduce_scatter(grad_bd, grad_Bd.contiguous(), op=torch_dist.ReduceOp.SUM)
        return grad_bd


def gather_rows(rows_bd: Tensor) -> Tensor:
    """Concatenate every rank's ``[b, ...]`` to ``[B, ...]`` in rank order, with the exact gradient described above.

    ``b`` must be equal on all ranks (the data plan guarantees it). Without a process group this is the identity.
    """
    if not torch_dist.is_initialized() or torch_dist.get_world_size() == 1:
        return rows_bd
    gathered: Tensor = _GatherRows.apply(rows_bd)
    return gathered


def gather_ids(ids_b: Tensor) -> Tensor:
    """Concatenate every rank's integer ids ``[b]`` to ``[B]`` in rank order; integers carry no gradient."""
    return gather_rows(ids_b)


def scatter_sum(columns_B: Tensor) -> Tensor:
    """Sum ``[B, ...]`` over ranks and keep this rank's ``[b, ...]``: what ``gather_rows`` does to gradients."""
    if not torch_dist.is_initialized() or torch_dist.get_world_size() == 1:
        return columns_B
    own_b = columns_B.new_empty((local_count(len(columns_B)), *columns_B.shape[1:]))
    _reduce_scatter(own_b, columns_B.contiguous(), op=torch_dist.ReduceOp.SUM)
    return own_b


def reduce_max(values: Tensor) -> Tensor:
    """Elementwise maximum over ranks; carries no gradient."""
    return _reduce(values, torch_dist.ReduceOp.MAX)


def reduce_sum(values: Tensor) -> Tensor:
    """Elementwise sum over ranks; carries no gradient."""
    return _reduce(values, torch_dist.ReduceOp.SUM)


def _reduce(values: Tensor, op: Any) -> Tensor:
    if not torch_dist.is_initialized() or torch_dist.get_world_size() == 1:
        return values
    result = values.clone()
    torch_dist.all_reduce(result, op=op)
    return result


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return reduce_sum(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return reduce_sum(grads[0])


def all_reduce_sum(values: Tensor) -> Tensor:
    """Elementwise sum over ranks; the backward sums over ranks as well, so a loss of it, equal on all ranks, stays exact."""
    total: Tensor = _AllReduceSum.apply(values)
    return total


def world_size() -> int:
    """Number of ranks."""
    return torch_dist.get_world_size() if torch_dist.is_initialized() else 1


def local_count(global_count: int) -> int:
    """This rank's share of ``global_count`` rows."""
    return global_count // torch_dist.get_world_size() if torch_dist.is_initialized() else global_count


def row_offset(local_rows: int) -> int:
    """Index of this rank's first row among the gathered ones."""
    return torch_dist.get_rank() * local_rows if torch_dist.is_initialized() else 0
