"""The test sets made of the bundled emoji: changes of one word, and styles of what training never saw."""

from __future__ import annotations

from collections import Counter

import pytest

from data_prep.recipes import emoji, open_recipe
from data_prep.recipes.emoji_edits import KINDS, edits
from data_prep.rows import Row


@pytest.fixture(scope="module")
def changed() -> dict[str, Row]:
    return {str(row.key): row for row in open_recipe("emoji-edits").rows()}


def test_every_emoji_is_there_and_every_kind_of_change(changed: dict[str, Row]) -> None:
    assert len(changed) == len(emoji.load()) == 1595
    kinds = Counter(edit["kind"] for row in changed.values() for edit in row.meta["edits"])
    assert kinds.keys() == KINDS.keys()
    assert min(kinds.values()) >= 10
    assert kinds.total() == 1090


def test_an_edit_leads_to_the_emoji_that_the_words_say(changed: dict[str, Row]) -> None:
    for row in changed.values():
        for edit, negative in zip(row.meta["edits"], row.meta["negatives"], strict=True):
            (right,) = edit["right"]
            assert right != row.key
            assert changed[right].captions[0] == row.captions[0].replace(edit["from"], edit["to"], 1)
            assert negative == {"caption": changed[right].captions[0], "kind": edit["kind"]}
            back = [(other["to"], other["right"]) for other in changed[right].meta["edits"]]
            assert (edit["from"], [row.key]) in back, "what leads there leads back"


def test_whole_words_change_once() -> None:
    names = {"man": "m", "woman": "w", "down-right arrow": "dr", "left-right arrow": "lr", "red red": "rr", "blue blue": "bb"}
    assert edits("woman", names) == [{"from": "woman", "to": "man", "right": ["m"], "kind": "gender"}]
    assert edits("down-right arrow", names) == [], "parts of a compound are no words"
    assert edits("red red", names) == []


def test_styles_hold_the_same_unseen_things() -> None:
    rows = list(open_recipe("emoji-styles").rows())
    by_style = {style: [row for row in rows if row.split == style] for style in ("noto", "twemoji", "fluent")}
    assert sum(map(len, by_style.values())) == len(rows) == 3 * 164
    things = [[(row.key, row.label, row.captions) for row in found] for found in by_style.values()]
    assert things[0] == things[1] == things[2]
    assert not any(row.meta["seen"] for row in rows)
    assert {row.image.rpartition("/")[2] for row in by_style["fluent"]} == {"fluent.zip"}
    assert {row.label for row in rows} <= set(range(9))
