"""True against false captions: won, lost and tied comparisons are counted exactly."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.errors import DataError
from pipeline.eval.composition import FalseCaption, false_captions, measure, measure_pairs, pair_places
from tests.peers import run_peer


def circle(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_texts_and_objects_are_both_false_captions() -> None:
    notes = [{"negatives": ["a cat"]}, {}, {"negatives": [{"caption": "a dog", "kind": "swap"}, "an owl"]}]
    assert false_captions(notes, ["a", "b", "c"]) == [
        FalseCaption(0, "a cat", ""),
        FalseCaption(2, "a dog", "swap"),
        FalseCaption(2, "an owl", ""),
    ]


@pytest.mark.parametrize("given", ["a cat", [3], [{"text": "a cat"}], [""]])
def test_anything_else_is_refused_by_name(given: object) -> None:
    with pytest.raises(DataError, match='sample b: "negatives" must be a list of texts'):
        false_captions([{}, {"negatives": given}], ["a", "b"])


def test_a_tie_is_lost_and_kinds_are_counted_apart() -> None:
    comparisons = [FalseCaption(0, "", "near"), FalseCaption(0, "", "far"), FalseCaption(1, "", "far"), FalseCaption(1, "", "")]
    # Images at 0 and 90 degrees; the captions are 10 degrees off; false ones as near, farther, nearer, farther.
    found = measure(circle(0, 90), circle(10, 80), circle(-10, 40, 85, 200), comparisons)
    assert (found["n"], found["correct"], found["accuracy"], found["samples"]) == (4, 2, 0.5, 2)
    assert {kind: (part["n"], part["correct"]) for kind, part in found["by_kind"].items()} == {"far": (2, 1), "near": (1, 0)}
    assert found["chance"] == 0.5
    assert found["interval"] == [0.5, 0.5], "each image wins one of its two, whichever images are drawn"


def test_pairs_are_scored_as_winoground_does() -> None:
    # Pair 1 is right both ways. In pair 2 both captions lie nearest to the first image.
    images, texts = circle(0, 90, 0, 90), circle(5, 80, 10, 20)
    places = pair_places([{"pair": 1}, {"pair": 1}, {"pair": "x"}, {"pair": "x"}], "abcd")
    assert places == [(0, 1), (2, 3)]
    found = measure_pairs(images, texts, places)
    assert [found[score]["correct"] for score in ("text", "image", "group")] == [2, 1, 1]
    assert (found["n"], found["image"]["accuracy"], found["group"]["chance"]) == (2, 0.5, 1 / 6)


def test_a_pair_is_two() -> None:
    with pytest.raises(DataError, match=r"\"pair\" '1' is given by 3 samples \(a, b, d\); a pair is two of them"):
        pair_places([{"pair": 1}, {"pair": "1"}, {}, {"pair": 1}], "abcd")


@pytest.mark.slow
def test_clip_benchmark_gives_pairs_the_same_scores() -> None:
    """Its names are the other way round: its image score asks captions to find their image, as ours does."""
    generator = torch.Generator().manual_seed(3)
    image = torch.nn.functional.normalize(torch.randn(40, 2, 5, generator=generator), dim=2)
    text = torch.nn.functional.normalize(image + 0.9 * torch.randn(40, 2, 5, generator=generator), dim=2)
    code = (
        "import sys, torch; from clip_benchmark.metrics.image_caption_selection import evaluate\n"
        "image, text = (torch.tensor(eval(word)).reshape(40, 2, 5) for word in sys.argv[1:])\n"
        "class Model:\n"
        "    def encode_image(self, pixels): return image[pixels[:, 0, 0, 0].long() // 2, pixels[:, 0, 0, 0].long() % 2]\n"
        "    def encode_text(self, tokens): return text[tokens // 2, tokens % 2]\n"
        "pixels = torch.arange(80.0).reshape(40, 2, 1, 1, 1)\n"
        "texts = [[2 * i, 2 * i + 1] for i in range(40)]\n"
        "found = evaluate(Model(), [(pixels, texts)], torch.tensor, 'cpu', amp=False)\n"
        "print(found['text_acc'], found['image_acc'], found['acc'])"
    )
    theirs = run_peer(code, str(image.flatten().tolist()), str(text.flatten().tolist())).split()[-3:]
    found = measure_pairs(image.flatten(0, 1), text.flatten(0, 1), [(2 * i, 2 * i + 1) for i in range(40)])
    ours = [found[score]["accuracy"] for score in ("text", "image", "group")]
    assert ours == pytest.approx([float(value) for value in theirs], abs=1e-6)
    assert 0 < ours[2] < min(ours[:2])
