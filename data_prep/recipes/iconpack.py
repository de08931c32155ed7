"""Icons of 229 free sets with their names: the largest real image-text set that a package registry carries.

    unisphere shards recipe iconpack data/iconpack --workers 2           # 194,918 icons at 64 px
    unisphere shards recipe iconpack data/some --limit 4000              # spread evenly over all of them

    train           nine sets in ten, but for held-out names
    eval-sets       the tenth set: styles never trained on
    eval-concepts   one name in fifty, in every other set: things never trained on

Taken: sets under free licences (no "non-commercial", no GPL); one drawing per set and name, where "arrow-left",
"arrow-left-outline" and "24-arrow-left" are one name; no body over 6 kB; each body and each picture once. "calendar", "star"
and "link" are drawn by more than a hundred sets: equal names are one group, so that training never pushes them apart, and both
test sets are split off by name and by set, never by picture. Every sample says its set, licence and author.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.files import write_text
from data_prep.pool import over_shards
from data_prep.recipes.drawing import DrawingError, render
from data_prep.recipes.emoji_bundle import resolve, to_svg
from data_prep.recipes.packages import Package, fetch, members
from data_prep.recipes.store import Store, short_key, stored
from data_prep.rows import EvalTexts, Row, Source

if TYPE_CHECKING:
    from data_prep.recipes import Options

PACKAGE = Package(
    "npm", "@iconify/json", "2.2.535", "1a545f86fa224d6531d8fb101dcbe83aac2b28689a21cbed6fc68318a5af4d91", 104_043_282
)
FREE = (
    "MIT", "Apache-2.0", "CC-BY-4.0", "CC-BY-3.0", "CC-BY-SA-4.0", "CC-BY-SA-3.0", "CC0-1.0", "OFL-1.1", "ISC", "Unlicense",
    "MPL-2.0", "BSD-3-Clause",
)  # fmt: skip
STYLES = (
    "outline", "outlined", "filled", "fill", "solid", "bold", "thin", "light", "regular", "duotone", "twotone", "round",
    "rounded", "sharp", "line", "linear", "broken", "alt", "flat", "colored", "monochrome", "mono", "variant", "baseline",
    "bulk", "stroke", "medium", "mini", "micro", "xl", "lg", "sm", "md", "xs",
)  # fmt: skip
CODE = re.compile(r"\d+(px|x\d+)?|[a-z]|[0-9a-f]{4,}")
MAX_BODY_BYTES = 6000
HELD_OUT_SETS = 0.1
HELD_OUT_NAMES = 0.02
CHUNK = 500

Json = dict[str, Any]


@dataclass(frozen=True)
class Icon:
    """One drawing that was chosen. ``words``: its name without style and size."""

    prefix: str
    name: str
    words: str
    svg: str = ""


def source(options: Options) -> Source:
    """Rows of the three splits."""
    few = "" if options.limit is None else f"-about{options.limit}"
    path = options.cache / f"made-iconpack-{options.side}px{few}.tar"
    store = stored(path, partial(_files, options), options.cache_bytes)
    sets: Json = json.loads(store.read("sets.json"))
    credits = options.cache / "CREDITS-iconpack.md"
    write_text(credits, _credits(sets, json.loads(store.read("left-out.json"))))
    eval_sets = {"eval-sets": EvalTexts(), "eval-concepts": EvalTexts()}
    return Source("iconpack", partial(_rows, store, sets), eval_sets, companions=(str(credits),))


def _files(options: Options) -> Iterator[tuple[str, bytes]]:
    """(number.png, bytes) of every chosen icon that is not blank; then what is known about them, and what was left out."""
    archive = fetch(PACKAGE, options.cache, options.cache_bytes)
    sets: Json = json.loads(next(data for _, data in members(archive, lambda name: name == "package/collections.json")))
    left_out: Counter[str] = Counter()
    icons = _some(list(chosen(archive_sets(archive, sets, left_out), left_out, options.side)), 5 * (options.limit or 0) // 4)
    chunks = [icons[low : low + CHUNK] for low in range(0, len(icons), CHUNK)]
    kept: list[Sequence[str]] = []
    seen: set[bytes] = set()  # different bodies may draw the same picture, also on both sides of a split
    drawn = over_shards(_draw, chunks, workers=options.workers, weights=list(map(len, chunks)), desc="draw", unit="icon")
    for chunk, pictures in zip(chunks, drawn, strict=True):
        for icon, picture in zip(chunk, pictures, strict=True):
            if picture is None:
                left_out["blank or not drawable"] += 1
                continue
            digest = hashlib.sha256(picture).digest()[:8]
            if digest in seen:
                left_out["same picture as an earlier one"] += 1
                continue
            seen.add(digest)
            yield f"{len(kept)}.png", picture
            kept.append((icon.prefix, icon.name, icon.words))
    yield "icons.json", json.dumps(kept).encode()
    yield "sets.json", json.dumps({prefix: sets[prefix] for prefix in sorted({icon[0] for icon in kept})}).encode()
    yield "left-out.json", json.dumps(dict(sorted(left_out.items()))).encode()


def archive_sets(archive: Path, sets: Json, left_out: Counter[str]) -> Iterator[Json]:
    """The icon sets of the package that are free, each with its icons, in order of name."""
    for about in sets.values():
        if about["license"].get("spdx") not in FREE:
            left_out[f"licence {about['license'].get('spdx') or about['license']['title']}"] += about.get("total", 0)
    free = {f"package/json/{prefix}.json" for prefix, about in sets.items() if about["license"].get("spdx") in FREE}
    for _, data in members(archive, lambda name: name in free):  # in order of name, as npm packs them
        yield json.loads(data)


def chosen(icon_sets: Iterator[Json], left_out: Counter[str], side: int) -> Iterator[Icon]:
    """The icons that the module's docstring promises; the rest is counted by reason."""
    seen: set[bytes] = set()
    for icons in icon_sets:
        best: dict[str, str] = {}
        for name in sorted(icons["icons"], key=lambda name: (len(name), name)):  # "home" before "home-outline"
            words = words_of(name)
            if icons["icons"][name].get("hidden"):
                left_out["hidden"] += 1
            elif not words:
                left_out["no word in its name"] += 1
            elif best.setdefault(words, name) != name:
                left_out["another style of a chosen one"] += 1
        for words, name in sorted(best.items()):
            body = icons["icons"][name]["body"]
            digest = hashlib.sha256(body.encode()).digest()[:8]
            drawing = resolve({"width": 16, "height": 16, **icons}, name)
            if len(body) > MAX_BODY_BYTES or drawing is None or drawing.get("rotate"):
                left_out["body over 6 kB or rotated"] += 1
            elif digest in seen:
                left_out["same body as an earlier one"] += 1
            else:
                seen.add(digest)
                yield Icon(icons["prefix"], name, words, to_svg(drawing, side))


