"""From the members of one tar entry to a ``Sample``: the picture, its captions, its group. Layer 1; no torch.

    sample_from({"jpg": b"...", "txt": b"a dog on a red sofa"}, Reading(), "cc3m-000000.tar", "000017").captions

A sample is the members of one tar that share a key:

    KEY.png (or .jpg, .jpeg, .webp, .gif, .bmp, .tif, .tiff)    the picture, encoded
    KEY.txt                                                     the caption, UTF-8
    KEY.json     optional                                       {"captions": [...], "group": "...", anything else}
    KEY.cls      optional                                       the class number, in ASCII digits

``captions`` of the JSON member win over the text member, unless the set was told where its captions stand. Names are only
ever compared: no member is written anywhere, and none but those above is looked into. Samples of one ``group`` (without one:
of one first caption, ignoring case and spacing) are different pictures of the same thing: the loss must not push them apart,
so each carries a group number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config.data import FilterConfig
from pipeline.data.drops import FILTERED, BadSample
from pipeline.data.plain import Data

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
CAPTIONS = '.txt or in .json\'s "captions"'
MAX_MEMBER_BYTES = 64_000_000


@dataclass(frozen=True)
class Sample:
    """One image-text pair as stored: ``image`` encoded, a view if big; ``group`` in [0, 2^63), ``label`` None without .cls."""

    key: str
    shard: str
    image: Data
    captions: tuple[str, ...]
    group: int
    label: int | None
    meta: dict[str, Any]


def group_number(kind: str, text: str) -> int:
    """A 63-bit number for a group name (``kind`` "group") or a caption ("caption"), the same on every machine."""
    normal = " ".join(text.lower().split()) if kind == "caption" else text
    return int.from_bytes(hashlib.blake2b(f"{kind}:{normal}".encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class Reading:
    """How the members of a sample become a ``Sample``, and what is refused.

    ``captions``: ``txt`` and ``json.FIELD`` names, empty for the rule of the module's docstring. ``evaluation``: test sets may
    have labels instead of captions, and several captions as the lines of one text member.
    """

    captions: tuple[str, ...] = ()
    filters: tuple[FilterConfig, ...] = ()
    max_member_bytes: int = MAX_MEMBER_BYTES
    """A sample whose members take more is refused before it is read."""
    max_caption_characters: int = 1_000_000
    evaluation: bool = False


def sample_from(members: Mapping[str, Data], reading: Reading, shard: str, key: str) -> Sample:
    """The sample that these members are.

    Raises:
        BadSample: they cannot be used; without its place, which only the caller knows.
    """
    image = next((members[extension] for extension in IMAGE_EXTENSIONS if extension in members), None)
    if image is None:
        raise BadSample("image-missing", f"members are {', '.join('.' + extension for extension in members)}")
    if not image:
        raise BadSample("image-empty", "the image has 0 bytes")
    meta = _meta(members)
    for rule in reading.filters:
        _check_filter(rule, meta)
    label = _label(members)
    stored = meta.pop("captions", None)
    captions = _named_captions(members, meta, reading) if reading.captions else _captions(members, stored, reading)
    if not captions and not (reading.evaluation and label is not None):
        cause = "caption-empty" if stored is not None or "txt" in members else "caption-missing"
        raise BadSample(cause, f"members are {', '.join('.' + extension for extension in members)}")
    if max(map(len, captions), default=0) > reading.max_caption_characters:
        detail = f"{max(map(len, captions)):,} characters, the bound is {reading.max_caption_characters:,}"
        raise BadSample("caption-too-long", f"{detail} (data.max_caption_characters)")
    group = meta.pop("group", None)
    if group is not None:
        number = group_number("group", str(group))
    else:
        number = group_number("caption", captions[0] if captions else f"class {label}")
    return Sample(key, shard, image, captions, number, label, meta)


def _captions(members: Mapping[str, Data], stored: Any, reading: Reading) -> tuple[str, ...]:
    if not stored:
        text = _text(members)
        stored = text.split("\n") if reading.evaluation else [text]
    if not isinstance(stored, list) or not all(isinstance(caption, str) for caption in stored):
        raise BadSample("json-invalid", f'"captions" must be a list of texts, got {str(stored)[:60]!r}')
    return tuple(caption.strip() for caption in stored if caption.strip())


def _named_captions(members: Mapping[str, Data], meta: Mapping[str, Any], reading: Reading) -> tuple[str, ...]:
    """The captions in the places that the source names: a text, or a list of texts, each."""
    found: list[str] = []
    for name in reading.captions:
        value = _text(members) if name == "txt" else meta.get(name.removeprefix("json."))
        found += value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(caption, str) for caption in found):
        raise BadSample("json-invalid", f"captions in {', '.join(reading.captions)} must be texts, got {str(found)[:60]!r}")
    return tuple(caption.strip() for caption in found if caption.strip())


def _check_filter(rule: FilterConfig, meta: Mapping[str, Any]) -> None:
    value = meta.get(rule.field)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadSample("json-invalid", f"the filter on {rule.field!r} needs a number, got {str(value)[:60]!r}")
    low = float("-inf") if rule.at_least is None else rule.at_least
    high = float("inf") if rule.at_most is None else rule.at_most
    if not low <= value <= high:
        raise BadSample(FILTERED, f"{rule.field} = {value} is not within [{low}, {high}]")


def _text(members: Mapping[str, Data]) -> str:
    try:
        return str(members.get("txt", b""), "utf-8")
    except UnicodeDecodeError as error:
        raise BadSample("caption-not-utf8", f"{error}; it begins {bytes(members['txt'][:20])!r}") from error


def _meta(members: Mapping[str, Data]) -> dict[str, Any]:
    try:
        meta = json.loads(bytes(members["json"])) if "json" in members else {}
    except (ValueError, RecursionError) as error:
        raise BadSample("json-invalid", str(error)) from error
    if not isinstance(meta, dict):
        raise BadSample("json-invalid", f"expected an object, got {type(meta).__name__}")
    return meta


def _label(members: Mapping[str, Data]) -> int | None:
    if "cls" not in members:
        return None
    text = str(members["cls"], "ascii", "replace").strip()
    if not text.isdecimal():
        raise BadSample("label-invalid", f"the .cls member must hold a class number, got {text[:20]!r}")
    return int(text)
