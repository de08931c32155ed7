"""Embedding arithmetic: does the image, moved by the difference of two words, arrive at the picture that the change describes?

    edits = requested(data.notes, data.keys)                   # man artist - "man" + "woman" -> woman artist
    measure(image_Nd, word_Wd, edits, word_rows, world)        # {"n": 918, "accuracy": 0.31, "interval": [...], "chance": ...}

SIMAT's protocol (Couairon et al. 2022): for an image x and a change of one word into another,

    q = x + scale * (word embedding of "to" - word embedding of "from")

is looked up among all images of the set but x itself. The answer is right if the nearest is one of those that the change asks
for; a wrong one that is as near counts against the model. Measured at several scales; 0 is the image's own nearest neighbour,
that is, what is right without any arithmetic, and ``accuracy`` is that at scale 1. Words are given to the text tower as they
are, without a template.

Each sample's json member brings its changes: ``{"edits": [{"from": "man", "to": "woman", "right": [KEY, ...]}]}``, optionally
with ``kind`` (numbers are also given by kind) and ``weight`` (rates are weighted means). Where nothing is right, nothing
arrives. ``simat.py`` makes such a set of SIMAT's own data; the recipe ``emoji-edits`` makes one of the bundled emoji.

Shapes: N images, Q edits, W words, d = embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import dist
from pipeline.dist import World
from pipeline.errors import DataError
from pipeline.eval.intervals import interval
from pipeline.eval.scores import my_rows, score_rows, to_grid

SCALES = (0.0, 0.5, 1.0, 1.5, 2.0)


class Edit(NamedTuple):
    """A change of one image: which sample, the words, the samples that it may lead to, and what it counts."""

    sample: int
    old: str
    new: str
    right: tuple[int, ...]
    kind: str
    weight: float


def requested(notes: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[Edit]:
    """The changes that a set asks for, sample by sample.

    Raises:
        DataError: an edit without words, or with a right answer that is no other sample of the set.
    """
    place = {key: sample for sample, key in enumerate(keys)}
    return [_edit(sample, item, keys, place) for sample, note in enumerate(notes) for item in note.get("edits", [])]


def _edit(sample: int, item: Any, keys: Sequence[str], place: Mapping[str, int]) -> Edit:
    try:
        old, new, right = item["from"], item["to"], tuple(sorted(place[key] for key in item["right"]))
        weight = float(item.get("weight", 1.0))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f'sample {keys[sample]}: an edit is {{"from": TEXT, "to": TEXT, "right": [KEY, ...]}} with keys of this set; '
            f"{type(error).__name__}: {error} in {str(item)[:80]}"
        ) from error
    if sample in right or not isinstance(old, str) or not isinstance(new, str) or weight <= 0:
        raise DataError(
            f"sample {keys[sample]}: the edit {old!r} -> {new!r} needs two words, a positive weight, and right answers "
            f"other than the sample itself"
        )
    return Edit(sample, old, new, right, str(item.get("kind", "")), weight)


def words(edits: Sequence[Edit]) -> list[str]:
    """The different words of all edits, sorted: W texts to embed."""
    return sorted({word for edit in edits for word in (edit.old, edit.new)})


def measure(image_Nd: Tensor, word_Wd: Tensor, edits: Sequence[Edit], world: World) -> dict[str, Any]:
    """How often the arithmetic arrives, at every scale; at scale 1 also by kind. The same on every rank.

    Args:
        image_Nd: unit rows of all images.
        word_Wd: unit rows of ``words(edits)``.
        edits: from ``requested``.
        world: who shares the work.
    """
    row = {word: number for number, word in enumerate(words(edits))}
    device = image_Nd.device
    sample_Q = torch.tensor([edit.sample for edit in edits], device=device)
    old_Q, new_Q = (
        torch.tensor([row[word] for word in column], device=device)
        for column in zip(*((e.old, e.new) for e in edits), strict=True)
    )
    image_Nd, word_Wd = to_grid(image_Nd), to_grid(word_Wd)
    weight = np.array([edit.weight for edit in edits])
    owner = np.array([edit.sample for edit in edits])
    hits = {}
    for scale in SCALES:
        moved_Qd = image_Nd[sample_Q] + scale * (word_Wd[new_Q] - word_Wd[old_Q])
        # Of length 1, so that scores on the grid are exact; that changes no ranking.
        hit_Q = _arrived(to_grid(F.normalize(moved_Qd, dim=1)), image_Nd, edits, world)
        hits[scale] = hit_Q.cpu().numpy()
    kinds = np.array([edit.kind for edit in edits])
    by_kind = {
        kind: {
            **_rate(hits[1.0][chosen], weight[chosen], owner[chosen]),
            "chance": _chance([e for e in edits if e.kind == kind], len(image_Nd)),
        }
        for kind in sorted(set(kinds.tolist()) - {""})
        for chosen in [kinds == kind]
    }
    return {
        **_rate(hits[1.0], weight, owner),
        "images": len(image_Nd),
        "chance": _chance(edits, len(image_Nd)),
        "scales": [{"scale": scale, **_rate(hit, weight, owner)} for scale, hit in hits.items()],
        **({"by_kind": by_kind} if by_kind else {}),
    }


def _arrived(query_Qd: Tensor, image_Nd: Tensor, edits: Sequence[Edit], world: World) -> Tensor:
    """Whether the nearest image, the query's own left out, is a right one; bool [Q]. Both matrices from ``to_grid``."""
    mine = my_rows(len(query_Qd), world)
    own_edits = edits[mine]
    parts = [torch.zeros(0, dtype=torch.bool, device=image_Nd.device)]
    for rows, score_QN in score_rows(query_Qd[mine], image_Nd):
        right_QN = torch.zeros_like(score_QN, dtype=torch.bool)
        for number, edit in enumerate(own_edits[rows]):
            right_QN[number, list(edit.right)] = True
            score_QN[number, edit.sample] = -torch.inf
        best_right_Q = score_QN.masked_fill(~right_QN, -torch.inf).amax(dim=1)
        best_wrong_Q = score_QN.masked_fill(right_QN, -torch.inf).amax(dim=1)
        parts.append(best_right_Q > best_wrong_Q)
    return dist.all_gather_rows(torch.cat(parts))


def _chance(edits: Sequence[Edit], num_images: int) -> float:
    """What drawing one of the other images at random would get."""
    total = sum(edit.weight for edit in edits)
    return sum(edit.weight * len(edit.right) for edit in edits) / (total * (num_images - 1))


def _rate(hit: Any, weight: Any, owner: Any) -> dict[str, Any]:
    """Count, weighted rate and its interval; edits of one image are drawn together."""
    _, place = np.unique(owner, return_inverse=True)
    won, asked = np.bincount(place, weights=hit * weight), np.bincount(place, weights=weight)
    return {
        "n": len(hit),
        "correct": int(hit.sum()),
        "accuracy": float((hit * weight).sum() / weight.sum()),
        "interval": interval(won, asked),
    }
