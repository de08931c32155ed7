"""One HTML page that shows samples of shards: thumbnails with captions, for people to look through.

    page = preview(["shards/cc3m"], count=200)
    Path("cc3m.html").write_text(page)

The page is a single file: pictures are inside it, nothing is loaded from anywhere, and its policy forbids all but that.
Captions are text: whatever they hold is escaped. Arrow keys move between samples, Enter opens one, Escape closes it, ``/``
goes to the filter; light or dark as the reader's system is set. Which samples are shown depends on their keys alone: those
with the smallest hashes, so that another ``count`` shows more of the same ones.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import html
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from data_prep.reader import Reader, Stored
from pipeline.errors import DataError

THUMBNAIL_SIDE = 224  # pixels, of the longer side
MAX_PIXELS = 64_000_000
MAX_CAPTIONS = 20
MAX_TEXT = 2000  # letters shown of one caption or of the json member
PAGE = Path(__file__).parent / "assets" / "preview.html"


@dataclass(frozen=True)
class _Card:
    """A sample as the page shows it. Ordered by place: shard after shard."""

    place: int
    sample: Stored


def preview(specs: Sequence[str], *, count: int = 100, seed: int = 0, title: str = "") -> str:
    """The page as text, with ``count`` samples of the shards that ``specs`` mean. Memory: those samples.

    Raises DataError when there are no shards, no samples, or a shard is damaged.
    """
    chosen: list[tuple[int, int, _Card]] = []  # a heap of the smallest hashes, negated: the largest one is on top
    num_samples = 0
    for sample in Reader(specs, "preview"):
        encoded = f"{seed}:{sample.key}".encode("utf-8", "surrogateescape")
        rank = int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "big")
        heapq.heappush(chosen, (-rank, num_samples, _Card(num_samples, sample)))
        num_samples += 1
        if len(chosen) > count:
            heapq.heappop(chosen)
    if not chosen:
        raise DataError(f"{', '.join(specs)} hold no samples to show")
    cards = sorted((card for _, _, card in chosen), key=lambda card: card.place)
    name = html.escape(title or ", ".join(specs))
    page = Template(PAGE.read_text(encoding="utf-8"))
    return page.substitute(title=name, shown=len(cards), total=f"{num_samples:,}", cards="\n".join(map(_card, cards)))


def _card(card: _Card) -> str:
    sample = card.sample
    times = Counter(sample.captions)  # a caption may stand several times, to be drawn more often
    captions = [_shown(text) + (f" × {count}" if count > 1 else "") for text, count in list(times.items())[:MAX_CAPTIONS]]
    if len(times) > MAX_CAPTIONS:
        captions.append(f"<em>and {len(times) - MAX_CAPTIONS} more</em>")
    if "cls" in sample.members:
        captions.append(f"class {_shown(sample.members['cls'][:20].decode('ascii', 'replace'))}")
    rest = {name: value for name, value in sample.meta.items() if name != "captions"}
    meta = f"<pre>{_shown(json.dumps(rest, ensure_ascii=False, indent=1))}</pre>" if rest else ""
    picture, size = _thumbnail(sample.image)
    items = "".join(f"<li>{text}</li>" for text in captions or ["<em>no caption</em>"])
    place = f"{_shown(sample.shard.rpartition('/')[2])} · {size}"
    return (
        f'<li class="card" tabindex="-1"><figure>{picture}<figcaption><ul>{items}</ul>'
        f'<p class="key">{_shown(sample.key)}</p><p class="where">{place}</p>{meta}</figcaption></figure></li>'
    )


def _shown(text: str) -> str:
    """Escaped, cut where it is long, and without what is not text."""
    cut = text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"
    return html.escape(cut.encode("utf-8", "replace").decode("utf-8"))


def _thumbnail(data: bytes) -> tuple[str, str]:
    """(HTML of the picture, its size as words). An image that cannot be shown says why."""
    from PIL import Image, ImageOps

    if not data:
        return '<div class="none">no image</div>', "no image"
    try:
        with Image.open(io.BytesIO(data)) as image:
            words = f"{image.width} × {image.height} {image.format}, {len(data):,} bytes"
            if image.width * image.height > MAX_PIXELS:
                return '<div class="none">too large to show</div>', words
            image.draft("RGB", (2 * THUMBNAIL_SIDE, 2 * THUMBNAIL_SIDE))
            is_clear = "A" in image.getbands() or "transparency" in image.info
            small = ImageOps.exif_transpose(image).convert("RGBA" if is_clear else "RGB")
    except Exception as error:  # a damaged file raises whatever its decoder stumbles over
        return f'<div class="none">cannot be shown: {html.escape(type(error).__name__)}</div>', f"{len(data):,} bytes"
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    encoded = io.BytesIO()
    small.save(encoded, "WEBP", quality=80, method=4)
    text = base64.b64encode(encoded.getvalue()).decode("ascii")
    sides = f'width="{small.width}" height="{small.height}"' + (' class="clear"' if is_clear else "")
    return f'<img src="data:image/webp;base64,{text}" {sides} alt="" loading="lazy">', words
