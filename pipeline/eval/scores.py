"""Cosines without rounding error, and the rank of the right answer among candidates.

Two captions may have the same embedding, and then their scores tie. A floating-point matrix product breaks such ties at
random: it adds in another order for another matrix shape, so the last bit of a score depends on how the work was cut
up, and a count of hits changes with the number of ranks. Here it cannot. ``to_grid`` rounds unit rows to multiples of
2**-25; every product is then a multiple of 2**-50, every partial sum stays below 2, and float64 holds all of them
exactly, in any order:

    score_QG = to_grid(query_Qd) @ to_grid(gallery_Gd).T      # the same bits on any device, in chunks of any size

The price is an error of at most 2**-26 per coordinate, less than rounding in an fp32 forward pass adds up to.

Shapes: Q queries, G gallery entries (candidates), d = embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.dist import World
from pipeline.errors import NumericsError

_GRID = 2.0**25
_MAX_SCORES = 1 << 21
"""Scores held at once (16 MiB in float64). Larger blocks are asked of the system anew each time, which takes twice as long."""


def to_grid(unit_Nd: Tensor) -> Tensor:
    """Unit rows [N, d] rounded to multiples of 2**-25, as float64.

    Raises:
        NumericsError: a row is not finite or not of length 1 within 1e-3, so that cosines would be wrong silently.
    """
    rows_Nd = unit_Nd.to(torch.float64)
    length_N = rows_Nd.norm(dim=1)
    if not bool(((length_N - 1).abs() < 1e-3).all()):  # also false for nan and inf
        bad = int((~((length_N - 1).abs() < 1e-3)).nonzero()[0])
        raise NumericsError(
            f"embedding {bad} of {len(rows_Nd)} has length {float(length_N[bad])} instead of 1; the model did not "
            f"normalise it, or its weights are broken"
        )
    return (rows_Nd * _GRID).round() / _GRID


def score_rows(query_Qd: Tensor, gallery_Gd: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of the score matrix: (rows, scores [rows, G]); both arguments from ``to_grid``."""
    step = max(1, _MAX_SCORES // max(1, len(gallery_Gd)))
    for start in range(0, len(query_Qd), step):
        rows = slice(start, min(start + step, len(query_Qd)))
        yield rows, query_Qd[rows] @ gallery_Gd.T


def my_rows(count: int, world: World) -> slice:
    """This rank's contiguous share of ``count`` rows; shares differ by at most one row and may be empty."""
    return slice(count * world.rank // world.size, count * (world.rank + 1) // world.size)
