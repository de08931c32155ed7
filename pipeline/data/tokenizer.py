"""Captions to token ids, matching the text tower's configuration. The only place that knows open_clip's tokenizers.

    tokenizer = build({"text_cfg": {"context_length": 32, "vocab_size": 49408}})
    tokenizer(["a red apple", "beer mug"]).shape        # torch.Size([2, 32]), int64

A tower that names no tokenizer of its own uses CLIP's byte-pair encoding, whose vocabulary ships with open_clip, so
nothing is downloaded. ``text_cfg.hf_tokenizer_name`` loads that Hugging Face tokenizer instead, from its local cache
or the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from pipeline.errors import ConfigError

DEFAULT_CONTEXT_LENGTH = 77


class Tokenizer(Protocol):
    """Maps n texts to int64 ``[n, context_length]``: truncated where longer, padded where shorter."""

    def __call__(self, texts: list[str]) -> torch.Tensor: ...


def build(model_cfg: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer for an open_clip model configuration (the dict with ``text_cfg``).

    Raises:
        ConfigError: the vocabulary of the text tower is too small for the tokenizer, or the tokenizer cannot be loaded.
    """
    from open_clip.tokenizer import HFTokenizer

    text_cfg = dict(model_cfg.get("text_cfg", {}))
    context_length = int(text_cfg.get("context_length", DEFAULT_CONTEXT_LENGTH))
    options = dict(text_cfg.get("tokenizer_kwargs") or {})
    name = text_cfg.get("hf_tokenizer_name") or ""
    if not name:
        return _byte_pairs(context_length, text_cfg.get("vocab_size"), options)
    try:
        mode = text_cfg.get("tokenizer_mode")
        tokenizer: Tokenizer = HFTokenizer(name, context_length=context_length, tokenizer_mode=mode, **options)
        return tokenizer
    except Exception as error:  # no package, no network, unknown name: these share no base class
        raise ConfigError(
            f"tokenizer {name!r} (model text_cfg.hf_tokenizer_name) cannot be loaded: {type(error).__name__}: {error}; "
            f"install transformers and fetch the tokenizer once where there is a network, or use a local folder"
        ) from error


def _byte_pairs(context_length: int, vocab_size: int | None, options: dict[str, Any]) -> Tokenizer:
    from open_clip.tokenizer import SimpleTokenizer

    stock = SimpleTokenizer(context_length=context_length, **options)
    if vocab_size is not None and vocab_size < stock.vocab_size:
        raise ConfigError(
            f"model text_cfg.vocab_size = {vocab_size}, but CLIP's byte-pair encoding produces ids up to "
            f"{stock.vocab_size - 1}; set vocab_size to {stock.vocab_size}, or name an hf_tokenizer_name"
        )
    tokenizer: Tokenizer = stock
    return tokenizer
