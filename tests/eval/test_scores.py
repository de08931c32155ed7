from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline.dist import World
from pipeline.errors import NumericsError
from pipeline.eval.scores import my_rows, score_rows, to_grid


def unit_rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("d", [2, 64, 513])
def test_scores_do_not_depend_on_how_the_product_is_cut_up(d: int) -> None:
    query, gallery = to_grid(unit_rows(300, d, 1)), to_grid(unit_rows(200, d, 2))
    whole = query @ gallery.T
    for rows in (1, 7, 64):
        assert torch.equal(torch.cat([chunk @ gallery.T for chunk in query.split(rows)]), whole)
    backwards = query.flip(1) @ gallery.flip(1).T  # another order of additions
    assert torch.equal(backwards, whole)


def test_equal_embeddings_tie_exactly_wherever_they_stand() -> None:
    query, gallery = to_grid(unit_rows(301, 96, 1)), to_grid(unit_rows(333, 96, 2))
    score = query @ torch.cat([gallery, gallery]).T
    assert torch.equal(score[:, :333], score[:, 333:])


def test_the_grid_is_finer_than_fp32_rounding() -> None:
    rows = unit_rows(1000, 512)
    assert float((to_grid(rows) - rows.double()).abs().max()) <= 2**-26
    cosine_error = (to_grid(rows) @ to_grid(rows).T - rows.double() @ rows.double().T).abs().max()
    assert float(cosine_error) < 1e-7


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.5])
def test_rows_that_are_not_unit_are_refused(value: float) -> None:
    rows = unit_rows(5, 3)
    rows[3] = torch.tensor([value, 0.0, 0.0])
    with pytest.raises(NumericsError, match=f"embedding 3 of 5 has length {value} instead of 1"):
        to_grid(rows)


def test_score_rows_covers_the_matrix() -> None:
    query, gallery = to_grid(unit_rows(10, 4, 1)), to_grid(unit_rows(3, 4, 2))
    pieces = list(score_rows(query, gallery))
    assert torch.equal(torch.cat([score for _, score in pieces]), query @ gallery.T)
    assert not list(score_rows(query[:0], gallery))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 6, 20])
def test_my_rows_is_a_partition(count: int, size: int) -> None:
    shares = [my_rows(count, World(rank, size, rank, size)) for rank in range(size)]
    assert [i for share in shares for i in range(count)[share]] == list(range(count))
    lengths = [share.stop - share.start for share in shares]
    assert max(lengths) - min(lengths) <= 1
