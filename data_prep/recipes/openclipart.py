"""Open Clip Art, release 0.18: drawings that people gave to the public domain, with titles, keywords and descriptions.

    unisphere shards recipe openclipart data/openclipart

    train           nine titles in ten
    eval-concepts   the tenth title: retrieval of what was never trained on

PNGs come from one package, the words from the metadata of the SVGs in another. Left out: what its own metadata does not call
public domain, and three series that were drawn from a template and named as a whole (stars, and two icon themes). A title
that more than three drawings share says what collection they are from, not what they show: there the file's name speaks. A
picture that lies in several folders is taken once.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

from data_prep.files import write_text
from data_prep.recipes.packages import Package, fetch, members
from data_prep.recipes.store import Store, short_key, stored
from data_prep.rows import EvalTexts, Row, Source

if TYPE_CHECKING:
    from data_prep.recipes import Options

VERSION = "1:0.18+dfsg-19"
PNGS = Package(
    "apt", "openclipart-png", VERSION, "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02", 130_910_028
)
SVGS = Package(
    "apt", "openclipart-svg", VERSION, "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5", 24_919_068
)
SERIES = ("gramastar", "Part of the Flat Icon Collection", "Lemon SVG theme")
SHARED_TITLE = 3
HELD_OUT = 0.1
CREDIT = """# Open Clip Art

Drawings given to the public domain by their authors. From the Debian packages `openclipart-png` and `-svg` 0.18.
"""


@dataclass(frozen=True)
class Clip:
    """What a drawing's own metadata says."""

    name: str  # path below the collection, without ending
    title: str
    description: str
    keywords: tuple[str, ...]
    licence: str


def source(options: Options) -> Source:
    """Rows of the two splits."""
    store = stored(options.cache / "made-openclipart.tar", partial(_files, options), options.cache_bytes)
    credits = options.cache / "CREDITS-openclipart.md"
    write_text(credits, CREDIT)
    return Source("openclipart", partial(_rows, store), {"eval-concepts": EvalTexts()}, companions=(str(credits),))


def _files(options: Options) -> Iterator[tuple[str, bytes]]:
    """(short name, bytes) of the pictures of usable drawings, and a list of what is known about them."""
    import json

    svgs = members(fetch(SVGS, options.cache, options.cache_bytes), lambda name: name.endswith(".svg"))
    clips = [clip_of(_stem(name), data.decode("utf-8", "replace")) for name, data in svgs]
    usable = {clip.name: clip for clip in clips if "ublic" in clip.licence and not clip.title.startswith(SERIES)}
    pngs = members(fetch(PNGS, options.cache, options.cache_bytes), lambda name: name.endswith(".png"))
    kept: list[Clip] = []
    seen: set[bytes] = set()
    for name, data in pngs:
        digest = hashlib.sha256(data).digest()
        if _stem(name) in usable and digest not in seen:  # some drawings lie in several folders, under other titles
            seen.add(digest)
            kept.append(usable[_stem(name)])
            yield f"{_short(_stem(name))}.png", data
    kept.sort(key=lambda clip: clip.name)
    yield "clips.json", json.dumps([asdict(clip) for clip in kept]).encode()


def _stem(name: str) -> str:
    """``./usr/share/openclipart/png/animals/frog.png`` -> ``animals/frog``."""
    return name.split("/openclipart/", 1)[1].split("/", 1)[1].rpartition(".")[0]


def _short(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def clip_of(name: str, svg: str) -> Clip:
    """Read the metadata by pattern: hundreds of the files are not well-formed XML.

    >>> clip_of("a/frog", '<cc:Work><dc:title>Frog &amp; fly</dc:title><rdf:li>pond</rdf:li></cc:Work>').title
    'Frog & fly'
    """
    found = re.search(r"<(?:cc:)?Work.*?</(?:cc:)?Work>", svg, re.DOTALL)
    work = found[0] if found else ""
    licence = re.search(r"<(?:cc:)?license[^>]*resource=\"([^\"]*)\"", work)
    keywords = (_words(text) for text in re.findall(r"<rdf:li[^>]*>([^<]*)</", work))
    return Clip(
        name,
        _element(work, "title"),
        _element(work, "description"),
        tuple(dict.fromkeys(word for word in keywords if word)),
        licence[1] if licence else "",
    )


def _element(work: str, name: str) -> str:
    match = re.search(rf"<(?:dc:)?{name}[^>]*>([^<]*)</", work)
    return _words(match[1]) if match else ""


def _words(text: str) -> str:
    return " ".join(html.unescape(text).split())


def _rows(store: Store) -> Iterator[Row]:
    import json

    clips = [Clip(**{**clip, "keywords": tuple(clip["keywords"])}) for clip in json.loads(store.read("clips.json"))]
    times = Counter(clip.title for clip in clips)
    for number, clip in enumerate(clips):
        title = name_of(clip, times[clip.title])
        digest = int.from_bytes(hashlib.sha256(title.lower().encode()).digest()[:8], "big")
        is_held_out = digest < HELD_OUT * 2**64
        keywords = ", ".join(clip.keywords[:6])
        several = (title, f"{title}: {keywords}" if keywords else "", keywords, clip.description[:300])
        yield Row(
            number,
            image=store.url(f"{_short(clip.name)}.png"),
            captions=(title,) if is_held_out else tuple(dict.fromkeys(text for text in several if text)),
            key=short_key(clip.name),
            split="eval-concepts" if is_held_out else "train",
            meta={"group": title.lower(), "category": clip.name.rpartition("/")[0]},
        )


def name_of(clip: Clip, num_titled_so: int) -> str:
    """The title, or where it does not tell drawings apart the words of the file's name.

    >>> name_of(Clip("animals/2_dead_frogs_01", "Animals", "", (), ""), 50)
    'dead frogs'
    """
    if clip.title and num_titled_so <= SHARED_TITLE and not clip.title.startswith("Clipart by"):
        return clip.title
    words = re.split(r"[\W\d_]+", clip.name.rpartition("/")[2])
    return " ".join(word for word in words if word) or clip.title or clip.name
