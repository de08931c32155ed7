"""The bundled emoji as a coarser test set than ``emoji`` has: which of CLDR's groups (food, animals, flags, ...) is it?

    unisphere shards recipe emoji-groups data/emoji-groups      # data/emoji-groups/eval, CLIP_benchmark's layout

1,595 drawings of the style that ``emoji`` does not train on, in the 9 groups that the bundle has.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from data_prep.recipes import emoji
from data_prep.rows import EvalTexts, Row, Source

if TYPE_CHECKING:
    from data_prep.recipes import Options

WORDS = {
    "activities": "activities",
    "animals-nature": "animals and nature",
    "flags": "flags",
    "food-drink": "food and drink",
    "objects": "objects",
    "people-body": "people and body parts",
    "smileys-emotion": "smileys and emotions",
    "symbols": "symbols",
    "travel-places": "travel and places",
}


def source(options: Options) -> Source:
    """Rows of the one split ``eval``."""
    texts = EvalTexts(tuple(WORDS.values()), emoji.TEMPLATES)
    credits = (str(emoji.ASSETS / "LICENSES" / "CREDITS.md"),)
    return Source("emoji-groups", partial(_rows, emoji.load()), {"eval": texts}, companions=credits)


def _rows(concepts: list[emoji.Emoji]) -> Iterator[Row]:
    for number, one in enumerate(concepts):
        yield Row(
            number,
            image=f"zip://{one.name}.webp::{emoji.ASSETS / f'{emoji.HELD_OUT_STYLE}.zip'}",
            captions=(one.label,),
            key=one.name,
            split="eval",
            label=list(WORDS).index(one.group),
            meta={"group": one.name, "seen": one.seen},
        )
