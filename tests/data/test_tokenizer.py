"""Token ids are open_clip's, and a text tower that cannot hold them is refused before training."""

from __future__ import annotations

import pickle

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import tokenizer
from pipeline.errors import ConfigError

TEXTS = ["a red apple", "Beer Mug", "", "x" * 500, "naïve café — 日本"]


def test_clip_byte_pairs_are_open_clips():
    ours = tokenizer.build({"text_cfg": {"context_length": 77, "vocab_size": 49408}})(TEXTS)
    assert ours.dtype == torch.int64
    assert torch.equal(ours, open_clip.get_tokenizer("ViT-B-32")(TEXTS))


STOCK = open_clip.tokenizer.SimpleTokenizer()
OURS = tokenizer.build({})

ODD_TEXTS = [
    *(
        " ",
        "\t\n",
        "a  b\u3000c\u00a0d",
        "\u200bzero\u200bwidth",
        "a\x00b\x07c\x1fd\x7fe",
        "\x1b[31mred\x1b[0m",
        "\x85next\u2028line",
    ),
    *(
        "fish &amp; chips",
        "&lt;b&gt;",
        "&amp;amp;amp;",
        "&#39;s",
        "&#x1f34e;",
        "&nbsp;",
        "&#28;",
        "&bogus; & &",
        "AT&T's <i>&eacute;</i>",
    ),
    *("it's we've I'm they'll he'd DON'T 'S ''ll", "<start_of_text>", "a<END_OF_TEXT>b <end_of_text>s", "<|endoftext|>"),
    *(
        "👩‍👩‍👧‍👦 👍🏽 🇺🇳 ☕️ 1️⃣",
        "ΑΣ Σ ΣΑΣ ὈΔΥΣΣΕΎΣ",
        "İstanbul DIŞ ıI",
        "ﬁne ﬂow",
        "ｆｕｌｌ　ｗｉｄｔｈ",
        "schÃ¶n â€œquotedâ€\x9d",
        "“curly” ‘quotes’ …",
    ),
    *(
        "日本語のテキスト",
        "ภาษาไทย",
        "العربية",
        "हिन्दी",
        "한국어 조선말",
        "e\u0301 vs é",
        "½ ² Ⅷ ٣ 10,000.50",
        "\ud83c\udf4e",
        "\ufffd\ufeff",
    ),
    *(
        "http://example.com/a?b=c&d=e#f" * 3,
        "x" * 300,
        "!?" * 100,
        "1" * 100,
        "a-b_c/d\\e|f~g`h",
        "$€£¥ #1 @home 50%",
        "\N{SOFT HYPHEN}soft\xadhyphen",
    ),
]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_texts_have_open_clips_ids(text):
    assert OURS.encode(text) == STOCK.encode(text)
    assert OURS.encode(text) == STOCK.encode(text), "also when its words have been seen"


WORDS = st.sampled_from(
    [*"aZé9&;<>'’ \t\u00a0ßΣ🍎\u200d", "the", "DOG", "&amp;", "&#", "'ll", "<end_of_text>", "日本", "\x1c", "\r\n"]
)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(max_size=40), st.lists(WORDS, max_size=15).map("".join), st.text(st.characters(max_codepoint=127), max_size=60)
    )
)
def test_any_text_has_open_clips_ids(text):
    try:
        expected = STOCK.encode(text)
    except UnicodeEncodeError:  # half of a surrogate pair that cleaning left alone
        with pytest.raises(UnicodeEncodeError):
            OURS.encode(text)
        return
    assert OURS.encode(text) == expected


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
@pytest.mark.parametrize("context_length", [1, 2, 8, 77])
def test_batches_are_open_clips(clean, context_length):
    texts = [*TEXTS, *ODD_TEXTS]
    stock = open_clip.tokenizer.SimpleTokenizer(context_length=context_length, clean=clean)
    ours = tokenizer.build({"text_cfg": {"context_length": context_length, "tokenizer_kwargs": {"clean": clean}}})
    assert isinstance(ours, tokenizer.BytePairs)
    assert torch.equal(ours(texts), stock(texts))
    assert ours([]).shape == (0, context_length)


def test_other_options_take_open_clips_own_tokenizer():
    ours = tokenizer.build({"text_cfg": {"tokenizer_kwargs": {"additional_special_tokens": ["<a b>"]}}})
    assert torch.equal(ours(["<a b> c"]), open_clip.tokenizer.SimpleTokenizer(additional_special_tokens=["<a b>"])(["<a b> c"]))


def test_trimming_cuts_nothing_but_padding_and_only_where_asked():
    trimmed = tokenizer.build({}, trim=True)
    for texts, length in ((["a", "b c"], 8), (["one two three four five six", "a"], 8), (["a b c d e f g"], 16), (TEXTS, 77)):
        ids, whole = trimmed(texts), OURS(texts)
        assert ids.shape == (len(texts), length)
        assert torch.equal(ids, whole[:, :length])
        assert not whole[:, length:].any()
        assert whole.shape[1] == 77
    assert trimmed([]).shape == (0, 0)


def test_what_a_tokenizer_remembers_is_bounded(monkeypatch):
    monkeypatch.setattr(tokenizer, "MAX_CACHED_WORDS", 10)
    ours = tokenizer.build({})
    for number in range(30):
        ours([f"word{number} {'y' * 40}{number}"])
    assert len(ours._words) <= 10
    assert len(ours._stock.cache) < 20
    assert ours.encode("word3 <end_of_text>") == STOCK.encode("word3 <end_of_text>")


def test_context_length_comes_from_the_text_tower():
    short = tokenizer.build({"text_cfg": {"context_length": 8}})
    assert short(TEXTS).shape == (5, 8)
    assert tokenizer.build({})(TEXTS).shape == (5, 77)
    long_caption = short(["one two three four five six seven eight nine"])[0]
    assert long_caption[-1] == 49407, "a truncated text still ends with the end token"


def test_a_tokenizer_travels_to_loader_processes():
    built = tokenizer.build({"text_cfg": {"context_length": 8}})
    assert torch.equal(pickle.loads(pickle.dumps(built))(TEXTS), built(TEXTS))


def test_a_vocabulary_that_is_too_small():
    with pytest.raises(ConfigError, match="vocab_size = 1000, but .* ids up to 49407; set vocab_size to 49408"):
        tokenizer.build({"text_cfg": {"vocab_size": 1000}})


def test_a_named_tokenizer_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer .*nothing.* cannot be loaded: .*; install transformers"):
        tokenizer.build({"text_cfg": {"hf_tokenizer_name": str(tmp_path / "nothing")}})
