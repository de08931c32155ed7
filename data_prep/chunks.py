"""Rows -> chunks -> one tar each. A chunk's tar is a function of the chunk alone, whoever packs it and whenever.

    for chunk in plan(source, shard_size=1000):      # cheap: opens no image
        packed = pack(chunk, staging)                # reads its images, writes <split>/000000.tar, .index.jsonl, .json

Rows are dealt to chunks in source order, ``shard_size`` usable ones at a time for each split, **before** any image is
read. So the content of a chunk does not depend on what became of the others, chunks can be packed in any order by any
number of processes, and a chunk that an interrupted run finished can be told from one that it did not. The price: an
image that turns out unreadable leaves its shard one sample short.

The .json record is written last. It names the fingerprint of the chunk (a hash of everything that was planned) and the
SHA-256 of the tar; ``pack`` returns it without work only while both still hold.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_prep.files import atomic, sha256_of, write_text
from data_prep.manifest import index_line
from data_prep.pictures import extension, fetch
from data_prep.rows import BadRow, Row, Source, clean_key, usable_captions, usable_split
from pipeline.data.samples import MAX_MEMBER_BYTES
from pipeline.data.tar import END_OF_ARCHIVE, SampleSpan, member_bytes

LAYOUT = 1  # part of every fingerprint: raise it when the bytes of a sample change


@dataclass(frozen=True)
class Reject:
    """A row that did not become a sample; a line of rejects.jsonl."""

    row: int
    key: str | None
    image: str
    split: str
    cause: str
    detail: str


@dataclass(frozen=True)
class Planned:
    """A row that will be a sample if its image is a picture: all members but the image are ready."""

    row: int
    key: str
    image: str
    text: str
    json: str
    label: int | None


@dataclass(frozen=True)
class Chunk:
    """The rows of one tar, and the rows rejected between them."""

    split: str
    number: int  # within the split, from 0
    rows: tuple[Planned, ...]
    rejects: tuple[Reject, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything planned. The images' own bytes are not in it: they have not been read yet."""
        plan = json.dumps([LAYOUT, self.split, self.number, [vars(row) for row in self.rows], _dicts(self.rejects)])
        return hashlib.sha256(plan.encode("ascii")).hexdigest()


@dataclass(frozen=True)
class Packed:
    """What became of a chunk; ``<number>.json`` in the staging folder."""

    split: str
    number: int
    fingerprint: str
    count: int
    bytes: int
    sha256: str
    rejects: tuple[Reject, ...]
    reused: bool = field(default=False, compare=False)  # true when an earlier run had packed it


def plan(source: Source, shard_size: int) -> Iterator[Chunk]:
    """Deal the rows of ``source`` to chunks of ``shard_size``; every row is in exactly one chunk, kept or rejected.

    The keys seen so far are held in memory to find duplicates (about 100 bytes per row).
    """
    kept: dict[str, list[Planned]] = {}
    rejected: dict[str, list[Reject]] = {}
    seen: dict[str, set[str]] = {}
    numbers: dict[str, int] = {}

    def close(split: str) -> Chunk:
        number = numbers[split] = numbers.get(split, -1) + 1
        return Chunk(split, number, tuple(kept.pop(split, ())), tuple(rejected.pop(split, ())))

    for row in source.rows():
        try:
            split = usable_split(row.split)
            planned = _planned(row, seen.setdefault(split, set()))
        except BadRow as bad:
            # A split that cannot name a folder is no place to account for its row: the root is.
            split = "" if bad.cause == "split-invalid" else row.split
            rejected.setdefault(split, []).append(_reject(row.number, row.key, row.image, split, bad))
            continue
        kept.setdefault(split, []).append(planned)
        if len(kept[split]) == shard_size:
            yield close(split)
    for split in sorted(kept.keys() | rejected.keys()):
        yield close(split)


