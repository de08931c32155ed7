"""The same emoji in three styles as three test sets, to see what a change of style costs.

    unisphere shards recipe emoji-styles data/emoji-styles       # data/emoji-styles/noto, twemoji, fluent

Only the tenth of the concepts that the recipe ``emoji`` never trains on: for a model trained on that, the things are new in
all three sets, and the style is new in ``fluent`` alone. Classes are CLDR's 9 groups, so that there are accuracy and retrieval.

    unisphere eval RUN --sets data/emoji-styles/{noto,twemoji,fluent}
    unisphere eval RUN --table --group styles=noto,twemoji,fluent
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from data_prep.recipes import emoji
from data_prep.recipes.emoji_groups import WORDS
from data_prep.rows import EvalTexts, Row, Source

if TYPE_CHECKING:
    from data_prep.recipes import Options

STYLES = (*emoji.TRAIN_STYLES, emoji.HELD_OUT_STYLE)


def source(options: Options) -> Source:
    """Rows of three splits, one for each style."""
    texts = EvalTexts(tuple(WORDS.values()), emoji.TEMPLATES)
    credits = (str(emoji.ASSETS / "LICENSES" / "CREDITS.md"),)
    return Source("emoji-styles", partial(_rows, emoji.load()), dict.fromkeys(STYLES, texts), companions=credits)


def _rows(concepts: Sequence[emoji.Emoji]) -> Iterator[Row]:
    unseen = [one for one in concepts if not one.seen]
    for number, (style, one) in enumerate((style, one) for style in STYLES for one in unseen):
        yield Row(
            number,
            image=f"zip://{one.name}.webp::{emoji.ASSETS / f'{style}.zip'}",
            captions=(one.label,),
            key=one.name,
            split=style,
            label=list(WORDS).index(one.group),
            meta={"group": one.name, "style": style, "seen": one.seen},
        )
