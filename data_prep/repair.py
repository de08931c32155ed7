"""A clean copy of damaged shards: what training can use is kept, what it cannot is listed, and the counts add up.

    report = repair(["shards/broken"], "shards/clean")
    report.num_samples == report.num_kept + report.num_dropped        # every sample that was found is one of the two
    # shards/clean/rejects.jsonl: {"shard", "key", "offset", "cause", "detail"}, one line per finding

The copy keeps names, order and members of the shards. Behind a damaged header it goes on at the next member that can be
recognised, also behind an early end mark (tars joined with ``cat``); of two samples with one key the first stays; a member
that training does not read, or that a sample has twice, is left out while its sample stays. A sample next to the damage
stays only if it has the members that the sample before it had, since else it may have lost some. Samples inside the damaged
stretch itself cannot be counted, only listed as one finding: compare with the manifest's count where there is one.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from data_prep.grouping import Finding
from data_prep.inputs import find_tars, is_remote, open_stream, size_of, split_path
from data_prep.lint import Rules, checked
from data_prep.output import ShardWriter, new_folder
from data_prep.pool import progress
from pipeline.errors import DataError

REJECTS = "rejects.jsonl"
TEXTS = ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt", "nshards.txt")


@dataclass
class Repaired:
    """What a repair did."""

    num_shards: int = 0
    num_samples: int = 0
    num_kept: int = 0
    num_dropped: int = 0
    num_renamed: int = 0  # keys too long for a plain tar header
    causes: Counter[str] = field(default_factory=Counter)  # findings by kind; a sample may have several

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "causes": dict(sorted(self.causes.items()))}


def repair(specs: Sequence[str], out: str, *, rules: Rules | None = None, force: bool = False) -> Repaired:
    """Copy the usable samples of the shards that ``specs`` mean into the new folder ``out``.

    Raises DataError when there are no shards, nothing usable is in them, or ``out`` cannot be written; then ``out`` does
    not come to exist.
    """
    paths = find_tars(specs)
    rules = rules or Rules()
    report = Repaired()
    with new_folder(out, force=force) as folder, progress(sum(map(size_of, paths)), "repair", "B") as bar:
        with open(folder / REJECTS, "w", encoding="ascii") as rejects:
            for parent, children in _by_folder(specs, paths).items():
                with ShardWriter(folder / parent, "") as shards:
                    for path in children:
                        shards.start(split_path(path)[1])
                        _copy(path, shards, rules, rejects, report)
                        bar.update(size_of(path))
                    report.num_renamed += shards.num_renamed
        if not report.num_kept:
            found = ", ".join(f"{kind} ({count})" for kind, count in report.causes.most_common(5)) or "no sample at all"
            raise DataError(f"nothing in {', '.join(specs)} can be used: {found}; see `unisphere shards verify`")
        _copy_texts(specs, folder)
    return report


def _roots(specs: Sequence[str]) -> list[str]:
    """The folders among ``specs``."""
    return [spec.rstrip("/") if is_remote(spec) else os.path.abspath(spec) for spec in specs if not spec.endswith(".tar")]


def _by_folder(specs: Sequence[str], paths: Sequence[str]) -> dict[str, list[str]]:
    """Paths by their folder, relative to the spec that they were found in."""
    grouped: dict[str, list[str]] = {}
    for path in paths:
        folder = split_path(path)[0]
        root = next((root for root in _roots(specs) if folder == root or folder.startswith(root + "/")), folder)
        grouped.setdefault(folder[len(root) :].strip("/"), []).append(path)
    for children in grouped.values():
        name, times = Counter(split_path(path)[1] for path in children).most_common(1)[0]
        if times > 1:
            raise DataError(f"{times} of the shards are called {name}; repair one folder at a time")
    return grouped


def _copy(path: str, shards: ShardWriter, rules: Rules, rejects: TextIO, report: Repaired) -> None:
    """Append the usable samples of one tar to the open shard, and every finding to ``rejects``."""
    report.num_shards += 1

    def reject(finding: Finding) -> None:
        report.causes[finding.kind] += 1
        place = {"shard": path, "key": finding.key, "offset": finding.offset}
        rejects.write(json.dumps({**place, "cause": finding.kind, "detail": finding.detail}) + "\n")

    with open_stream(path) as stream:
        for item in checked(stream, rules):
            if isinstance(item, Finding):
                reject(item)
                continue
            report.num_samples += 1
            for finding in item.findings:
                reject(finding)
            if item.is_usable:
                shards.add(item.group.key, item.members)
                report.num_kept += 1
            else:
                report.num_dropped += 1
    assert report.num_samples == report.num_kept + report.num_dropped, "a sample is kept or dropped"


def _copy_texts(specs: Sequence[str], folder: Path) -> None:
    """Take the texts of test sets along, which lie beside their ``test`` folder."""
    for root in _roots(specs):
        for name in TEXTS:
            for source in sorted(Path(root).rglob(name)):
                target = folder / source.relative_to(root)
                if target.parent.is_dir():
                    target.write_bytes(source.read_bytes())
