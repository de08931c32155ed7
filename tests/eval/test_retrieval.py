from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline.dist import World
from pipeline.errors import DataError
from pipeline.eval.retrieval import CUTOFFS, recalls
from pipeline.eval.scores import to_grid

ALONE = World()


def unit_rows(n: int, d: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def obvious(query: torch.Tensor, query_owner: list[int], gallery: torch.Tensor, gallery_owner: list[int]) -> list[int]:
    """The definition, one pair at a time."""
    ranks = []
    for row, owner in zip(to_grid(query), query_owner, strict=True):
        scores = [float(row @ column) for column in to_grid(gallery)]
        best = max(score for score, other in zip(scores, gallery_owner, strict=True) if other == owner)
        ranks.append(1 + sum(s >= best for s, other in zip(scores, gallery_owner, strict=True) if other != owner))
    return ranks


@pytest.mark.parametrize("seed", range(3))
def test_recalls_equal_the_definition(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 4, (40,), generator=generator)
    owner = torch.repeat_interleave(torch.arange(40), counts)
    image, text = unit_rows(40, 3, seed), unit_rows(len(owner), 3, seed + 10)
    text[5], text[7], image[3] = text[20], text[21], image[4]  # ties
    unseen = torch.rand(40, generator=generator) < 0.3
    result = recalls(image, text, owner, ALONE, unseen)
    i2t = obvious(image, list(range(40)), text, owner.tolist())
    t2i = obvious(text, owner.tolist(), image, list(range(40)))
    for k in CUTOFFS:
        assert result["image_to_text"][f"correct@{k}"] == sum(rank <= k for rank in i2t)
        assert result["text_to_image"][f"correct@{k}"] == sum(rank <= k for rank in t2i)
        expected = sum(rank <= k for rank, o in zip(t2i, owner.tolist(), strict=True) if unseen[o])
        assert result["unseen"]["text_to_image"][f"correct@{k}"] == expected
    assert result["text_to_image"]["n"] == len(owner)
    assert result["image_to_text"]["n"] == 40
    assert result["unseen"]["image_to_text"]["n"] == int(unseen.sum()) > 0
    assert result["image_to_text"]["recall@5"] == sum(rank <= 5 for rank in i2t) / 40


def test_any_caption_may_find_its_image() -> None:
    image = torch.eye(2)
    text = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])  # image 0 has a wrong and a right caption
    result = recalls(image, text, torch.tensor([0, 0, 1]), ALONE)
    # The wrong caption of image 0 ties with the right caption of image 1, so image 1 is not found first.
    assert result["image_to_text"]["correct@1"] == 1
    assert result["text_to_image"]["correct@1"] == 2
    assert "unseen" not in result


def test_a_collapsed_model_finds_nothing() -> None:
    same = torch.tensor([[0.6, 0.8]]).expand(20, 2)
    result = recalls(same, same, torch.arange(20), ALONE)
    assert [result["text_to_image"][f"recall@{k}"] for k in CUTOFFS] == [0, 0, 0]
    assert [result["image_to_text"][f"recall@{k}"] for k in CUTOFFS] == [0, 0, 0]


def test_no_unseen_queries_is_no_recall() -> None:
    rows = unit_rows(4, 8, 0)
    result = recalls(rows, rows, torch.arange(4), ALONE, torch.zeros(4, dtype=torch.bool))
    assert result["unseen"]["text_to_image"]["n"] == 0
    assert result["unseen"]["text_to_image"]["recall@1"] is None
    assert result["text_to_image"]["recall@1"] == 1.0


def test_an_image_without_caption_is_an_error() -> None:
    rows = unit_rows(4, 8, 0)
    with pytest.raises(DataError, match="2 of 4 samples have no caption, the first is sample 1"):
        recalls(rows, rows[:3], torch.tensor([0, 0, 3]), ALONE)
