"""One tile: its cosines by pair of domains, the exponents made of them, and the way back from their gradients.

Cosines are matrix products of rows and columns, or, where one side is a mixture, combinations of two rows or columns of other
cosines: with ``m = u x + w x'`` the tile of <m, y> is ``u <x, y> + w <x', y>``, and x' is in the same tile.

Shapes: r x c one tile, d width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.losses.operands import Operands
from pipeline.losses.reductions import Domains, Exponent, Mixture

_LOG2_E = math.log2(math.e)


def exp_(values: Tensor) -> Tensor:
    """e^values, in place. On the CPU by way of 2^x, which takes a quarter of the time and is off by 2e-6 at values of 40."""
    return values.mul_(_LOG2_E).exp2_() if values.device.type == "cpu" else values.exp_()


class Scratch:
    """Memory of one tile's size for each purpose, reused from tile to tile: allocating it anew costs as much as filling it."""

    def __init__(self, operands: Operands, tile: int) -> None:
        self._options: dict[str, Any] = {"dtype": operands.dtype, "device": operands.device}
        self._size, self._buffers = tile * tile, dict[object, Tensor]()

    def take(self, purpose: object, r: int, c: int) -> Tensor:
        """A contiguous [r, c] tensor with whatever it held before."""
        if purpose not in self._buffers:
            self._buffers[purpose] = torch.empty(self._size, **self._options)
        return self._buffers[purpose][: r * c].view(r, c)


class Kept:
    """Matrix products of the first pass, kept for the second as long as there is room; nothing else depends on it."""

    def __init__(self, num_bytes: float) -> None:
        self._left, self._tiles = num_bytes, dict[object, Tensor]()

    def get(self, key: object) -> Tensor | None:
        """The product of that tile, if it was kept."""
        return self._tiles.get(key)

    def offer(self, key: object, r: int, c: int, operands: Operands) -> Tensor | None:
        """Memory for a product that will be kept, or None."""
        needed = r * c * operands.dtype.itemsize
        if needed > self._left:
            return None
        self._left -= needed
        self._tiles[key] = torch.empty(r, c, dtype=operands.dtype, device=operands.device)
        return self._tiles[key]


@dataclass
class Gradients:
    """What pass 2 fills: the loss's gradients by domain, by mixture, and of coefficients and offsets."""

    rows: dict[str, Tensor]
    columns: dict[str, Tensor]
    mixtures: dict[str, Tensor]
    scalars: list[Tensor] = field(default_factory=list)


