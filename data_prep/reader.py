"""Samples of existing shards one after another, for the tools that look at them or copy them.

    shards = Reader(["shards/cc3m"])
    for sample in shards:
        sample.key, sample.members["jpg"], sample.captions, sample.meta
    shards.left_out.counts          # Counter({"member-link": 1}): what was no part of a sample

A tar that is cut or damaged ends the reading with an error, since a copy that lost samples would look like a whole one:
``unisphere shards repair`` first. Nothing else is judged; every member of a sample is passed on. Memory: one sample.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from data_prep.findings import Findings
from data_prep.grouping import Finding, groups
from data_prep.inputs import find_tars, open_stream, size_of
from data_prep.lint import whole_samples
from data_prep.pool import progress
from data_prep.walk import walk
from pipeline.data.samples import IMAGE_EXTENSIONS, MAX_MEMBER_BYTES
from pipeline.errors import DataError

LEFT_OUT = ("member-link", "member-device", "member-stray", "member-escapes")


@dataclass(frozen=True)
class Stored:
    """One sample as it lies in its tar: extension -> bytes."""

    shard: str
    key: str
    members: Mapping[str, bytes]

    @property
    def image(self) -> bytes:
        """The encoded image; empty without one."""
        return next((self.members[name] for name in IMAGE_EXTENSIONS if name in self.members), b"")

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The json member; empty without one, or where it is no object."""
        try:
            meta = json.loads(self.members.get("json", b"{}"))
        except ValueError:
            return {}
        return meta if isinstance(meta, dict) else {}

    @cached_property
    def captions(self) -> tuple[str, ...]:
        """The captions that training would draw from: the json member's, else the text member's."""
        stored = self.meta.get("captions") or [self.members.get("txt", b"").decode("utf-8", "replace")]
        texts = [text for text in stored if isinstance(text, str)] if isinstance(stored, list) else []
        return tuple(text.strip() for text in texts if text.strip())


class Reader:
    """Iterates over every sample of the shards that ``specs`` mean, as often as asked, in order of the shards."""

    def __init__(self, specs: Sequence[str], desc: str = "read") -> None:
        """Raises DataError when there are no shards."""
        self.paths = find_tars(specs)
        self.left_out = Findings()
        self._desc = desc

    def __iter__(self) -> Iterator[Stored]:
        self.left_out = Findings()
        with progress(sum(map(size_of, self.paths)), self._desc, "B") as bar:
            for path in self.paths:
                yield from read_shard(path, self.left_out)
                bar.update(size_of(path))


def read_shard(path: str, left_out: Findings) -> Iterator[Stored]:
    """The samples of one tar. Raises DataError at the first place where it is damaged or cannot be read."""
    with open_stream(path) as stream:
        for item in groups(walk(stream, whole_samples(MAX_MEMBER_BYTES))):
            if isinstance(item, Finding):
                if item.kind not in LEFT_OUT:
                    raise DataError(f"{path}: {item.detail} ({item.kind}); make a clean copy with `unisphere shards repair`")
                left_out.add(item.kind, f"{path}: {item.detail}")
                continue
            if any(len(entry.data) < entry.size for entry in item.members.values()):
                bound = f"more than {MAX_MEMBER_BYTES:,} bytes"
                raise DataError(f"{path}: sample {item.key[:80]!r} has {bound}; `unisphere shards repair` leaves it out")
            yield Stored(path, item.key, {name: entry.data for name, entry in item.members.items()})
