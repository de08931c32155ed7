"""The samples that fulfil every condition: keys, patterns, fields of the json member, a fraction, a number.

    keep = Conditions(where=(Where.parse("similarity>=0.28"), Where.parse("lang==en")), max_per_caption=20, count=100_000)
    subset(["shards/laion"], "shards/english", keep)

Conditions look at one sample at a time, in the order of the shards; only ``max_per_caption`` (how many samples with equal
first captions are kept: "filter" names hundreds of icons) and ``count`` remember earlier ones.
"""

from __future__ import annotations

import json
import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.lint import key_number
from data_prep.output import ShardWriter, new_folder
from data_prep.reader import Reader, Stored
from data_prep.reshard import Copied
from pipeline.data.samples import group_number
from pipeline.errors import DataError

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "~": lambda value, pattern: re.search(str(pattern), str(value)) is not None,
}


@dataclass(frozen=True)
class Where:
    """A condition on one field of the json member. A sample without the field, or with another type, does not fulfil it."""

    path: tuple[str, ...]  # ("exif", "width") for {"exif": {"width": 640}}
    comparison: str
    value: Any

    @staticmethod
    def parse(text: str) -> Where:
        """``width>=256``, ``lang==en``, ``exif.model~Canon``. A value that reads as JSON is one, else it is text.

        Raises DataError when there is no comparison in it.
        """
        match = re.fullmatch(r"([^=!<>~\s]+)\s*(==|!=|>=|<=|>|<|~)\s*(.*)", text, re.DOTALL)
        if match is None:
            raise DataError(f"condition {text!r} is none; write FIELD, one of {' '.join(OPERATORS)}, and a value")
        try:
            value = json.loads(match[3]) if match[2] != "~" else match[3]
        except ValueError:
            value = match[3]
        return Where(tuple(match[1].split(".")), match[2], value)

    def holds(self, meta: dict[str, Any]) -> bool:
        """Whether the json member of a sample fulfils it."""
        value: Any = meta
        for name in self.path:
            if not isinstance(value, dict) or name not in value:
                return False
            value = value[name]
        try:
            return bool(OPERATORS[self.comparison](value, self.value))
        except TypeError:
            return False


@dataclass(frozen=True)
class Conditions:
    """What a kept sample fulfils; None and empty ask nothing."""

    keys: frozenset[str] | None = None
    without_keys: frozenset[str] = frozenset()
    key_pattern: str | None = None
    caption_pattern: str | None = None  # in any of its captions
    where: tuple[Where, ...] = ()
    fraction: float | None = None  # by a hash of the key
    max_per_caption: int | None = None
    count: int | None = None


def subset(
    specs: Sequence[str], out: str, keep: Conditions, *, shard_size: int = 1000, name: str = "subset", force: bool = False
) -> Copied:
    """Copy the samples that fulfil ``keep``.

    Raises DataError when there are no shards, one is damaged, no sample is left, or a key that was asked for is not there.
    """
    reader, report = Reader(specs, "subset"), Copied()
    matches, missing = _matcher(keep), set(keep.keys or ())
    with new_folder(out, force=force) as folder:
        with ShardWriter(folder, name, shard_size=shard_size) as shards:
            for sample in reader:
                if keep.count is not None and shards.num_samples >= keep.count:
                    break
                report.num_samples += 1
                missing.discard(sample.key)
                if matches(sample):
                    shards.add(sample.key, sample.members)
        report.add(shards)
        if missing and keep.count is None:
            shown = ", ".join(sorted(missing)[:5])
            raise DataError(f"{len(missing):,} of {len(keep.keys or ()):,} keys are in no shard: {shown}; correct the list")
        if not report.num_written:
            raise DataError(f"none of {report.num_samples:,} samples fulfils the conditions; nothing was written")
    report.left_out = dict(reader.left_out.counts)
    return report


def _matcher(keep: Conditions) -> Callable[[Stored], bool]:
    """A function that says whether a sample is kept, and remembers how often it saw a caption."""
    key_pattern = _compiled(keep.key_pattern)
    caption_pattern = _compiled(keep.caption_pattern)
    times: Counter[int] = Counter()

    def matches(sample: Stored) -> bool:
        if keep.keys is not None and sample.key not in keep.keys:
            return False
        if sample.key in keep.without_keys or (key_pattern and not key_pattern.search(sample.key)):
            return False
        if keep.fraction is not None and key_number(sample.key) >= keep.fraction * 2**64:
            return False
        if caption_pattern and not any(caption_pattern.search(text) for text in sample.captions):
            return False
        if not all(condition.holds(sample.meta) for condition in keep.where):
            return False
        if keep.max_per_caption is not None and sample.captions:
            caption = group_number("caption", sample.captions[0])
            times[caption] += 1
            return times[caption] <= keep.max_per_caption
        return True

    return matches


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern) if pattern is not None else None
    except re.error as error:
        raise DataError(f"pattern {pattern!r} is no regular expression: {error}") from error
