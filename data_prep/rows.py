"""A row: one image with its captions, as every source yields it; and what makes it unusable before its image is read.

    row = from_fields(7, {"image": "cats/1.jpg", "caption": "a cat", "licence": "CC0"}, base=Path("/data"))
    row.image, row.captions, row.meta          # ('/data/cats/1.jpg', ('a cat',), {'licence': 'CC0'})

Field names of tables and JSON lines (the first one present counts):

    image | filepath | path | file_name | url     a path relative to the table, or a URL that fsspec knows
    caption | captions | text | title       one text, or a list of texts (csv and tsv: a JSON list in ``captions``)
    key    split    label | cls             optional: name of the sample, sub-folder, class number
    group                                   optional: samples of a group show the same thing and are never negatives

Every other field is kept in the sample's json member.

A text that was not UTF-8 reaches this module with lone surrogates (``errors="surrogateescape"``): it cannot be encoded
again, which is how it is recognised, whatever file it came from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

IMAGE_FIELDS = ("image", "filepath", "path", "file_name", "url")
CAPTION_FIELDS = ("caption", "captions", "text", "title")
LABEL_FIELDS = ("label", "cls")
MAX_CAPTION_BYTES = 100_000
MAX_KEY_BYTES = 80  # a key and its longest extension must fit the 100 bytes of a tar header's name


class BadRow(Exception):
    """This row cannot become a sample: ``cause`` is the word it is counted under, ``detail`` what exactly is wrong."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause, self.detail = cause, detail


@dataclass(frozen=True)
class Row:
    """One image with its captions, not yet checked. ``problem`` is set when the row could not even be read."""

    number: int  # place in the source, from 0
    image: str = ""  # local path or fsspec URL
    captions: tuple[str, ...] = ()
    key: str | None = None
    split: str = ""  # sub-folder of the output; empty for none
    label: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)  # the rest of the json member, ``group`` included
    left_out: int = 0  # parts of the row that no sample can hold, like a second image; counted in the report
    problem: BadRow | None = None


@dataclass(frozen=True)
class EvalTexts:
    """What turns a split into a test set in CLIP_benchmark's layout; both empty for a retrieval set."""

    classnames: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()  # with {c} for the class name


@dataclass(frozen=True)
class Source:
    """Rows that can be read any number of times, always the same ones in the same order."""

    name: str  # of the shards: NAME-000000.tar
    rows: Callable[[], Iterator[Row]]
    eval_sets: Mapping[str, EvalTexts] = field(default_factory=dict)  # split -> its texts
    root: str = ""  # local folder or file that must still be there when images are missing; empty: not to be checked
    companions: tuple[str, ...] = ()  # paths of files that describe the source and are copied to OUT/source/


def from_fields(number: int, fields: Mapping[str, Any], base: Path | str) -> Row:
    """The row that named fields describe. A field of the wrong kind gives a row with a ``problem``, no exception."""
    rest = dict(fields)
    try:
        image = _first(rest, IMAGE_FIELDS)
        if not isinstance(image, str) or not image:
            raise BadRow("image-missing", f"no image named; fields are {', '.join(map(repr, fields))}")
        captions = [text for name in CAPTION_FIELDS if name in rest for text in _captions(name, rest.pop(name))]
        key, split = rest.pop("key", None), rest.pop("split", None)
        label = _label(_first(rest, LABEL_FIELDS))
        return Row(
            number,
            locate(image, base),
            tuple(captions),
            None if key in (None, "") else str(key),
            "" if split is None else str(split),
            label,
            rest,
        )
    except BadRow as problem:
        return Row(number, image=str(fields.get("image", "")), problem=problem)


def from_members(number: int, image: str, key: str, members: Mapping[str, bytes], *, lines: bool, left_out: int = 0) -> Row:
    """The row of an image at ``image`` whose other members (txt, json, cls) were read: from a tar, or beside it in a folder.

    As in training, a list of ``captions`` in the json member wins over the text member, and that over anything else. Its
    ``lines`` are captions of their own, or together one. A key inside the json member is the same fact twice, and dropped.
    """
    try:
        fields = _json_member(members["json"]) if "json" in members else {}
        if not fields.get("captions") and "txt" in members:
            fields = {name: value for name, value in fields.items() if name not in CAPTION_FIELDS}
            text = _text(members["txt"], "utf-8-sig")
            fields["captions"] = text.splitlines() or [""] if lines else [text]
        if "cls" in members:
            fields.update(label=_text(members["cls"]).strip())
        fields = {name: value for name, value in fields.items() if name not in ("key", "image")}
        row = from_fields(number, {"image": image, **fields}, "")
        return replace(row, key=key, left_out=left_out)
    except BadRow as problem:
        return Row(number, image=image, key=key, problem=problem)