class Tile:
    """The tile of rows ``rows_r`` and columns ``columns_c``."""

    def __init__(
        self, domains: Domains, operands: Operands, scratch: Scratch, kept: Kept, rows_r: slice, columns_c: slice
    ) -> None:
        self.rows_r, self.columns_c, self.scratch = rows_r, columns_c, scratch
        self.shape = (rows_r.stop - rows_r.start, columns_c.stop - columns_c.start)
        self._domains, self._operands, self._kept = domains, operands, kept
        self._cosines: dict[tuple[str, str], Tensor] = {}
        self._cosine_grads: dict[tuple[str, str], Tensor] = {}
        self._masks: dict[tuple[str, str], Tensor | None] = {}

    def cosine(self, row: str, column: str) -> Tensor:
        """<row_i, column_j> [r, c]."""
        if (row, column) not in self._cosines:
            self._cosines[row, column] = self._mixed(row, column) if self._mixture(row, column) else self._product(row, column)
        return self._cosines[row, column]

    def _product(self, row: str, column: str) -> Tensor:
        key = (row, column, self.rows_r.start, self.columns_c.start)
        known = self._kept.get(key)
        if known is not None:
            return known
        buffer = self._kept.offer(key, *self.shape, self._operands)
        if buffer is None:
            buffer = self.scratch.take((row, column), *self.shape)
        rows_rd, columns_cd = self._operands.rows[row][self.rows_r], self._operands.columns[column][self.columns_c]
        found_rc = self._operands.product(rows_rd, columns_cd.T, buffer)
        return found_rc if found_rc is buffer else buffer.copy_(found_rc)

    def _mixture(self, row: str, column: str) -> _Mixing | None:
        """How a pair with a mixture comes from a pair with one mixture less; rows first."""
        for name, dim, at in ((row, 0, self.rows_r), (column, 1, self.columns_c)):
            domain = self._domains[name]
            if isinstance(domain, Mixture):
                start = at.start + (self._operands.row_offset if dim == 0 else 0)  # its place among all ranks' samples
                partner_n = domain.partner_B[start : start + self.shape[dim]] - start
                pair = (domain.of, column) if dim == 0 else (row, domain.of)
                return _Mixing(name, pair, dim, at, domain.weights_n2[at].detach(), partner_n)
        return None

    def _mixed(self, row: str, column: str) -> Tensor:
        mixing = self._mixture(row, column)
        assert mixing is not None
        plain_rc = self.cosine(*mixing.pair)
        found_rc = torch.mul(plain_rc, mixing.weight(0), out=self.scratch.take((row, column), *self.shape))
        return found_rc.addcmul_(self._partners(plain_rc, mixing), mixing.weight(1))

    def _partners(self, values_rc: Tensor, mixing: _Mixing) -> Tensor:
        buffer = self.scratch.take("partners", *self.shape)
        return torch.index_select(values_rc, mixing.dim, mixing.partner_n, out=buffer)

    def exponent(self, exponent: Exponent) -> Tensor:
        """The exponents [r, c], unmasked."""
        first, *others = exponent.parts
        cosine_rc = self.cosine(first.row, first.column)
        e_rc = self.scratch.take(exponent, *self.shape)
        torch.mul(cosine_rc, self._cut(first.coefficient.detach()), out=e_rc)
        for part in others:
            e_rc.addcmul_(self.cosine(part.row, part.column), self._cut(part.coefficient.detach()))
        return e_rc if exponent.offset is None else e_rc.add_(exponent.offset.detach())

    def _cut(self, coefficient: Tensor) -> Tensor:
        """The tile's share of a coefficient of shape [], [b, 1] or [1, B]."""
        if coefficient.ndim == 0:
            return coefficient
        return coefficient[self.rows_r] if coefficient.shape[1] == 1 else coefficient[:, self.columns_c]

    def same_group(self, exponent: Exponent) -> Tensor | None:
        """Which entries are no negatives: bool [r, c], or None where all are."""
        pair = exponent.parts[0].row, exponent.parts[0].column
        if pair not in self._masks:
            self._masks[pair] = self._operands.groups.same(*pair, self.rows_r, self.columns_c)
        return self._masks[pair]

    def pull(self, exponent: Exponent, weight_rc: Tensor, scalar_grads: list[Tensor]) -> None:
        """Add dL/de to the gradients of the exponent's cosines, and of its coefficients and offset, ``scalar_grads``."""
        if exponent.offset is not None:
            scalar_grads[len(exponent.parts)] += weight_rc.sum()
        for part, grad in zip(exponent.parts, scalar_grads, strict=False):
            coefficient = part.coefficient
            if coefficient.requires_grad:
                cosine_rc = self.cosine(part.row, part.column)
                if coefficient.ndim == 0:
                    grad += torch.dot(weight_rc.flatten(), cosine_rc.flatten())
                elif coefficient.shape[1] == 1:
                    grad[self.rows_r] += (weight_rc * cosine_rc).sum(dim=1, keepdim=True)
                else:
                    grad[:, self.columns_c] += (weight_rc * cosine_rc).sum(dim=0, keepdim=True)
            share = self._cut(coefficient.detach())
            # The last part may overwrite the weights: nobody reads them after it.
            self._add((part.row, part.column), weight_rc.mul_(share) if part is exponent.parts[-1] else weight_rc * share)

    def _add(self, pair: tuple[str, str], grad_rc: Tensor) -> None:
        """Add to the gradient of a pair's cosines; the first to come may become it."""
        self._cosine_grads[pair] = self._cosine_grads[pair].add_(grad_rc) if pair in self._cosine_grads else grad_rc

    def push(self, grads: Gradients) -> None:
        """Add the tile's share of the gradients of mixtures' weights, and of rows and columns."""
        for _ in range(2):  # a pair of two mixtures becomes one of one, then of none
            for pair in list(self._cosine_grads):
                if mixing := self._mixture(*pair):
                    self._unmix(mixing, self._cosine_grads.pop(pair), grads)
        rows, columns = self._operands.rows, self._operands.columns
        for (row, column), grad_rc in self._cosine_grads.items():
            short_rc = self._operands.round(grad_rc)
            self._operands.add_product(grads.rows[row][self.rows_r], short_rc, columns[column][self.columns_c])
            self._operands.add_product(grads.columns[column][self.columns_c], short_rc.T, rows[row][self.rows_r])

    def _unmix(self, mixing: _Mixing, grad_rc: Tensor, grads: Gradients) -> None:
        """From the gradient of a pair with a mixture to those of its weights and of the pair that it comes from."""
        plain_rc, along = self.cosine(*mixing.pair), 1 - mixing.dim
        weight_grad_n2 = grads.mixtures[mixing.name][mixing.at]
        weight_grad_n2[:, 0] += (grad_rc * plain_rc).sum(along)
        weight_grad_n2[:, 1] += (grad_rc * self._partners(plain_rc, mixing)).sum(along)
        to_partners_rc = grad_rc * mixing.weight(1)
        self._add(mixing.pair, (grad_rc * mixing.weight(0)).index_add_(mixing.dim, mixing.partner_n, to_partners_rc))


@dataclass(frozen=True)
class _Mixing:
    """How the tile of a pair with a mixture comes from another pair's: along ``dim``, with these weights and partners."""

    name: str
    pair: tuple[str, str]
    dim: int
    at: slice
    weights_n2: Tensor
    partner_n: Tensor

    def weight(self, k: int) -> Tensor:
        """Weights of the sample itself (0) or of its partner (1), [r, 1] or [1, c]."""
        return self.weights_n2[:, k].unsqueeze(1 - self.dim)
