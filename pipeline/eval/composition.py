"""Whether a model tells what a caption says from what it nearly says: false captions beside the true one, and mixed-up pairs.

    found = false_captions(data.notes)                      # every image that brings false captions, with them
    measure(image_Nd, true_Nd, negative_Md, found)          # {"n": 820, "accuracy": 0.71, "interval": [...], "by_kind": {...}}
    pairs(image_Pd2, text_Pd2, ...)                         # Winoground's text, image and group score

A sample's json member brings what is needed:

    "negatives": ["two dogs on a sofa", {"caption": "a sofa on a dog", "kind": "swap"}]     as in SugarCrepe, Hsieh et al. 2023
    "pair": "17"        exactly two samples share it, each caption false for the other's image: Thrush et al. 2022, Winoground

A comparison is won if the image's cosine with the first of its own captions is higher than that with the false one; a tie is
lost. Chance is a half. Of pairs the text score asks both images for their caption, the image score both captions for their
image, and the group score for all four (chance a quarter, a quarter, a sixth). Every rank computes all of it.

Shapes: N samples, M comparisons, P pairs, d = embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import DataError
from pipeline.eval.intervals import interval
from pipeline.eval.scores import to_grid

PAIR_CHANCE = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}


class FalseCaption(NamedTuple):
    """One comparison: the place of the image in the set, what is false about it, and of which kind that is."""

    sample: int
    caption: str
    kind: str


def false_captions(notes: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[FalseCaption]:
    """All comparisons of a set, sample by sample.

    Raises:
        DataError: ``negatives`` of a sample's json member are something else than texts, or objects with ``caption``.
    """
    found = []
    for sample, note in enumerate(notes):
        given = note.get("negatives", [])
        for item in given if isinstance(given, list) else [None]:
            text = item.get("caption") if isinstance(item, dict) else item
            if not isinstance(text, str) or not text.strip():
                raise DataError(
                    f'sample {keys[sample]}: "negatives" must be a list of texts, or of {{"caption": ..., "kind": ...}}; '
                    f"got {str(given)[:80]}"
                )
            found.append(FalseCaption(sample, text, str(item.get("kind", "")) if isinstance(item, dict) else ""))
    return found


def measure(image_Nd: Tensor, true_Nd: Tensor, false_Md: Tensor, comparisons: Sequence[FalseCaption]) -> dict[str, Any]:
    """Share of comparisons won, over all and by kind.

    Args:
        image_Nd: unit rows of all samples.
        true_Nd: each sample's first caption.
        false_Md: the false caption of each comparison.
        comparisons: from ``false_captions``.
    """
    sample_M = torch.tensor([comparison.sample for comparison in comparisons], device=image_Nd.device)
    image_Md, true_Md = to_grid(image_Nd)[sample_M], to_grid(true_Nd)[sample_M]
    won_M = (image_Md * true_Md).sum(dim=1) > (image_Md * to_grid(false_Md)).sum(dim=1)
    won, owners = won_M.cpu().numpy(), sample_M.cpu().numpy()
    kinds = np.array([comparison.kind for comparison in comparisons])
    result = {**_rate(won, owners), "samples": len(set(owners.tolist())), "chance": 0.5}
    named = sorted(set(kinds.tolist()) - {""})
    return result | ({"by_kind": {kind: _rate(won[kinds == kind], owners[kinds == kind]) for kind in named}} if named else {})


def pair_places(notes: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[tuple[int, int]]:
    """The two samples of every pair, in the set's order. Raises DataError for a pair that is not of two."""
    places: dict[str, list[int]] = {}
    for sample, note in enumerate(notes):
        if "pair" in note:
            places.setdefault(str(note["pair"]), []).append(sample)
    for pair, found in places.items():
        if len(found) != 2:
            names = ", ".join(keys[sample] for sample in found[:3])
            raise DataError(f'"pair" {pair!r} is given by {len(found)} samples ({names}); a pair is two of them')
    return [(found[0], found[1]) for found in places.values()]


def measure_pairs(image_Nd: Tensor, true_Nd: Tensor, places: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Winoground's three scores over pairs of samples; each is a share of pairs."""
    left_P, right_P = torch.tensor(places, device=image_Nd.device).T
    image_Nd, true_Nd = to_grid(image_Nd), to_grid(true_Nd)

    def cosine(images: Tensor, texts: Tensor) -> Tensor:
        return (image_Nd[images] * true_Nd[texts]).sum(dim=1)

    own_left, own_right = cosine(left_P, left_P), cosine(right_P, right_P)
    left_image_right_text, right_image_left_text = cosine(left_P, right_P), cosine(right_P, left_P)
    text = (own_left > left_image_right_text) & (own_right > right_image_left_text)
    image = (own_left > right_image_left_text) & (own_right > left_image_right_text)
    scores = {"text": text, "image": image, "group": text & image}
    owners = np.arange(len(places))
    return {
        "n": len(places),
        **{name: {**_rate(won.cpu().numpy(), owners), "chance": PAIR_CHANCE[name]} for name, won in scores.items()},
    }


def _rate(won: Any, owners: Any) -> dict[str, Any]:
    """Count, rate and interval; comparisons of one image are drawn together."""
    _, place = np.unique(owners, return_inverse=True)
    hits = np.bincount(place, weights=won.astype(np.float64))
    return {
        "n": len(won),
        "correct": int(won.sum()),
        "accuracy": int(won.sum()) / len(won),
        "interval": interval(hits, np.bincount(place)),
    }
