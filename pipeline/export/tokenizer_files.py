"""CLIP's byte pairs as tokenizer files that transformers and the tokenizers libraries of other languages read.

    write(folder, context_length=77)    # tokenizer.json, vocab.json, merges.txt, and two small files that say what is what

The vocabulary comes from open_clip's own table, so nothing is fetched. Ids are the same as here but for what open_clip mends
before it encodes, of which these files have the one thing that captions are full of, straight quotes for curled ones; they
leave mojibake, HTML entities ("&amp;"), full-width letters and ligatures as they are.

``tokenizer.json`` by itself also truncates and pads to the context, as the exported text towers expect their input;
transformers replaces that by what its caller asks for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

START, END = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def write(folder: Path, context_length: int) -> None:
    """Write the files of a tokenizer for texts of at most ``context_length`` tokens, start and end token included."""
    from open_clip.tokenizer import SimpleTokenizer

    stock = SimpleTokenizer()
    vocabulary = dict(stock.encoder)
    start, end = int(stock.sot_token_id), int(stock.eot_token_id)
    names = {number: word for word, number in vocabulary.items()} | {start: START, end: END}
    words = {names[number]: number for number in sorted(names)}
    merges = [" ".join(pair) for pair, _ in sorted(stock.bpe_ranks.items(), key=lambda item: item[1])]
    _json(folder / "vocab.json", words)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    _json(folder / "tokenizer.json", _fast(words, merges, start, end, context_length))
    specials = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    _json(folder / "special_tokens_map.json", specials)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # CLIPTokenizer would build its own normalizer, which keeps curled quotes
        "model_max_length": context_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **specials,
    }
    _json(folder / "tokenizer_config.json", config)


def _fast(words: dict[str, int], merges: list[str], start: int, end: int, context_length: int) -> dict[str, Any]:
    """What ``tokenizer.json`` holds."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": True}
    return {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": context_length, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": context_length},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "!",  # the word of id 0; here padding is zeros, and no tower looks behind the end token
        },
        "added_tokens": [{"id": start, "content": START, **flags}, {"id": end, "content": END, **flags}],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": "[\u02bc\u2018-\u201b]"}, "content": "'"},
                {"type": "Replace", "pattern": {"Regex": "[\u201c-\u201f]"}, "content": '"'},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _WORDS}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [END, end],
            "cls": [START, start],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": END,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": words,
            "merges": merges,
        },
    }


def _json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=None if len(value) > 100 else 2) + "\n", encoding="utf-8")
