"""Token ids are open_clip's, and a text tower that cannot hold them is refused before training."""

from __future__ import annotations

import pickle

import open_clip
import pytest
import torch

from pipeline.data import tokenizer
from pipeline.errors import ConfigError

TEXTS = ["a red apple", "Beer Mug", "", "x" * 500, "naïve café — 日本"]


def test_clip_byte_pairs_are_open_clips():
    ours = tokenizer.build({"text_cfg": {"context_length": 77, "vocab_size": 49408}})(TEXTS)
    assert ours.dtype == torch.int64
    assert torch.equal(ours, open_clip.get_tokenizer("ViT-B-32")(TEXTS))


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