def locate(image: str, base: Path | str) -> str:
    """``image`` as an absolute path or a URL; the file at the end of a chained URL may be relative to ``base`` too.

    >>> locate("zip://cat.png::pictures.zip", Path("/data")), locate("cat.png", "s3://bucket/set")
    ('zip://cat.png::/data/pictures.zip', 's3://bucket/set/cat.png')
    """
    head, chain, last = image.rpartition("::")
    if "://" in last:
        return image
    if isinstance(base, str) and "://" in base and not last.startswith("/"):
        return f"{head}{chain}{base}/{last}"
    return head + chain + str(base / Path(last))


def clean_key(key: str) -> str:
    """``key`` as it may stand in a tar: letters, digits and ``_ = + @ -``; everything else becomes ``_``.

    Dots would end the key early (webdataset splits at the first one) and slashes would make folders.
    Raises BadRow for a key that is empty, too long, or climbs out of its folder: such a key is no accident of naming.
    """
    if key.startswith("/") or ".." in re.split(r"[/\\]", key) or "\0" in key:
        raise BadRow("key-invalid", f"key {key[:80]!r} points outside its folder")
    clean = re.sub(r"[^\w=+@-]", "_", key)
    if not clean.strip("_"):
        raise BadRow("key-invalid", f"key {key[:80]!r} holds no letter or digit")
    try:
        num_bytes = len(clean.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise BadRow("key-invalid", f"key {key[:80]!r} is not UTF-8") from error
    if num_bytes > MAX_KEY_BYTES:
        raise BadRow("key-invalid", f"key {key[:80]!r} has {num_bytes} bytes, at most {MAX_KEY_BYTES} fit a tar header")
    return clean


def usable_captions(captions: tuple[str, ...]) -> list[str]:
    """The captions that hold text, without surrounding space. Raises BadRow when one is unusable or none is left."""
    for caption in captions:
        try:
            num_bytes = len(caption.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise BadRow("caption-not-utf8", f"{caption[:40]!r}") from error
        if num_bytes > MAX_CAPTION_BYTES:
            raise BadRow("caption-too-long", f"{num_bytes:,} bytes, at most {MAX_CAPTION_BYTES:,}: {caption[:40]!r}")
    texts = [caption.strip() for caption in captions if caption.strip()]
    if not texts:
        raise BadRow("caption-empty" if captions else "caption-missing", f"{len(captions)} captions, none with text")
    return texts


def usable_split(split: str) -> str:
    """``split`` if it may name a folder. Raises BadRow otherwise."""
    if split and not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", split):
        raise BadRow("split-invalid", f"split {split[:80]!r} cannot name a folder; use letters, digits, '-', '_'")
    return split


def _text(data: bytes, encoding: str = "utf-8") -> str:
    return data.decode(encoding, "surrogateescape")


def _json_member(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(_text(data, "utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadRow("json-invalid", f"{error}; begins {data[:40]!r}") from error
    if not isinstance(fields, dict):
        raise BadRow("json-invalid", f"expected an object, got {type(fields).__name__}")
    return fields


def _first(fields: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Remove and return the first of ``names`` that is present, None if none is."""
    return next((fields.pop(name) for name in names if name in fields), None)


def _captions(name: str, value: Any) -> list[str]:
    if name == "captions" and isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadRow("row-invalid", f"field 'captions' begins with '[' but is not a JSON list: {error}") from error
    texts = [] if value is None else value if isinstance(value, list) else [value]
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong:
        raise BadRow(
            "row-invalid", f"field {name!r} must hold text, got {str(wrong[0])[:40]} of type {type(wrong[0]).__name__}"
        )
    return texts


def _label(value: Any) -> int | None:
    if value is None or value == "":
        return None
    if not re.fullmatch(r"[0-9]{1,9}", str(value)):
        raise BadRow("label-invalid", f"label {str(value)[:40]!r} is not a class number (0, 1, 2, ...)")
    return int(value)
