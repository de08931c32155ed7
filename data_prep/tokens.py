"""How many tokens a caption takes in CLIP's byte-pair encoding, without torch.

    count_tokens("a dog on a red sofa")      # 8: six words, and the marks for start and end

The merges are read from the file that ships inside the open_clip package, which is found but never imported. Counts equal
``len(open_clip.SimpleTokenizer().encode(text)) + 2``; a text tower cuts what is longer than its context (77 by default).
"""

from __future__ import annotations

import gzip
import html
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.errors import DataError

NUM_MERGES = 49152 - 256 - 2
MARKS = 2  # start and end of text
CONTEXT_LENGTH = 77
LONG_WORD = 300  # letters; a longer run has no spelling worth merging and counts one token per four bytes


def count_tokens(text: str) -> int:
    """Tokens of ``text``, start and end marks included. Raises DataError where open_clip is not installed."""
    return MARKS + sum(_word_tokens(word) for word in _pattern().findall(_clean(text)))


def _clean(text: str) -> str:
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


@lru_cache(maxsize=1)
def _pattern() -> Any:
    """Words: English contractions, runs of letters, single digits, runs of anything else."""
    import regex

    marks = "<start_of_text>|<end_of_text>"
    return regex.compile(marks + r"|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE)


@lru_cache(maxsize=1)
def _ranks() -> dict[tuple[str, str], int]:
    """Pair of symbols -> when it is merged; earlier ones first."""
    spec = importlib.util.find_spec("open_clip")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    path = Path(folders[0]) / "bpe_simple_vocab_16e6.txt.gz" if folders else Path("open_clip")
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : NUM_MERGES + 1]
    except OSError as error:
        raise DataError(f"the merges of CLIP's tokenizer are missing: {error}; install open_clip_torch") from error
    pairs = (line.split() for line in lines)
    return {(first, second): rank for rank, (first, second) in enumerate(pairs)}


@lru_cache(maxsize=1)
def _letters() -> dict[int, str]:
    """Byte -> the printable letter that the merges write for it: itself, or one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}


@lru_cache(maxsize=1 << 16)
def _word_tokens(word: str) -> int:
    """Symbols left of one word after all merges."""
    if word in ("<start_of_text>", "<end_of_text>"):
        return 1
    data = word.encode("utf-8", "replace")
    if len(data) > LONG_WORD:
        return -(-len(data) // 4)
    letters, ranks = _letters(), _ranks()
    symbols = [letters[byte] for byte in data]
    symbols[-1] += "</w>"
    never = len(ranks)
    while len(symbols) > 1:
        rank, pair = min((ranks.get(pair, never), pair) for pair in zip(symbols, symbols[1:], strict=False))
        if rank == never:
            break
        merged: list[str] = []
        for symbol in symbols:  # every place where the pair stands, from the left, without overlap
            if merged and symbol == pair[1] and merged[-1] == pair[0]:
                merged[-1] += symbol
            else:
                merged.append(symbol)
        symbols = merged
    return len(symbols)
