"""Captions: chosen, edited and set into templates as often as asked, the same for the same generator, off by default."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from pipeline.config import TextConfig
from pipeline.data import text
from pipeline.data.plan import sample_rng

CAPTION = "one two three four five six seven eight nine ten"
EDITS = TextConfig(edit_probability=1.0)


def rng(n: int) -> np.random.Generator:
    return sample_rng(0, 0, str(n))


def test_one_of_several_captions_or_the_first():
    captions = ("a", "b", "c")
    counts = Counter(text.choose(captions, TextConfig(), rng(n)) for n in range(600))
    assert set(counts) == set(captions)
    assert min(counts.values()) > 160
    assert {text.choose(captions, TextConfig(caption="first"), rng(n)) for n in range(20)} == {"a"}


def test_the_choice_uses_one_number_whatever_the_settings():
    followers = set()
    for captions, cfg in ((("a",), TextConfig()), (("a", "b", "c"), TextConfig()), (("a", "b"), TextConfig(caption="first"))):
        generator = rng(1)
        text.choose(captions, cfg, generator)
        followers.add(generator.random())
    assert len(followers) == 1


def test_nothing_happens_by_default():
    assert not text.is_on(TextConfig())
    odd = "  kept   as it is, \u3000 spaces too "
    assert text.augmented(odd, TextConfig(), rng(0)) == odd


def test_deletion_leaves_out_the_asked_for_share_and_keeps_order():
    cfg = dataclasses.replace(EDITS, delete=0.3, swap=0.0)
    lengths = []
    for n in range(400):
        words = text.augmented(CAPTION, cfg, rng(n)).split()
        assert words == [word for word in CAPTION.split() if word in words]
        lengths.append(len(words))
    assert np.mean(lengths) == pytest.approx(7, abs=0.25)
    assert {len(text.augmented(CAPTION, dataclasses.replace(cfg, delete=1.0), rng(n)).split()) for n in range(50)} == {1}


def test_swaps_keep_the_words_and_repeats_add_to_them():
    swapped = {text.augmented(CAPTION, dataclasses.replace(EDITS, delete=0.0, swap=0.2), rng(n)) for n in range(100)}
    assert {tuple(sorted(found.split())) for found in swapped} == {tuple(sorted(CAPTION.split()))}
    moved = [sum(a != b for a, b in zip(found.split(), CAPTION.split(), strict=True)) for found in swapped]
    assert max(moved) == 4
    longer = text.augmented(CAPTION, dataclasses.replace(EDITS, delete=0.0, swap=0.0, repeat=0.2), rng(3)).split()
    assert len(longer) == 12
    assert set(longer) == set(CAPTION.split())


def test_one_word_and_no_word_stay():
    cfg = TextConfig(edit_probability=1.0, delete=1.0, swap=1.0, repeat=1.0)
    assert [text.augmented(caption, cfg, rng(0)) for caption in ("word", "")] == ["word", ""]


def test_templates_as_often_as_asked():
    cfg = TextConfig(templates=("a photo of {}.", "{}, drawn"), template_probability=0.5)
    counts = Counter(text.augmented("a {cat}", cfg, rng(n)) for n in range(800))
    assert set(counts) == {"a {cat}", "a photo of a {cat}.", "a {cat}, drawn"}
    assert counts["a {cat}"] == pytest.approx(400, abs=45)
    assert counts["a {cat}, drawn"] == pytest.approx(200, abs=40)


def test_the_same_generator_gives_the_same_words():
    cfg = TextConfig(edit_probability=0.7, repeat=0.3, templates=("x {}", "y {}"), template_probability=0.5)
    found = [text.augmented(CAPTION, cfg, rng(n)) for n in range(50)]
    assert found == [text.augmented(CAPTION, cfg, rng(n)) for n in range(50)]
    assert len(set(found)) > 25
    assert CAPTION in found
