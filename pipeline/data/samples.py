"""Shards as one sequence of samples: ``ShardSet.read(i)`` fetches one byte range and parses it. Layer 1; no torch.

    shards = ShardSet.open("shards/cc3m")           # or a brace pattern, or one .tar; see shards.py
    shards.preflight()                              # wrong member names fail here, in the first second
    len(shards), shards.counts                      # 3318333, array([10000, 10000, ...])
    shards.read(17).captions                        # ("a dog on a red sofa",)

A sample is the members of one tar that share a key:

    KEY.png (or .jpg, .jpeg, .webp, .gif, .bmp, .tif, .tiff)    the picture, encoded
    KEY.txt                                                     the caption, UTF-8
    KEY.json     optional                                       {"captions": [...], "group": "...", anything else}
    KEY.cls      optional                                       the class number, in ASCII digits

``captions`` of the JSON member win over the text member. Samples of one ``group`` (without one: of one first caption,
ignoring case and spacing) are different pictures of the same thing: the loss must not push them apart, so each carries
a group number.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.data import tar
from pipeline.data.drops import BadSample
from pipeline.data.shards import ByteSource, LocalFiles, Shard, ShardIndex, load_index, resolve
from pipeline.errors import DataError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
MAX_MEMBER_BYTES = 64_000_000
MAX_LOADED_INDEXES = 64
"""A shuffle window touches few shards, so that few indexes are in use at a time; more would only cost memory."""

PREFLIGHT_SHARDS = 4


@dataclass(frozen=True)
class Sample:
    """One image-text pair as stored: ``image`` still encoded, ``group`` in [0, 2^63), ``label`` None without .cls."""

    key: str
    shard: str
    image: bytes
    captions: tuple[str, ...]
    group: int
    label: int | None
    meta: dict[str, Any]


def group_number(kind: str, text: str) -> int:
    """A 63-bit number for a group name (``kind`` "group") or a caption ("caption"), the same on every machine."""
    normal = " ".join(text.lower().split()) if kind == "caption" else text
    return int.from_bytes(hashlib.blake2b(f"{kind}:{normal}".encode(), digest_size=8).digest(), "big") >> 1


class ShardSet:
    """A sequence of samples over shards, numbered shard after shard.

    Args:
        shards: from ``shards.resolve``.
        source: what to read them through; local files by default.
        max_member_bytes: a sample whose members take more is refused before it is read.
        evaluation: test sets may have labels instead of captions, and several captions as the lines of one text member.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        source: ByteSource | None = None,
        *,
        max_member_bytes: int = MAX_MEMBER_BYTES,
        evaluation: bool = False,
    ) -> None:
        self.shards = tuple(shards)
        self.counts = np.array([shard.count for shard in shards], np.int64)
        self._first = np.cumsum(self.counts) - self.counts
        self._total = int(self.counts.sum())
        self._source: ByteSource = source or LocalFiles()
        self._max_member_bytes = max_member_bytes
        self._evaluation = evaluation
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()

    @staticmethod
    def open(spec: str, *, max_member_bytes: int = MAX_MEMBER_BYTES) -> ShardSet:
        """Open a folder, a brace pattern, or one tar. Raises DataError as ``shards.resolve`` does."""
        source = LocalFiles()
        return ShardSet(resolve(spec, source), source, max_member_bytes=max_member_bytes)

    def __len__(self) -> int:
        return self._total

    @property
    def sources(self) -> tuple[str, ...]:
        """Paths of the shards, in order."""
        return tuple(shard.path for shard in self.shards)

    def read(self, i: int) -> Sample:
        """Sample ``i`` in [0, len).

        Raises:
            BadSample: this one sample cannot be used; cause, shard and key are in its ``drop``.
            DataError: the index of its whole shard is broken.
        """
        shard, key, members = self._members(i)
        try:
            return self._sample(shard.path, key, members)
        except BadSample as bad:
            raise bad.located(shard.path, key) from bad

    def locate(self, i: int) -> tuple[str, str]:
        """Shard path and key of sample ``i``, without reading it."""
        shard, index, row = self._locate(i)
        return shard.path, index.keys[row]

    def preflight(self, k: int = 8) -> None:
        """Read the first ``k`` samples of the first shards, so that a wrong layout fails before anything is started.

        Raises:
            DataError: not one of them can be used; names the members found and those expected.
        """
        found: set[str] = set()
        first_bad: BadSample | None = None
        num_read = 0
        for shard in [number for number in range(len(self.shards)) if self.counts[number]][:PREFLIGHT_SHARDS]:
            for i in range(self._first[shard], self._first[shard] + min(k, self.counts[shard])):
                num_read += 1
                try:
                    found.update(self._members(i)[2])
                    self.read(i)
                    return
                except BadSample as bad:
                    first_bad = first_bad or bad
        assert first_bad is not None, "a ShardSet has at least one sample"
        raise DataError(
            f"none of the first {num_read} samples can be used; the first fails with {first_bad}. "
            f"Members found: {', '.join('.' + extension for extension in sorted(found)) or 'none readable'}. "
            f'Expected: an image (.{", .".join(IMAGE_EXTENSIONS)}) with a caption in .txt or in .json\'s "captions"'
            f"{', or a class in .cls' if self._evaluation else ''}. "
            "Rename the members, or build the shards again with `unisphere shards build`"
        )

    def _locate(self, i: int) -> tuple[Shard, ShardIndex, int]:
        if not 0 <= i < self._total:
            raise IndexError(f"sample {i} of {self._total}")
        number = int(np.searchsorted(self._first, i, side="right")) - 1
        index = self._indexes.pop(number, None)
        if index is None:
            index = load_index(self.shards[number], self._source)
        self._indexes[number] = index
        if len(self._indexes) > MAX_LOADED_INDEXES:
            self._indexes.popitem(last=False)
        return self.shards[number], index, i - int(self._first[number])

    def _members(self, i: int) -> tuple[Shard, str, dict[str, bytes]]:
        shard, index, row = self._locate(i)
        key, offset, size = index.keys[row], int(index.offset[row]), int(index.size[row])
        if size > self._max_member_bytes:
            detail = f"its members take {size:,} bytes, the bound is {self._max_member_bytes:,} (data.max_member_bytes)"
            raise BadSample("sample-too-large", detail, shard=shard.path, key=key)
        try:
            buffer = self._source.read(shard.path, offset, size)
        except OSError as error:
            raise BadSample("read-failed", str(error), shard=shard.path, key=key) from error
        if len(buffer) < size:
            detail = f"only {len(buffer):,} of {size:,} bytes at byte {offset:,}: the shard was cut while in use"
            raise BadSample("read-failed", detail, shard=shard.path, key=key)
        try:
            return shard, key, tar.parse_sample(buffer, f"{shard.path} at byte {offset:,}")
        except DataError as error:
            raise BadSample("tar-corrupt", str(error), shard=shard.path, key=key) from error

    def _sample(self, shard: str, key: str, members: Mapping[str, bytes]) -> Sample:
        image = next((members[extension] for extension in IMAGE_EXTENSIONS if extension in members), None)
        if image is None:
            raise BadSample("image-missing", f"members are {', '.join('.' + extension for extension in members)}")
        if not image:
            raise BadSample("image-empty", "the image has 0 bytes")
        meta = _meta(members)
        label = _label(members)
        stored = meta.pop("captions", None)
        captions = self._captions(members, stored)
        if not captions and not (self._evaluation and label is not None):
            cause = "caption-empty" if stored is not None or "txt" in members else "caption-missing"
            raise BadSample(cause, f"members are {', '.join('.' + extension for extension in members)}")
        group = meta.pop("group", None)
        if group is not None:
            number = group_number("group", str(group))
        else:
            number = group_number("caption", captions[0] if captions else f"class {label}")
        return Sample(key, shard, image, captions, number, label, meta)

    def _captions(self, members: Mapping[str, bytes], stored: Any) -> tuple[str, ...]:
        if not stored:
            try:
                text = members.get("txt", b"").decode("utf-8")
            except UnicodeDecodeError as error:
                raise BadSample("caption-not-utf8", f"{error}; it begins {members['txt'][:20]!r}") from error
            stored = text.split("\n") if self._evaluation else [text]
        if not isinstance(stored, list) or not all(isinstance(caption, str) for caption in stored):
            raise BadSample("json-invalid", f'"captions" must be a list of texts, got {str(stored)[:60]!r}')
        return tuple(caption.strip() for caption in stored if caption.strip())


def _meta(members: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        meta = json.loads(members["json"]) if "json" in members else {}
    except ValueError as error:
        raise BadSample("json-invalid", str(error)) from error
    if not isinstance(meta, dict):
        raise BadSample("json-invalid", f"expected an object, got {type(meta).__name__}")
    return meta


def _label(members: Mapping[str, bytes]) -> int | None:
    if "cls" not in members:
        return None
    text = members["cls"].decode("ascii", "replace").strip()
    if not text.isdecimal():
        raise BadSample("label-invalid", f"the .cls member must hold a class number, got {text[:20]!r}")
    return int(text)
