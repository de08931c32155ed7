"""Every kind of thing that can be wrong with shards: its name, its exit code, what it means. And their count.

    findings = Findings()
    findings.add("key-duplicate", "a.tar: key '7' at byte 4,096 was there before")
    findings.counts, findings.exit_code         # Counter({"key-duplicate": 1}), 29

Kinds about samples carry the names of the loader's drops (``pipeline.data.drops``), so that one word means one thing from
the raw file to the training log. The table is ordered by gravity: where several kinds were found, the exit code is that of
the first of them in the table, and ``--json`` tells them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

EXAMPLES_PER_KIND = 3
UNKNOWN_KIND_EXIT_CODE = 59


@dataclass(frozen=True)
class Kind:
    """One kind of finding."""

    exit_code: int
    meaning: str


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        # the folder against its manifest
        "manifest-invalid": Kind(10, "the manifest cannot be read"),
        "shard-missing": Kind(11, "the manifest lists a shard that is not there"),
        "shard-unlisted": Kind(12, "a shard that no line of the manifest names: training does not read it"),
        "shard-unreadable": Kind(13, "the shard cannot be opened or read to its end"),
        "shard-size": Kind(14, "the shard has another size than the manifest says"),
        "shard-sha256": Kind(15, "the shard has another SHA-256 than the manifest says"),
        "count-wrong": Kind(16, "the shard holds another number of samples than the manifest says"),
        "index-wrong": Kind(17, "the index is missing or does not describe the shard"),
        "sizes-wrong": Kind(18, "sizes.json is missing or disagrees with the manifest"),
        # the tar
        "tar-truncated-in-member": Kind(20, "the file ends inside a member"),
        "tar-truncated-at-boundary": Kind(21, "the file ends between two members, without an end mark"),
        "tar-damaged": Kind(22, "a block that should be a member's header is none, or contradicts itself"),
        "tar-data-after-end": Kind(23, "members behind the end mark, which readers do not see"),
        # members
        "member-escapes": Kind(24, "a name that leads out of its folder: absolute, or with .."),
        "member-link": Kind(25, "a symbolic or hard link"),
        "member-device": Kind(26, "a device or a pipe"),
        "member-duplicate": Kind(27, "one sample holds the same extension twice, or too many members"),
        "member-unknown": Kind(28, "an extension that training does not read"),
        "member-stray": Kind(29, "a file that belongs to no sample: no extension, hidden, or __name__"),
        "key-duplicate": Kind(30, "two samples of one shard have the same key"),
        "key-not-utf8": Kind(31, "a name that is not UTF-8"),
        # samples: what the loader would drop
        "tar-corrupt": Kind(40, "the sample's bytes are no whole members"),
        "read-failed": Kind(41, "the sample cannot be read"),
        "sample-too-large": Kind(42, "more bytes than training accepts in one sample"),
        "image-missing": Kind(43, "no member is an image"),
        "image-empty": Kind(44, "the image has no bytes"),
        "image-undecodable": Kind(45, "the image is damaged, cut, or of no known format"),
        "image-too-large": Kind(46, "the image describes more pixels than training accepts"),
        "caption-missing": Kind(47, "neither a caption nor a class"),
        "caption-empty": Kind(48, "the captions hold no text"),
        "caption-not-utf8": Kind(49, "the text is not UTF-8"),
        "json-invalid": Kind(50, "the json member is no JSON object, or its captions are no texts"),
        "label-invalid": Kind(51, "the class is no number"),
    }
)


@dataclass
class Findings:
    """What is wrong, counted by kind, with a few examples each; and how much was looked at."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    num_shards: int = 0
    num_samples: int = 0

    def add(self, kind: str, detail: str) -> None:
        """Count one finding."""
        self.counts[kind] += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES_PER_KIND:
            examples.append(detail[:500])

    def merge(self, other: Findings) -> None:
        """Add what another part of the work found; the first examples stay."""
        self.counts.update(other.counts)
        for kind, details in other.examples.items():
            kept = self.examples.setdefault(kind, [])
            kept += details[: EXAMPLES_PER_KIND - len(kept)]
        self.num_shards += other.num_shards
        self.num_samples += other.num_samples

    @property
    def exit_code(self) -> int:
        """0 without findings, else the code of the gravest kind found."""
        codes = [KINDS[kind].exit_code if kind in KINDS else UNKNOWN_KIND_EXIT_CODE for kind in self.counts]
        return min(codes, default=0)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: kinds in the table's order."""
        order = {kind: place for place, kind in enumerate(KINDS)}
        kinds = sorted(self.counts, key=lambda kind: (order.get(kind, len(order)), kind))
        return {
            "num_shards": self.num_shards,
            "num_samples": self.num_samples,
            "num_findings": self.counts.total(),
            "exit_code": self.exit_code,
            "findings": {kind: {"count": self.counts[kind], "examples": self.examples[kind]} for kind in kinds},
        }
