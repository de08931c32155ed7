"""The bundled emoji with changes of one word: for embedding arithmetic, and with false captions for compositionality.

    unisphere shards recipe emoji-edits data/emoji-edits       # data/emoji-edits/edits: 1,595 drawings of the held-out style

Two emoji whose names differ by one word of a kind (man artist, woman artist; red heart, blue heart) are each other's edit:
the json member of the first says ``{"from": "man", "to": "woman", "right": [KEY OF THE SECOND], "kind": "gender"}``, and the
second's name is a false caption of the first. Only what is drawn counts: a change that leads to no emoji is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from data_prep.recipes import emoji
from data_prep.rows import EvalTexts, Row, Source

if TYPE_CHECKING:
    from data_prep.recipes import Options

KINDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "gender": (("man", "woman", "person"), ("men", "women", "people"), ("boy", "girl", "child")),
    "hair": (("red hair", "white hair", "curly hair", "blond hair", "bald", "beard"),),
    "colour": (("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white"),),
    "direction": (("up", "down", "left", "right"), ("leftwards", "rightwards")),
    "size": (("small", "medium", "large"),),
    "creature": (("cat", "face"), ("dog", "cat", "cow", "horse", "mouse", "pig", "rabbit", "tiger", "monkey", "dragon")),
    "hour": (("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),),
}
"""Words that exchange for each other, by what they say."""


def source(options: Options) -> Source:
    """Rows of the one split ``edits``."""
    credits = (str(emoji.ASSETS / "LICENSES" / "CREDITS.md"),)
    return Source("emoji-edits", partial(_rows, emoji.load()), {"edits": EvalTexts()}, companions=credits)


def edits(label: str, names: dict[str, str]) -> list[dict[str, Any]]:
    """The changes of one word that lead from an emoji to others; ``names``: label -> key of all emoji.

    >>> edits("red heart", {"red heart": "red-heart", "blue heart": "blue-heart", "sparkling heart": "sparkling-heart"})
    [{'from': 'red', 'to': 'blue', 'right': ['blue-heart'], 'kind': 'colour'}]
    """
    found = []
    for kind, groups in KINDS.items():
        for old, new in ((old, new) for group in groups for old in group for new in group if new != old):
            changed, times = re.subn(rf"(?<![\w-]){old}(?![\w-])", new, label)
            if times == 1 and changed in names:
                found.append({"from": old, "to": new, "right": [names[changed]], "kind": kind})
    return found


def _rows(concepts: Sequence[emoji.Emoji]) -> Iterator[Row]:
    names = {one.label: one.name for one in concepts}
    labels = {name: label for label, name in names.items()}
    for number, one in enumerate(concepts):
        changes = edits(one.label, names)
        negatives = [{"caption": labels[change["right"][0]], "kind": change["kind"]} for change in changes]
        yield Row(
            number,
            image=f"zip://{one.name}.webp::{emoji.ASSETS / f'{emoji.HELD_OUT_STYLE}.zip'}",
            captions=(one.label,),
            key=one.name,
            split="edits",
            meta={"group": one.name, "seen": one.seen, "edits": changes, "negatives": negatives},
        )
