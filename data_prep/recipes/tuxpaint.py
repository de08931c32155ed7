"""Tux Paint's stamps: photographs cut out and drawings, with captions that people wrote, in up to 77 languages.

    unisphere shards recipe tuxpaint data/tuxpaint

    eval    every stamp with its English caption: a retrieval set, nothing to train on

The json member holds the other languages ("captions_by_language"), the folder as "category". 793 stamps are PNG; those that
are SVG alone are drawn at ``--side`` pixels on white, which needs resvg-py. GPL-2: shards made of it fall under it too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from data_prep.files import write_text
from data_prep.recipes.drawing import DrawingError, render
from data_prep.recipes.packages import Package, fetch, members
from data_prep.recipes.store import Store, short_key, stored
from data_prep.rows import EvalTexts, Row, Source

if TYPE_CHECKING:
    from data_prep.recipes import Options

PACKAGE = Package(
    "apt",
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    160_880_444,
)
ROOT = "./usr/share/tuxpaint/stamps/"
CREDIT = """# Tux Paint stamps

Copyright 2002-2022 Bill Kendrick and contributors, GPL-2. From the Debian package `tuxpaint-stamps-default` 2022.06.04-1.
"""


def source(options: Options) -> Source:
    """Rows of the one split ``eval``."""
    path = options.cache / f"made-tuxpaint-{options.side}px.tar"
    store = stored(path, partial(_files, options), options.cache_bytes)
    credits = options.cache / "CREDITS-tuxpaint.md"
    undrawable = store.read("undrawable.txt").decode().replace("\n", ", ") or "none"
    write_text(credits, f"{CREDIT}\nLeft out because their drawing is no SVG that can be rendered: {undrawable}.\n")
    return Source("tuxpaint", partial(_rows, store), {"eval": EvalTexts()}, companions=(str(credits),))


def _files(options: Options) -> Iterator[tuple[str, bytes]]:
    """(short name, bytes) of every caption file and of one picture of each stamp; names are hashes, which fit a header."""
    archive = fetch(PACKAGE, options.cache, options.cache_bytes)
    found = {
        name.removeprefix(ROOT): data
        for name, data in members(archive, lambda name: name.startswith(ROOT) and name.endswith((".png", ".svg", ".txt")))
    }
    names: list[str] = []
    undrawable: list[str] = []
    for name in sorted(found):
        stem, _, kind = name.rpartition(".")
        if kind != "txt" or not (f"{stem}.png" in found or f"{stem}.svg" in found):
            continue
        try:
            picture = found.get(f"{stem}.png") or render(found[f"{stem}.svg"].decode("utf-8", "replace"), options.side)
        except DrawingError:
            undrawable.append(stem)
            continue
        names.append(stem)
        yield f"{_short(stem)}.png", picture
        yield f"{_short(stem)}.txt", found[name]
    yield "names.txt", "\n".join(names).encode()
    yield "undrawable.txt", "\n".join(undrawable).encode()


def _short(stem: str) -> str:
    return hashlib.sha256(stem.encode()).hexdigest()[:32]


def _rows(store: Store) -> Iterator[Row]:
    for number, stem in enumerate(store.read("names.txt").decode().split("\n")):
        english, others = languages(store.read(f"{_short(stem)}.txt").decode("utf-8", "replace"))
        yield Row(
            number,
            image=store.url(f"{_short(stem)}.png"),
            captions=(english,),
            key=short_key(stem),
            split="eval",
            meta={"group": english.lower(), "category": stem.partition("/")[0], "captions_by_language": others},
        )


def languages(text: str) -> tuple[str, dict[str, str]]:
    """(the English caption, language -> caption) of a stamp's text: its first line, then lines ``de.utf8=...``.

    >>> languages("A frog.\\nde.utf8=Ein Frosch.\\n")
    ('A frog.', {'de': 'Ein Frosch.'})
    """
    english, *rest = text.splitlines() or [""]
    others = {}
    for line in rest:
        code, equals, caption = line.partition(".utf8=")
        if equals and caption.strip():
            others[code.strip()] = caption.strip()
    return english.strip(), others
