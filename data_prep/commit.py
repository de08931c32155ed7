"""From packed chunks to the finished folder, and what a finished folder says about itself.

    OUT/NAME-000000.tar ...  manifest.jsonl  sizes.json  open_lm.jsonl      rows without a split
    OUT/SPLIT/NAME-000000.tar ...                                           rows with one
    OUT/SPLIT/classnames.txt ...  OUT/SPLIT/test/0.tar ...     splits that are test sets: CLIP_benchmark's layout
    OUT/rejects.jsonl        every row that was not accepted, with cause and detail, in input order
    OUT/hashes.jsonl         SHA-256 of every accepted image, for --exclude-hashes of another build
    OUT/source/              what described the source, kept as it was (the tables and statistics of img2dataset)
    OUT/build.json           the report; written last: a folder that has it is complete
    OUT/.build/              work in progress, gone at the end

If we die at any point: staged files get their final names by a second link and are removed only at the end, so the next
run finds every chunk done and commits again. An older dataset that is being replaced loses its manifest first, so that no
manifest ever names a shard that is gone.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from data_prep.inputs import open_stream
from data_prep.layout import CLASSNAMES, DATASET_TYPE, TEMPLATES
from data_prep.manifest import MANIFEST, OPEN_LM, SIZES, ShardLine, index_name, manifest_texts, open_lm_text, parse_manifest
from data_prep.pack import STAGING, Packed, read_record, staged
from data_prep.places import Place, write_text
from data_prep.rows import EvalTexts, Source
from pipeline.errors import DataError

REPORT = "build.json"
REJECTS = "rejects.jsonl"
HASHES = "hashes.jsonl"
OLD = f"{STAGING}/=old.json"
CHUNK_BYTES = 1 << 20


@dataclass
class Report:
    """What a build did, or with ``--dry-run`` would do before looking at the images."""

    fingerprint: str  # of the plan
    num_rows: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # by cause
    splits: dict[str, dict[str, int]] = field(default_factory=dict)  # split -> shards, samples, bytes
    examples: dict[str, str] = field(default_factory=dict)  # cause -> its first detail
    left_out: Counter[str] = field(default_factory=Counter)  # parts of accepted rows, like a caption too short, by cause
    num_reused: int = 0  # shards kept from an interrupted run
    already_complete: bool = False
    part: str = ""  # "i/n" when only that part of the chunks was packed

    def add(self, split: str, count: int, num_bytes: int, rejects: Iterable[Any], left_out: Mapping[str, int]) -> None:
        """Account for one chunk."""
        if count:
            sizes = self.splits.setdefault(split, {"shards": 0, "samples": 0, "bytes": 0})
            sizes["shards"] += 1
            sizes["samples"] += count
            sizes["bytes"] += num_bytes
        self.accepted += count
        self.left_out.update(left_out)
        for reject in rejects:
            self.rejected[reject.cause] += 1
            self.examples.setdefault(reject.cause, f"row {reject.row}: {reject.detail}")

    def as_dict(self) -> dict[str, Any]:
        """For JSON; without what depends on how the run went."""
        kept = ("fingerprint", "num_rows", "accepted", "splits", "examples")
        return {
            **{name: getattr(self, name) for name in kept},
            "num_rejected": self.rejected.total(),
            "rejected": dict(sorted(self.rejected.items())),
            "left_out": dict(sorted(self.left_out.items())),
        }


def records(place: Place, split: str, num_chunks: int) -> Iterator[Packed]:
    """The records of a split in order. Raises DataError when one is missing."""
    for number in range(num_chunks):
        packed = read_record(place, split, number)
        if packed is None:
            raise DataError(f"{place.show(staged(split, number, '.json'))} has gone while in use; run the same command again")
        yield packed


def commit(source: Source, place: Place, numbers: Mapping[str, int], report: Report) -> None:
    """Give the staged shards of ``numbers`` (split -> chunks) their final names and describe them; ``build.json`` last.

    Fills ``report``. A build that accepted nothing leaves an older dataset alone.
    """
    for split in sorted(numbers):
        for packed in records(place, split, numbers[split]):
            report.add(split, packed.count, packed.bytes, packed.rejects, packed.left_out)
    num_out = report.accepted + report.rejected.total()
    assert num_out == report.num_rows, f"{report.num_rows} rows went in, {num_out} came out"
    _write_lines(place, REJECTS, _reject_lines(place, numbers))
    if report.accepted:
        _remove_earlier_build(place)
        for split in report.splits:
            _publish(source, place, split, numbers[split])
        _write_lines(place, HASHES, (line for split in sorted(numbers) for line in _hash_lines(place, split, numbers[split])))
        for path in source.companions:
            _keep(path, place)
        write_text(place, REPORT, json.dumps(report.as_dict(), indent=1) + "\n")
    place.remove_tree(STAGING)


def shard_name(source: Source, split: str, number: int) -> str:
    """Final name of the ``number``-th shard of a split that holds samples, below the output."""
    if split in source.eval_sets:
        return join(split, "test", f"{number}.tar")
    return join(split, f"{source.name}-{number:06d}.tar")


def join(*parts: str) -> str:
    """Names put together; empty ones are the place itself.

    >>> join("", "manifest.jsonl"), join("train", "a.tar")
    ('manifest.jsonl', 'train/a.tar')
    """
    return "/".join(part for part in parts if part)


def read_report(place: Place) -> Report | None:
    """The stored report; None when there is none. Raises DataError when it is damaged."""
    content = place.read(REPORT)
    if content is None:
        return None
    try:
        stored = json.loads(content)
        names = ("fingerprint", "num_rows", "accepted", "splits", "examples")
        fields: dict[str, Any] = {name: stored[name] for name in names}
        fields.update({name: Counter(stored[name]) for name in ("rejected", "left_out")})
        return Report(**fields, already_complete=True)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{place.show(REPORT)} cannot be read ({error!r}); pass --force to build again") from error


def shard_lines(place: Place, report: Report) -> Iterator[tuple[str, ShardLine]]:
    """(folder, manifest line) of every shard that a finished build has. Raises DataError for a damaged manifest."""
    for split in report.splits:
        for folder in (split, join(split, "test")):
            content = place.read(join(folder, MANIFEST))
            if content is not None:
                for line in parse_manifest(content, place.show(join(folder, MANIFEST))):
                    yield folder, line


def _publish(source: Source, place: Place, split: str, num_chunks: int) -> None:
    lines: list[ShardLine] = []
    for packed in records(place, split, num_chunks):
        if packed.count:
            folder, _, shard = shard_name(source, split, len(lines)).rpartition("/")
            place.publish(staged(split, packed.number, ".index.jsonl"), join(folder, index_name(shard)))
            place.publish(staged(split, packed.number, ".tar"), join(folder, shard))
            lines.append(ShardLine(shard, packed.count, packed.bytes, packed.sha256, index_name(shard)))
    if split in source.eval_sets:
        _write_eval_texts(place, split, source.eval_sets[split], len(lines))
    sizes, manifest = manifest_texts(lines)
    write_text(place, join(folder, SIZES), sizes)
    write_text(place, join(folder, OPEN_LM), open_lm_text(lines))
    write_text(place, join(folder, MANIFEST), manifest)


def _write_eval_texts(place: Place, split: str, texts: EvalTexts, num_shards: int) -> None:
    """The text files of CLIP_benchmark's layout; a set without classes says that it is for retrieval."""
    if texts.classnames:
        write_text(place, join(split, CLASSNAMES), "".join(f"{name}\n" for name in texts.classnames))
        templates = "".join(f"{line}\n" for line in texts.templates)
        write_text(place, join(split, TEMPLATES), templates)
    else:
        write_text(place, join(split, DATASET_TYPE), "retrieval\n")
    write_text(place, join(split, "test", "nshards.txt"), f"{num_shards}\n")