def words_of(name: str) -> str:
    """An icon's name as words, without style and size; empty where nothing is left that is a word.

    >>> words_of("arrow-left-outline"), words_of("24-folder-open-filled"), words_of("e07a")
    ('arrow left', 'folder open', '')
    """
    kept = " ".join(word for word in name.split("-") if word not in STYLES and not CODE.fullmatch(word))
    return kept if re.search("[a-z]{2}", kept) else ""


def _some(icons: list[Icon], count: int) -> list[Icon]:
    """All of them, or about ``count``: those with the smallest hashes, in their order."""
    if not count or count >= len(icons):
        return icons
    ranks = sorted((hashlib.sha256(f"{icon.prefix}:{icon.name}".encode()).digest(), place) for place, icon in enumerate(icons))
    return [icons[place] for place in sorted(place for _, place in ranks[:count])]


def _draw(icons: list[Icon]) -> list[bytes | None]:
    """PNG per icon; None for one that draws nothing on white, or not at all."""
    import io

    from PIL import Image

    pictures: list[bytes | None] = []
    for icon in icons:
        try:
            picture = render(icon.svg)
            with Image.open(io.BytesIO(picture)) as image:
                low, high = image.convert("L").getextrema()
            pictures.append(picture if low != high else None)
        except DrawingError:
            pictures.append(None)
    return pictures


def _share(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def split_of(prefix: str, words: str) -> str:
    """Where an icon goes: decided by its name, then by its set; nothing else."""
    if _share(f"name:{words}") < HELD_OUT_NAMES:
        return "eval-concepts"
    return "eval-sets" if _share(f"set:{prefix}") < HELD_OUT_SETS else "train"


def _rows(store: Store, sets: Json) -> Iterator[Row]:
    for number, (prefix, name, words) in enumerate(json.loads(store.read("icons.json"))):
        about, split = sets[prefix], split_of(prefix, words)
        yield Row(
            number,
            image=store.url(f"{number}.png"),
            captions=(words, f"an icon of {words}", f"{words}, {about['name']}") if split == "train" else (words,),
            key=short_key(f"{prefix}-{name}"),
            split=split,
            meta={
                "group": words,
                "set": prefix,
                "icon": name,
                "licence": about["license"].get("spdx"),
                "author": about["author"]["name"],
            },
        )


def _credits(sets: Json, left_out: dict[str, int]) -> str:
    lines = [
        "# Icons",
        "",
        "From the npm package `@iconify/json` 2.2.535.",
        "",
        "| set | author | licence |",
        "| --- | --- | --- |",
    ]
    for about in sets.values():
        lines.append(f"| {about['name']} | {about['author']['name']} | {about['license'].get('spdx')} |")
    lines += ["", "Left out:", "", *(f"- {reason}: {count:,}" for reason, count in left_out.items()), ""]
    return "\n".join(lines)
