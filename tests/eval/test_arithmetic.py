"""Embedding arithmetic: directions whose sums are known, ties, weights, and the same numbers on any number of ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pipeline.dist import World
from pipeline.errors import DataError
from pipeline.eval.arithmetic import SCALES, Edit, measure, requested, words
from tests.distributed import run_ranks

ALONE = World()


def grid_of_things() -> tuple[torch.Tensor, list[str]]:
    """Four things in three colours: thing + colour, each a direction of its own. Rows are unit, keys are "thing colour"."""
    thing, colour = torch.eye(7)[:4], torch.eye(7)[4:]
    keys = [f"{t}-{c}" for t in range(4) for c in "rgb"]
    return F.normalize((thing[:, None] + 0.6 * colour[None]).flatten(0, 1), dim=1), keys


def colour_edits(keys: list[str]) -> list[Edit]:
    notes = [
        {"edits": [{"from": key[-1], "to": to, "right": [key[:-1] + to], "kind": to} for to in "rgb" if to != key[-1]]}
        for key in keys
    ]
    return requested(notes, keys)


def test_what_adds_up_arrives_and_without_words_nothing_does() -> None:
    image, keys = grid_of_things()
    edits = colour_edits(keys)
    assert words(edits) == ["b", "g", "r"]
    words_of_colours = torch.eye(7)[[6, 5, 4]]
    found = measure(image, words_of_colours, edits, ALONE)
    assert (found["n"], found["images"], found["chance"]) == (24, 12, 1 / 11)
    assert (found["correct"], found["accuracy"], found["interval"]) == (24, 1.0, [1.0, 1.0])
    assert [entry["scale"] for entry in found["scales"]] == list(SCALES)
    # At scale 0 the two other colours of a thing are equally near: a tie, which is lost.
    assert found["scales"][0]["correct"] == 0
    assert {kind: part["n"] for kind, part in found["by_kind"].items()} == {"b": 8, "g": 8, "r": 8}
    # Words that mean other colours: red is taken for green, green for blue, blue for red.
    assert measure(image, words_of_colours.roll(1, dims=0), edits, ALONE)["correct"] == 0


def test_rates_are_weighted_and_any_right_answer_counts() -> None:
    image, keys = grid_of_things()
    edits = [
        Edit(0, "r", "g", (1, 4, 7), "", 3.0),  # arrives at 1
        Edit(0, "r", "b", (), "", 1.0),  # arrives at 2, but nothing is right
    ]
    found = measure(image, torch.eye(7)[[6, 5, 4]], edits, ALONE)
    assert (found["correct"], found["accuracy"]) == (1, 0.75)
    assert found["chance"] == pytest.approx(3 * 3 / 11 / 4)
    assert found["interval"] == [0.75, 0.75], "one image, which is drawn every time"
    assert "by_kind" not in found


@pytest.mark.parametrize(
    ("edit", "words_said"),
    [
        ({"from": "a", "to": "b"}, "KeyError: 'right'"),
        ({"from": "a", "to": "b", "right": ["z"]}, "KeyError: 'z'"),
        ({"from": "a", "to": 3, "right": ["y"]}, "needs two words, a positive weight, and right answers other than the sample"),
        ({"from": "a", "to": "b", "right": ["x"]}, "right answers other than the sample"),
        ({"from": "a", "to": "b", "right": ["y"], "weight": 0}, "a positive weight"),
        ("a -> b", "TypeError"),
    ],
)
def test_an_edit_that_cannot_be_scored_is_named(edit: Any, words_said: str) -> None:
    with pytest.raises(DataError, match=f"sample x: .*{words_said}"):
        requested([{"edits": [edit]}, {}], ["x", "y"])


def on_ranks(world: World) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    image, word = (F.normalize(torch.randn(size, 24, generator=generator), dim=1) for size in (101, 6))
    edits = [
        Edit(i % 101, str(i % 6), str((i * 7 + 1) % 6), ((i + 1) % 101, (i * i + 2) % 101), str(i % 3), 1 + i % 4)
        for i in range(150)
        if (i * i + 2) % 101 != i % 101
    ]
    return measure(image, word, edits, world)


def test_the_same_on_any_number_of_ranks() -> None:
    alone = on_ranks(ALONE)
    assert 0 < alone["correct"] < alone["n"]
    for world_size in (2, 3):
        assert run_ranks(on_ranks, world_size) == [alone] * world_size


def test_the_answer_is_that_of_simat_s_own_steps() -> None:
    """As the authors describe it: the nearest but the image itself, judged by an oracle, weighted."""
    generator = torch.Generator().manual_seed(2)
    image, word = (F.normalize(torch.randn(size, 8, generator=generator, dtype=torch.float64), dim=1) for size in (60, 5))
    oracle = torch.rand(60, 40, generator=generator)
    asked = [(q % 60, q % 5, (q + 1 + q % 3) % 5, q % 40, 1.0 + q % 7) for q in range(90)]
    hits, weights, edits = [], [], []
    for sample, old, new, target, weight in asked:
        order = (image @ (image[sample] + word[new] - word[old])).argsort(descending=True).tolist()
        nearest = order[0] if order[0] != sample else order[1]
        hits.append(float(oracle[nearest, target] > 0.5) * weight)
        weights.append(weight)
        right = tuple(i for i in range(60) if oracle[i, target] > 0.5 and i != sample)
        edits.append(Edit(sample, f"w{old}", f"w{new}", right, "", weight))
    assert measure(image, word, edits, ALONE)["accuracy"] == pytest.approx(sum(hits) / sum(weights), abs=1e-12)