def _reject_lines(place: Place, numbers: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """Every reject in input order. Within a split chunks follow each other, so a merge of the splits is enough."""

    def of(split: str) -> Iterator[dict[str, Any]]:
        for packed in records(place, split, numbers[split]):
            yield from (vars(reject) for reject in packed.rejects)

    return heapq.merge(*map(of, sorted(numbers)), key=lambda reject: int(reject["row"]))


def _hash_lines(place: Place, split: str, num_chunks: int) -> Iterator[dict[str, Any]]:
    for packed in records(place, split, num_chunks):
        for sample in packed.kept:
            line = {"row": sample.row, "split": split, "key": sample.key, "sha256": sample.sha256}
            yield line if sample.perceptual is None else {**line, "perceptual": f"{sample.perceptual:016x}"}


def _write_lines(place: Place, name: str, lines: Iterable[dict[str, Any]]) -> None:
    with place.writer(name) as handle:
        for line in lines:
            handle.write(json.dumps(line).encode("ascii") + b"\n")


def _keep(path: str, place: Place) -> None:
    """Copy a file that describes the source."""
    with open_stream(path) as stream, place.writer(join("source", path.rpartition("/")[2])) as handle:
        while chunk := stream.read(CHUNK_BYTES):
            handle.write(chunk)


def _remove_earlier_build(place: Place) -> None:
    """Remove what ``build.json`` accounts for and nothing else, manifests first.

    The list is written down before, so that a run that dies here leaves the next one what to remove.
    """
    listed = place.read(OLD)
    if listed is None:
        report = read_report(place)
        if report is None:
            return
        folders: dict[str, None] = {}
        files: list[str] = []
        for folder, line in shard_lines(place, report):
            folders[folder] = None
            files += [join(folder, name.rpartition("/")[2]) for name in (line.shard, line.index)]
        listed = json.dumps([*(join(folder, MANIFEST) for folder in folders), REPORT, *files]).encode()
        with place.writer(OLD) as handle:
            handle.write(listed)
    for name in json.loads(listed):
        place.remove(name)
    place.remove(OLD)
