"""One pass over a shard that checks everything a sample must be, with the loader's own judgement.

    for item in checked(stream, Rules()):
        match item:
            case Checked():  item.group, item.members, item.findings      # findings empty: training can use it
            case Finding():  ...                                          # of the shard, not of one sample

``verify`` counts what comes out of here, ``repair`` writes what has no finding, and the tools that copy samples stop at the
first finding. Memory: one sample, and eight bytes per key of the shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from data_prep.grouping import TEXT_EXTENSIONS, Finding, Group, groups
from data_prep.pictures import examine
from data_prep.rows import BadRow
from data_prep.walk import Entry, walk
from pipeline.data.drops import BadSample
from pipeline.data.samples import IMAGE_EXTENSIONS, MAX_MEMBER_BYTES, Reading, sample_from
from pipeline.data.tar import ByteStream, group_key, padded

KNOWN_EXTENSIONS = frozenset((*IMAGE_EXTENSIONS, *TEXT_EXTENSIONS))
MEMBER_KINDS = ("member-duplicate", "member-unknown")
"""Findings about a member of a sample that can do without it."""


@dataclass(frozen=True)
class Rules:
    """What to check. ``allow``: further extensions that are no finding. ``decode``: whether to decode every image."""

    allow: frozenset[str] = frozenset()
    decode: bool = True
    max_bytes: int = MAX_MEMBER_BYTES


@dataclass
class Checked:
    """A sample, the bytes of its members by extension, and what is wrong with it."""

    group: Group
    members: dict[str, bytes]
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_usable(self) -> bool:
        """Whether training can use it; single members may still be unwanted."""
        return all(finding.kind in MEMBER_KINDS for finding in self.findings)


def checked(stream: ByteStream, rules: Rules) -> Iterator[Checked | Finding]:
    """Yield every sample of a tar with its findings, and the findings that belong to no sample, in file order."""
    seen: set[int] = set()
    for item in groups(walk(stream, whole_samples(rules.max_bytes))):
        if isinstance(item, Finding):
            yield item
            continue
        sample = _check(item, rules)
        number = key_number(item.key)
        if number in seen:
            detail = f"key {item.key[:80]!r} at byte {item.offset:,} was there before"
            sample.findings.append(Finding("key-duplicate", detail, item.key, item.offset))
        seen.add(number)
        yield sample


def key_number(text: str) -> int:
    """64 bits of a hash of a key: a million of them fit where a million keys would not."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


def whole_samples(max_bytes: int) -> Callable[[str, int], int]:
    """A ``keep`` for ``walk``: whole members, while all of one sample's stay below ``max_bytes``; else nothing."""
    current, used = "", 0

    def keep(name: str, size: int) -> int:
        nonlocal current, used
        split = group_key(name)
        if split is None:
            return 0
        if split[0] != current:
            current, used = split[0], 0
        used += size
        return size if used <= max_bytes else 0

    return keep


def _check(group: Group, rules: Rules) -> Checked:
    entries = group.members
    data = {name: entry.data for name, entry in entries.items()}
    sample = Checked(group, {name: data[name] for name in data if name in KNOWN_EXTENSIONS or name in rules.allow})

    def found(kind: str, detail: str) -> None:
        sample.findings.append(Finding(kind, f"sample {group.key[:80]!r}: {detail}", group.key, group.offset))

    if group.is_cut:
        found("tar-corrupt", f"next to the damage only {', '.join(f'.{name}' for name in data)} of its members are left")
        return sample
    for name in data.keys() - sample.members.keys():
        found("member-unknown", f"member .{name[:40]}; known are .{', .'.join(sorted(KNOWN_EXTENSIONS))}")
    if _has_surrogates(group.key):
        found("key-not-utf8", "its name is not UTF-8")
    num_bytes = sum(512 + padded(entry.size) for entry in entries.values())
    if num_bytes > rules.max_bytes or any(len(entry.data) < entry.size for entry in entries.values()):
        found("sample-too-large", f"its members take {num_bytes:,} bytes, the bound is {rules.max_bytes:,}")
        return sample
    for kind, detail in _verdicts(group.image, sample.members, rules):
        found(kind, detail)
    return sample


def _verdicts(image: Entry | None, members: Mapping[str, bytes], rules: Rules) -> Iterator[tuple[str, str]]:
    """(kind, detail) of what the loader refuses; then what it does not look at, or only later: texts and pixels."""
    try:
        read_as_training(members)
    except BadSample as bad:
        yield bad.drop.cause, bad.drop.detail
        return
    try:
        members.get("txt", b"").decode("utf-8")
    except UnicodeDecodeError as error:
        yield "caption-not-utf8", f"text member: {error}"
    if image is not None and rules.decode:
        try:
            examine(image.data)
        except BadRow as bad:
            yield bad.cause, bad.detail


def read_as_training(members: Mapping[str, bytes]) -> tuple[str, ...]:
    """The captions that training would read from these members (test sets: empty where there is a class).

    Raises BadSample exactly when the loader would drop the sample.
    """
    by_extension = {name.lower(): data for name, data in members.items()}
    return sample_from(by_extension, Reading(evaluation=True), "?", "?").captions


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)
