"""Members of a walked tar -> samples, by the rule of training: neighbours with one key are one sample.

    for item in groups(walk(stream, keep), "a.tar"):
        match item:
            case Group():    item.key, item.extensions, item.members["jpg"].data
            case Finding():  item.kind, item.detail         # links, devices, strays, faults of the tar itself

A member that could do harm or that training steps over never becomes part of a group; it becomes a finding. Memory: one
sample at a time, of at most ``MAX_MEMBERS`` members.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from data_prep.walk import Entry, Fault
from pipeline.data.samples import IMAGE_EXTENSIONS
from pipeline.data.tar import SampleSpan, group_key

MAX_MEMBERS = 64
TEXT_EXTENSIONS = ("txt", "json", "cls")  # json may hold the captions; a test set may have labels only


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a shard, and where; kinds are those of ``data_prep.findings``."""

    kind: str
    detail: str
    key: str | None = None
    offset: int | None = None


@dataclass
class Group:
    """One sample. ``members``: extension (lower case) -> entry, in file order."""

    key: str
    offset: int
    end: int
    members: dict[str, Entry] = field(default_factory=dict)
    is_cut: bool = False  # next to a fault, and without members that the sample before had: some may have been lost

    @property
    def extensions(self) -> tuple[str, ...]:
        """Of its members, in file order."""
        return tuple(self.members)

    @property
    def span(self) -> SampleSpan:
        """Where it lies, as an index says it."""
        return SampleSpan(self.key, self.offset, self.end - self.offset, self.extensions)

    @property
    def is_complete(self) -> bool:
        """Whether it has an image and a text."""
        found = self.members.keys()
        return bool(found & set(IMAGE_EXTENSIONS)) and bool(found & set(TEXT_EXTENSIONS))

    @property
    def image(self) -> Entry | None:
        """The member that training takes for the image."""
        return next((self.members[name] for name in IMAGE_EXTENSIONS if name in self.members), None)


def groups(items: Iterable[Entry | Fault]) -> Iterator[Group | Finding]:
    """Yield samples and findings of one tar in file order."""
    group: Group | None = None
    usual: set[str] | None = None  # extensions of the last sample that no fault was next to
    is_beside_fault = False
    for item in items:
        if isinstance(item, Fault):
            if group is not None:  # what follows a fault is not known to belong to what came before it
                group.is_cut = usual is not None and group.members.keys() != usual
                yield group
                group = None
            is_beside_fault = True
            yield Finding(item.kind, item.detail, None, item.offset)
            continue
        finding = _judge(item)
        if finding is not None:
            yield finding
        split = group_key(item.name) if item.kind == "file" and not item.escapes else None
        if split is None:
            continue
        key, extension = split
        if group is None or key != group.key:
            if group is not None:
                yield _closed(group, usual, is_beside_fault)
                usual, is_beside_fault = usual if is_beside_fault else set(group.members), False
            group = Group(key, item.offset, item.end)
        if extension in group.members or len(group.members) >= MAX_MEMBERS:
            detail = f"key {key[:80]!r} has a second {extension[:20]!r} member or more than {MAX_MEMBERS} members"
            yield Finding("member-duplicate", f"{detail}, at byte {item.offset:,}", key, item.offset)
        else:
            group.members[extension] = item
            group.end = item.end
    if group is not None:
        yield _closed(group, usual, is_beside_fault)


def _closed(group: Group, usual: set[str] | None, is_beside_fault: bool) -> Group:
    group.is_cut = is_beside_fault and usual is not None and group.members.keys() != usual
    return group


def _judge(entry: Entry) -> Finding | None:
    """What is wrong with a member whatever its sample looks like; folders are harmless and no finding."""
    where = f"{entry.name[:80]!r} at byte {entry.offset:,}"
    if entry.escapes:
        return Finding("member-escapes", f"member {where} leads out of its folder", None, entry.offset)
    if entry.kind in ("link", "device", "other"):
        kind = "member-device" if entry.kind == "device" else "member-link" if entry.kind == "link" else "member-stray"
        return Finding(kind, f"member {where} is a {entry.kind}, not a file", None, entry.offset)
    if entry.kind == "file" and group_key(entry.name) is None:
        return Finding("member-stray", f"file {where} belongs to no sample", None, entry.offset)
    return None
