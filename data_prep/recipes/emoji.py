"""The bundled emoji as a dataset: 1,595 emoji in three drawing styles, with names and keywords.

    unisphere shards build recipe:emoji data/emoji

    train          noto and twemoji drawings of nine concepts in ten
    eval-style     all fluent drawings: a style never trained on; classes are CLDR's subgroups ("drink", ...)
    eval-concepts  noto and twemoji drawings of the tenth concept: things never trained on; retrieval only

Held out is decided by a hash of the concept's name, so that it never moves when concepts are added. The json member of
every sample says ``style``, ``concept``, ``subgroup`` and ``seen`` (whether training saw the concept); ``group`` is
the concept, so that two drawings of one thing are never negatives of each other.

Pictures and words lie in ``data_prep/assets/emoji``, with their licences; ``emoji_bundle`` rebuilds them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.rows import EvalTexts, Row, Source
from pipeline.errors import DataError

if TYPE_CHECKING:
    from data_prep.recipes import Options

ASSETS = Path(__file__).parent.parent / "assets" / "emoji"
TRAIN_STYLES = ("noto", "twemoji")
HELD_OUT_STYLE = "fluent"
HELD_OUT_CONCEPTS = 0.1
TEMPLATES = (
    "{c}",
    "an emoji of {c}",
    "a drawing of {c}",
    "a small picture of {c}",
    "an icon showing {c}",
    "a colourful symbol: {c}",
    "{c}, drawn as an emoji",
)


@dataclass(frozen=True)
class Emoji:
    """One concept, with a label that no other concept has."""

    name: str  # ASCII words joined by "-"; the file name in the archives
    label: str
    keywords: tuple[str, ...]
    subgroup: str  # as CLDR writes it: "face-smiling"
    group: str = ""  # one of CLDR's 10, of which the bundle has 9: "smileys-emotion"

    @property
    def seen(self) -> bool:
        """Whether training shows this concept: decided by the name alone."""
        digest = hashlib.sha256(self.name.encode()).digest()
        return int.from_bytes(digest[:8], "big") >= HELD_OUT_CONCEPTS * 2**64


def source(options: Options | None = None, assets: Path = ASSETS) -> Source:
    """The rows of the three splits; ``options`` change nothing. Raises DataError when the bundle is not installed."""
    emoji = load(assets)
    classes = class_names(emoji)
    eval_sets = {"eval-style": EvalTexts(tuple(classes.values()), TEMPLATES), "eval-concepts": EvalTexts()}
    credits = (str(assets / "LICENSES" / "CREDITS.md"),)
    return Source("emoji", partial(_rows, assets, emoji, list(classes)), eval_sets, companions=credits)


def load(assets: Path = ASSETS) -> list[Emoji]:
    """All concepts in order of name. Raises DataError when the bundle is not there."""
    path = assets / "concepts.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"the emoji bundle is missing: {error}; install the project with its data files") from error
    concepts = [json.loads(line) for line in lines]
    labels = unique_labels([concept["label"] for concept in concepts], [concept["name"] for concept in concepts])
    return [
        Emoji(concept["name"], label, tuple(concept["keywords"]), concept["subgroup"], concept["group"])
        for concept, label in zip(concepts, labels, strict=True)
    ]


def unique_labels(labels: Sequence[str], names: Sequence[str]) -> list[str]:
    """``labels`` with the name's words added in brackets wherever two are equal but for case.

    >>> unique_labels(["Face", "face", "cat"], ["face-a", "face-b", "cat"])
    ['Face (face a)', 'face (face b)', 'cat']
    """
    times = Counter(label.lower() for label in labels)
    words = (name.replace("-", " ") for name in names)
    return [f"{label} ({word})" if times[label.lower()] > 1 else label for label, word in zip(labels, words, strict=True)]


def class_names(emoji: Sequence[Emoji]) -> dict[str, str]:
    """Subgroup -> its human words, sorted; the place of a subgroup is its class number.

    >>> class_names([Emoji("tea", "tea", (), "drink"), Emoji("grin", "grin", (), "face-smiling")])
    {'drink': 'drink', 'face-smiling': 'face smiling'}
    """
    return {subgroup: subgroup.replace("-", " ") for subgroup in sorted({one.subgroup for one in emoji})}


def captions(emoji: Emoji) -> tuple[str, ...]:
    """Captions to draw from evenly: the label, which counts three times, sentences with it, keywords, the category.

    Keywords are those that say more than the label does.

    >>> captions(Emoji("beer-mug", "beer mug", ("ale", "bar", "beer"), "drink"))[3:]
    ('a drawing of beer mug', 'an emoji of beer mug', 'beer mug, ale, bar', 'ale bar', 'beer mug, drink', 'an emoji of drink')
    """
    label_words = set(emoji.label.lower().replace(":", "").split())
    category = emoji.subgroup.replace("-", " ")
    new = [word for word in emoji.keywords if word.lower() not in label_words]
    texts = [
        *[emoji.label] * 3,
        f"a drawing of {emoji.label}",
        f"an emoji of {emoji.label}",
        ", ".join([emoji.label, *new[:2]]),
        " ".join(new[:3]),
        f"{emoji.label}, {category}",
        f"an emoji of {category}",
    ]
    return tuple(text for text in texts if text)


def _rows(assets: Path, emoji: Sequence[Emoji], subgroups: Sequence[str]) -> Iterator[Row]:
    number = 0
    # A keyword of one concept may be the name of a held-out one ("train"): no drawing may be called that in training.
    held_out_labels = {one.label.lower() for one in emoji if not one.seen}
    for one in emoji:
        several = tuple(text for text in captions(one) if text.lower() not in held_out_labels)
        for style in (*TRAIN_STYLES, HELD_OUT_STYLE):
            is_train_style = style in TRAIN_STYLES
            yield Row(
                number,
                image=f"zip://{one.name}.webp::{assets / f'{style}.zip'}",
                captions=several if is_train_style and one.seen else (one.label,),
                key=f"{style}-{one.name}",
                split=("train" if one.seen else "eval-concepts") if is_train_style else "eval-style",
                label=None if is_train_style else subgroups.index(one.subgroup),
                meta={
                    "group": one.name,
                    "style": style,
                    "concept": one.name,
                    "subgroup": one.subgroup,
                    "seen": one.seen,
                },
            )
            number += 1
