r"""Which captions and images are good enough to keep. Pure: the same row gives the same answer anywhere.

    captions = CaptionFilter(Filters(min_chars=5, drop_placeholders=True))
    captions.keep(["IMG_0042.jpg", "a dog on a sofa"])        # ["a dog on a sofa"], {"caption-placeholder": 1}
    check_image(Filters(max_aspect=3.0), 4000, 500)           # raises BadRow("image-aspect", ...)

A row with several captions loses the bad ones, counted; it is rejected when none is left, under the cause of its first.
Nothing here knows a language: lengths count characters, regular expressions may name scripts and classes (``\p{Han}``,
``\p{L}``), and a placeholder is recognised by its form or by a short list of words that programs write.

Causes: caption-too-short, caption-too-long, caption-no-match, caption-excluded, caption-placeholder; image-too-small,
image-aspect, image-too-large.
"""

from __future__ import annotations

from collections import Counter

import regex

from data_prep.rows import BadRow
from data_prep.settings import Filters
from pipeline.errors import DataError

PLACEHOLDER = regex.compile(
    r"""(?ix) ^ [\s"'()\[\]<>.:-]* (?:
        untitled(?:[\s_-]*\d+)? | no[\s_-]?(?:caption|title|name|description|alt) | (?:alt|title|caption)(?:[\s_-]?text)?
      | null | none | nan | n/?a | undefined | unknown | default | placeholder | todo | test | lorem\ ipsum.*
      | (?:image|img|photo|picture|pic|figure|fig|slide|thumb(?:nail)?|logo|icon|banner|file|screenshot|scan)s?[\d\s_.\#-]*
      | (?:dsc[fn]?|img|imgp|p|pict|dcim|mvi|gopr|pano|pxl|screen\ ?shot)[\s_-]*\d{3,}[\w.-]*
      | [\w\s.()%+-]+ \.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|heic|avif)
      | (?:https?://|www\.)\S+
      | click\ (?:to|here|for)\b.{0,40} | (?:enlarge|zoom|loading|advertisement)
    ) [\s"'()\[\]<>.:-]* $"""
)
"""What cameras, editors and web pages write where nobody wrote a caption."""

HAS_LETTER = regex.compile(r"\p{L}|\p{So}")  # So: emoji and other symbols that mean something
MATCH_SECONDS = 5.0


class CaptionFilter:
    """``Filters`` made ready for captions. Raises DataError when a regular expression cannot be read."""

    def __init__(self, filters: Filters) -> None:
        self._filters = filters
        self._keep = _compiled("--keep-matching", filters.keep_matching)
        self._drop = _compiled("--drop-matching", filters.drop_matching)

    def keep(self, captions: list[str]) -> tuple[list[str], Counter[str]]:
        """The captions that pass, and how many were dropped from beside them by cause.

        Raises BadRow when none passes.
        """
        kept: list[str] = []
        dropped: list[BadRow] = []
        for caption in captions:
            bad = self._fault(caption)
            if bad is None:
                kept.append(caption)
            else:
                dropped.append(bad)
        if not kept:
            raise dropped[0]
        return kept, Counter(bad.cause for bad in dropped)

    def _fault(self, caption: str) -> BadRow | None:
        filters, shown = self._filters, repr(caption[:60])
        if filters.min_chars is not None and len(caption) < filters.min_chars:
            return BadRow("caption-too-short", f"{len(caption)} characters, at least {filters.min_chars} are asked: {shown}")
        if filters.max_chars is not None and len(caption) > filters.max_chars:
            return BadRow("caption-too-long", f"{len(caption):,} characters, at most {filters.max_chars:,}: {shown}")
        if filters.drop_placeholders and (PLACEHOLDER.match(caption) or not HAS_LETTER.search(caption)):
            return BadRow("caption-placeholder", f"{shown} names nothing")
        if self._keep is not None and not _found(self._keep, caption):
            return BadRow("caption-no-match", f"{shown} does not match {self._keep.pattern!r}")
        if self._drop is not None and _found(self._drop, caption):
            return BadRow("caption-excluded", f"{shown} matches {self._drop.pattern!r}")
        return None


def check_image(filters: Filters, width: int, height: int) -> None:
    """Raise BadRow unless an image of ``width`` x ``height`` pixels is good enough."""
    short, long = sorted((width, height))
    shown = f"{width} x {height} pixels"
    if filters.min_side is not None and short < filters.min_side:
        raise BadRow("image-too-small", f"{shown}, the shorter side must have {filters.min_side}")
    if filters.min_pixels is not None and width * height < filters.min_pixels:
        raise BadRow("image-too-small", f"{shown}, at least {filters.min_pixels:,} in all are asked")
    if filters.max_pixels is not None and width * height > filters.max_pixels:
        raise BadRow("image-too-large", f"{shown}, at most {filters.max_pixels:,} in all are asked")
    if filters.max_aspect is not None and long > filters.max_aspect * short:
        raise BadRow("image-aspect", f"{shown}: {long / short:.2f} to 1, at most {filters.max_aspect:g} to 1")


def _compiled(option: str, pattern: str | None) -> regex.Pattern[str] | None:
    try:
        return None if pattern is None else regex.compile(pattern)
    except regex.error as error:
        raise DataError(f"{option} {pattern!r} is no regular expression: {error}") from error


def _found(pattern: regex.Pattern[str], caption: str) -> bool:
    try:
        return pattern.search(caption, timeout=MATCH_SECONDS) is not None
    except TimeoutError as error:
        message = f"{pattern.pattern!r} took over {MATCH_SECONDS:g} s on {caption[:60]!r}; write it without nested repeats"
        raise DataError(message) from error
