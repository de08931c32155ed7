"""Captions to token ids, matching the text tower's configuration. The only place that knows open_clip's tokenizers.

    tokenizer = build({"text_cfg": {"context_length": 32, "vocab_size": 49408}})
    tokenizer(["a red apple", "beer mug"]).shape                            # torch.Size([2, 32]), int64
    build(model_cfg, trim=True)(["a red apple", "beer mug"]).shape          # torch.Size([2, 8])

A tower that names no tokenizer of its own uses CLIP's byte-pair encoding, whose vocabulary ships with open_clip, so
nothing is downloaded. ``BytePairs`` gives the same ids as open_clip's ``SimpleTokenizer`` in a fraction of the time.
``text_cfg.hf_tokenizer_name`` loads that Hugging Face tokenizer instead, from its local cache or the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch

from pipeline.errors import ConfigError

DEFAULT_CONTEXT_LENGTH = 77


TRIM_TO = 8
"""Trimmed lengths are multiples of this: few different shapes, and what matrix units like."""

MAX_CACHED_WORDS = 65_536
MAX_CACHED_LETTERS = 32
"""A longer word, an address for example, is seldom seen twice."""


class Tokenizer(Protocol):
    """Maps n texts to int64 ``[n, L]``, truncated where longer, padded where shorter; L is the context length, or less."""

    def __call__(self, texts: list[str]) -> torch.Tensor: ...


def build(model_cfg: Mapping[str, Any], *, trim: bool = False) -> Tokenizer:
    """The tokenizer for an open_clip model configuration (the dict with ``text_cfg``).

    Args:
        model_cfg: as in open_clip's model files.
        trim: leave out padding that no text of a call needs. Only for towers that ignore what follows the end token;
            tokenizers other than CLIP's byte pairs never do it.

    Raises:
        ConfigError: the vocabulary of the text tower is too small for the tokenizer, or the tokenizer cannot be loaded.
    """
    from open_clip.tokenizer import HFTokenizer

    text_cfg = dict(model_cfg.get("text_cfg", {}))
    context_length = int(text_cfg.get("context_length", DEFAULT_CONTEXT_LENGTH))
    options = dict(text_cfg.get("tokenizer_kwargs") or {})
    name = text_cfg.get("hf_tokenizer_name") or ""
    if not name:
        return _byte_pairs(context_length, text_cfg.get("vocab_size"), options, trim)
    try:
        mode = text_cfg.get("tokenizer_mode")
        tokenizer: Tokenizer = HFTokenizer(name, context_length=context_length, tokenizer_mode=mode, **options)
        return tokenizer
    except Exception as error:  # no package, no network, unknown name: these share no base class
        raise ConfigError(
            f"tokenizer {name!r} (model text_cfg.hf_tokenizer_name) cannot be loaded: {type(error).__name__}: {error}; "
            f"install transformers and fetch the tokenizer once where there is a network, or use a local folder"
        ) from error


def _byte_pairs(context_length: int, vocab_size: int | None, options: dict[str, Any], trim: bool) -> Tokenizer:
    from open_clip.tokenizer import SimpleTokenizer

    stock = SimpleTokenizer(context_length=context_length, **options)
    if vocab_size is not None and vocab_size < stock.vocab_size:
        raise ConfigError(
            f"model text_cfg.vocab_size = {vocab_size}, but CLIP's byte-pair encoding produces ids up to "
            f"{stock.vocab_size - 1}; set vocab_size to {stock.vocab_size}, or name an hf_tokenizer_name"
        )
    if options.keys() <= {"clean"}:
        return BytePairs(stock, lowercase=options.get("clean", "lower") == "lower", trim=trim)
    tokenizer: Tokenizer = stock  # its reductions drop words at random, its further special tokens may hold spaces
    return tokenizer


class BytePairs:
    """CLIP's byte-pair encoding: open_clip's ids, from a dictionary of whole words.

    No token crosses a space, so a text's ids are those of its words one after another, and most words have been seen
    before. Cleaning (ftfy and HTML entities, most of open_clip's time) leaves printable ASCII without an ampersand as it
    is, so such a text, that is most captions, goes without.

    Args:
        stock: open_clip's tokenizer; it cleans what needs cleaning, and encodes words seen for the first time.
        lowercase: its cleaning is "lower".
        trim: see ``build``.
    """

    def __init__(self, stock: Any, *, lowercase: bool = True, trim: bool = False) -> None:
        self._stock, self._lowercase, self._trim = stock, lowercase, trim
        self._special = dict(stock.cache)
        self._words: dict[str, tuple[int, ...]] = {}

    def __call__(self, texts: list[str]) -> torch.Tensor:
        """Token ids int64 ``[n, L]``: start token, text, end token, zeros."""
        context_length = int(self._stock.context_length)
        rows = [self._row(text, context_length) for text in texts]
        longest = max(map(len, rows), default=0)
        length = min(context_length, -(-longest // TRIM_TO) * TRIM_TO) if self._trim else context_length
        tokens_BL = np.zeros((len(rows), length), np.int64)
        lengths_B1 = np.array([[len(row)] for row in rows], np.int64).reshape(-1, 1)
        tokens_BL[np.arange(length) < lengths_B1] = np.fromiter(chain.from_iterable(rows), np.int64)
        return torch.from_numpy(tokens_BL)

    def _row(self, text: str, context_length: int) -> list[int]:
        row = [self._stock.sot_token_id, *self.encode(text), self._stock.eot_token_id]
        if len(row) > context_length:
            row[context_length - 1 :] = [self._stock.eot_token_id]
        return row

    def encode(self, text: str) -> list[int]:
        """The ids of one text, without start and end token, of any length."""
        if self._lowercase and text.isascii() and text.isprintable() and "&" not in text:
            text = text.lower()
        else:
            text = self._stock.clean_fn(text)
        ids: list[int] = []
        for word in text.split(" "):
            ids += self._words.get(word) or self._encode_word(word)
        return ids

    def _encode_word(self, word: str) -> tuple[int, ...]:
        stock = self._stock
        letters = ("".join(stock.byte_encoder[byte] for byte in token.encode()) for token in stock.pat.findall(word))
        ids = tuple(stock.encoder[piece] for token in letters for piece in stock.bpe(token).split(" "))
        if len(self._words) >= MAX_CACHED_WORDS:
            self._words.clear()
        stock.cache = dict(self._special)  # it would keep every word ever seen
        if len(word) <= MAX_CACHED_LETTERS:
            self._words[word] = ids
        return ids
