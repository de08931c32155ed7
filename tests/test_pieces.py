"""Ranges of flattened tensors: shares are disjoint and complete, whoever counts."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pieces import Piece, share, whole


@given(length=st.integers(0, 1000), world_size=st.integers(1, 64))
def test_shares_are_disjoint_complete_and_even(length: int, world_size: int) -> None:
    ranges = [share(length, rank, world_size) for rank in range(world_size)]
    assert [number for start, stop in ranges for number in range(start, stop)] == list(range(length))
    sizes = [stop - start for start, stop in ranges]
    assert max(sizes) - min(sizes) <= 1


def test_a_piece_knows_its_end_and_its_tensor() -> None:
    piece = Piece("weight", "w", (2, 3), 4, torch.tensor([5.0, 6.0]))
    assert (piece.stop, piece.numel) == (6, 6)


def test_one_rank_may_hold_everything() -> None:
    weights = {"w": torch.arange(6.0).view(2, 3), "scalar": torch.tensor(7.0)}
    snapshot = whole(weights)
    assert snapshot.shapes == {"w": (2, 3), "scalar": ()}
    assert [(p.name, p.start, p.stop, p.numel) for p in snapshot.pieces] == [("w", 0, 6, 6), ("scalar", 0, 1, 1)]
    snapshot.pieces[0].values[0] = 9.0
    assert weights["w"][0, 0] == 9.0, "a view of live memory"
