"""Rows -> chunks, before any image is read: what each tar will hold is decided here, by the source alone.

    for chunk in plan(source, Settings(shard_size=1000)):      # cheap: opens no image
        chunk.split, chunk.number, len(chunk.rows)             # "train", 0, 1000

Rows are dealt to chunks in source order, ``shard_size`` usable ones at a time for each split. So the content of a chunk
does not depend on what became of the others, chunks can be packed in any order by any number of processes and machines,
and a chunk that an interrupted run finished can be told from one that it did not. The price: an image that turns out
unreadable leaves its shard one sample short.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from data_prep.encode import libraries
from data_prep.filters import CaptionFilter
from data_prep.rows import BadRow, Row, Source, clean_key, usable_captions, usable_split
from data_prep.settings import Settings
from data_prep.spill import scratch
from pipeline.errors import DataError

LAYOUT = 3  # part of every fingerprint: raise it when the bytes of a sample change
MAX_REJECTS = 10_000  # in one chunk, which holds them in memory
MAX_SPLITS = 1000  # each is an open chunk


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
    left_out: Counter[str]  # parts of its rows that no sample holds, by cause
    settings: str  # fingerprint of the settings

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything planned. The images' own bytes are not in it: they have not been read yet."""
        rows, rejects = [vars(row) for row in self.rows], [vars(reject) for reject in self.rejects]
        plan = json.dumps([LAYOUT, self.settings, self.split, self.number, rows, rejects])
        return hashlib.sha256(plan.encode("ascii")).hexdigest()


@dataclass
class _Open:
    """A chunk being filled."""

    rows: list[Planned] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def plan(source: Source, settings: Settings) -> Iterator[Chunk]:
    """Deal the rows of ``source`` to chunks; every row is in exactly one chunk, kept or rejected.

    Memory holds one open chunk per split; keys are compared on disk. Raises DataError for more than ``MAX_SPLITS``
    splits, and for what ``source`` and the filters raise.
    """
    captions, print_of_settings = CaptionFilter(settings.filters), settings.fingerprint(libraries())
    opened: dict[str, _Open] = {}
    numbers: Counter[str] = Counter()

    def close(split: str) -> Chunk:
        filled = opened.pop(split)
        numbers[split] += 1
        rows, rejects = tuple(filled.rows), tuple(filled.rejects)
        return Chunk(split, numbers[split] - 1, rows, rejects, filled.left_out, print_of_settings)

    with scratch("CREATE TABLE keys (key TEXT PRIMARY KEY) WITHOUT ROWID") as keys:
        for row in source.rows():
            planned, split, bad, left_out = None, row.split, None, Counter[str]()
            try:
                split = usable_split(row.split)
                planned, left_out = _planned(row, split, captions, keys)
            except BadRow as problem:
                bad = problem
                # A split that cannot name a folder is no place to account for its row: the root is.
                split = "" if problem.cause == "split-invalid" else row.split
            if split not in opened and len(opened.keys() | numbers.keys()) >= MAX_SPLITS and split not in numbers:
                raise DataError(f"more than {MAX_SPLITS:,} splits, the last is {split!r}; is the split column another thing?")
            chunk = opened.setdefault(split, _Open())
            if planned is not None:
                chunk.rows.append(planned)
                chunk.left_out.update(left_out)
            elif bad is not None:
                chunk.rejects.append(Reject(row.number, row.key, row.image, split, bad.cause, bad.detail))
            if len(chunk.rows) == settings.shard_size or len(chunk.rejects) == MAX_REJECTS:
                yield close(split)
    for split in sorted(opened):
        yield close(split)


def _planned(row: Row, split: str, captions: CaptionFilter, keys: sqlite3.Connection) -> tuple[Planned, Counter[str]]:
    """The sample that ``row`` will be, and what it leaves out. Raises BadRow when it cannot be one."""
    if row.problem is not None:
        raise row.problem
    texts, left_out = captions.keep(usable_captions(row.captions))
    if row.left_out:
        left_out["member-left-out"] += row.left_out
    key = clean_key(row.key) if row.key is not None else f"{row.number:09d}"
    meta: dict[str, Any] = {"captions": texts, **row.meta}
    if row.key is not None and key != row.key:
        meta["source_key"] = row.key
    try:
        text = json.dumps(meta, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except (ValueError, TypeError) as error:
        raise BadRow("row-invalid", f"its other fields cannot be stored as JSON: {error}") from error
    if keys.execute("INSERT OR IGNORE INTO keys VALUES (?)", (f"{split}/{key}",)).rowcount == 0:
        raise BadRow("key-duplicate", f"key {key!r} was used by an earlier row; keys must differ within a split")
    return Planned(row.number, key, row.image, texts[0], text, row.label), left_out