def pack(chunk: Chunk, staging: Path) -> Packed:
    """Write the chunk's tar, index and record into ``staging``; or return an earlier run's record that still holds.

    Raises DataError when the files cannot be written.
    """
    stem = staging_stem(staging, chunk.split, chunk.number)
    tar_path, record_path = stem.with_suffix(".tar"), stem.with_suffix(".json")
    fingerprint = chunk.fingerprint
    earlier = _read_record(record_path, fingerprint, tar_path)
    if earlier is not None:
        return earlier
    rejects = list(chunk.rejects)
    spans: list[SampleSpan] = []
    digest, offset = hashlib.sha256(), 0
    with atomic(tar_path) as handle:
        for row in chunk.rows:
            try:
                buffer = _sample_bytes(row)
            except BadRow as bad:
                rejects.append(_reject(row.row, row.key, row.image, chunk.split, bad))
                continue
            handle.write(buffer)
            digest.update(buffer)
            spans.append(SampleSpan(row.key, offset, len(buffer), ()))
            offset += len(buffer)
        handle.write(END_OF_ARCHIVE)
        digest.update(END_OF_ARCHIVE)
    with atomic(stem.with_suffix(".index.jsonl")) as handle:
        handle.writelines(index_line(span) for span in spans)
    size = offset + len(END_OF_ARCHIVE)
    packed = Packed(chunk.split, chunk.number, fingerprint, len(spans), size, digest.hexdigest(), tuple(rejects))
    write_text(record_path, json.dumps({**asdict(packed), "rejects": _dicts(packed.rejects)}) + "\n")
    return packed


def staging_stem(staging: Path, split: str, number: int) -> Path:
    """Path of a chunk's staged files without suffix. The folder "=" is for no split: no split can have that name."""
    return staging / (split or "=") / f"{number:06d}"


def _planned(row: Row, seen: set[str]) -> Planned:
    """The sample that ``row`` will be, its key added to ``seen``. Raises BadRow when it cannot be one."""
    if row.problem is not None:
        raise row.problem
    captions = usable_captions(row.captions)
    key = clean_key(row.key) if row.key is not None else f"{row.number:09d}"
    if key in seen:
        raise BadRow("key-duplicate", f"key {key!r} was used by an earlier row; keys must differ within a split")
    meta: dict[str, Any] = {"captions": captions, **row.meta}
    if row.key is not None and key != row.key:
        meta["source_key"] = row.key
    try:
        text = json.dumps(meta, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except (ValueError, TypeError) as error:
        raise BadRow("row-invalid", f"its other fields cannot be stored as JSON: {error}") from error
    seen.add(key)
    return Planned(row.number, key, row.image, captions[0], text, row.label)


def _sample_bytes(row: Planned) -> bytes:
    """All members of a sample as tar bytes, the image first. Raises BadRow when the image is unusable or too large."""
    image = fetch(row.image)
    members = {extension(image): image, "txt": row.text.encode("utf-8"), "json": row.json.encode("utf-8")}
    if row.label is not None:
        members["cls"] = str(row.label).encode("ascii")
    buffer = b"".join(member_bytes(f"{row.key}.{name}", data) for name, data in members.items())
    if len(buffer) > MAX_MEMBER_BYTES:
        raise BadRow("sample-too-large", f"{len(buffer):,} bytes in all members, the loader reads {MAX_MEMBER_BYTES:,}")
    return buffer


def _reject(row: int, key: str | None, image: str, split: str, bad: BadRow) -> Reject:
    return Reject(row, key, image, split, bad.cause, bad.detail)


def _dicts(rejects: tuple[Reject, ...]) -> list[dict[str, Any]]:
    return [vars(reject) for reject in rejects]


def _read_record(path: Path, fingerprint: str, tar_path: Path) -> Packed | None:
    """The record of an earlier run if it describes this very chunk and its tar is still what was written; else None."""
    try:
        record = json.loads(path.read_text(encoding="ascii"))
        rejects = tuple(Reject(**reject) for reject in record.pop("rejects"))
        packed = Packed(**{**record, "rejects": rejects, "reused": True})
        intact = packed.fingerprint == fingerprint and sha256_of(tar_path) == packed.sha256
    except (OSError, ValueError, TypeError, KeyError):  # absent, cut or of another layout: pack again
        return None
    return packed if intact else None
