"""Which packed samples must go: they repeat an earlier image, or one that is to be kept out.

    drops = find_drops(records, settings, excluded=["eval/hashes.jsonl"])      # one pass in input order
    drops.of("train", 7)                                        # {7031: ("duplicate-exact", "same bytes as row 12")}

The rule: rows are looked at in input order, over all splits; a row goes when an earlier row that stayed has the same bytes
(``exact``), or looks the same (``near``: perceptual hashes that differ in at most ``near_distance`` bits of 64). So the
first one stays, every row that goes has a twin that stayed, and the answer does not depend on who packed what when.

Memory is bounded (``spill``). Near twins are found by the pigeonhole principle: hashes that differ in at most d bits agree
in one of d + 1 bands, so a row is compared only with those that share a band with it: at d = 3 and a million rows,
about sixty.
"""

from __future__ import annotations

import heapq
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from data_prep.inputs import open_stream
from data_prep.pack import Kept, Packed
from data_prep.settings import Settings
from data_prep.spill import scratch
from data_prep.tables import BoundedLines
from pipeline.errors import DataError

SCHEMA = (
    "CREATE TABLE exact (sha256 BLOB PRIMARY KEY, row INTEGER) WITHOUT ROWID",
    "CREATE TABLE near (band INTEGER, bits INTEGER, code BLOB, row INTEGER)",
    "CREATE INDEX near_by_band ON near (band, bits)",
    "CREATE TABLE drops (split TEXT, number INTEGER, row INTEGER, cause TEXT, detail TEXT)",
)
EXCLUDED_ROW = -1
SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass
class Drops:
    """What ``find_drops`` found; valid inside its block."""

    database: sqlite3.Connection

    def chunks(self) -> list[tuple[str, int]]:
        """(split, number) of every chunk that loses samples."""
        return list(self.database.execute("SELECT DISTINCT split, number FROM drops ORDER BY split, number"))

    def of(self, split: str, number: int) -> dict[int, tuple[str, str]]:
        """Row -> (cause, detail) in one chunk."""
        query = "SELECT row, cause, detail FROM drops WHERE split = ? AND number = ?"
        return {row: (cause, detail) for row, cause, detail in self.database.execute(query, (split, number))}


@contextmanager
def find_drops(splits: Mapping[str, Iterable[Packed]], settings: Settings, excluded: Iterable[str] = ()) -> Iterator[Drops]:
    """Decide every sample of the packed chunks, given per split in order of their numbers.

    ``excluded``: files of hashes whose images must not appear. Raises DataError when one cannot be read.
    """
    with scratch(*SCHEMA) as database:
        database.execute("CREATE INDEX drops_by_chunk ON drops (split, number)")
        for path in excluded:
            _load_excluded(path, settings, database)
        in_order = heapq.merge(*(_samples(chunks) for chunks in splits.values()), key=lambda item: item[0].row)
        for sample, split, number in in_order:
            found = _fault(sample, settings, database)
            if found is not None:
                database.execute("INSERT INTO drops VALUES (?, ?, ?, ?, ?)", (split, number, sample.row, *found))
        yield Drops(database)


def _samples(chunks: Iterable[Packed]) -> Iterator[tuple[Kept, str, int]]:
    for packed in chunks:
        for sample in packed.kept:
            yield sample, packed.split, packed.number


def _fault(sample: Kept, settings: Settings, database: sqlite3.Connection) -> tuple[str, str] | None:
    """(cause, detail) when the sample goes; otherwise None, and it is remembered."""
    digest = bytes.fromhex(sample.sha256)
    twin = database.execute("SELECT row FROM exact WHERE sha256 = ?", (digest,)).fetchone()
    if twin is not None and twin[0] == EXCLUDED_ROW:
        return "image-excluded", f"sha256 {sample.sha256} is in the exclusion list"
    if twin is not None and settings.duplicates != "keep":
        return "duplicate-exact", f"same bytes as row {twin[0]}"
    if settings.perceptual and sample.perceptual:
        found = _near(sample.perceptual, settings.near_distance, database)
        if found is not None:
            bits, row = found
            if row == EXCLUDED_ROW:
                return "image-excluded", f"differs in {bits} of 64 bits from an image in the exclusion list"
            return "duplicate-near", f"differs in {bits} of 64 bits from row {row}"
        _remember_near(sample.perceptual, sample.row, settings.near_distance, database)
    database.execute("INSERT OR IGNORE INTO exact VALUES (?, ?)", (digest, sample.row))
    return None


def _bands(code: int, distance: int) -> list[int]:
    """The code cut into ``distance + 1`` pieces of nearly equal length.

    >>> _bands(0xAAAABBBBCCCCDDDD, 3) == [0xDDDD, 0xCCCC, 0xBBBB, 0xAAAA]
    True
    """
    edges = [64 * number // (distance + 1) for number in range(distance + 2)]
    return [code >> low & (1 << high - low) - 1 for low, high in zip(edges, edges[1:], strict=False)]


def _near(code: int, distance: int, database: sqlite3.Connection) -> tuple[int, int] | None:
    """(differing bits, row) of the nearest remembered code within ``distance``; of equally near ones the first row."""
    best: tuple[int, int] | None = None
    for band, bits in enumerate(_bands(code, distance)):
        for other, row in database.execute("SELECT code, row FROM near WHERE band = ? AND bits = ?", (band, _signed(bits))):
            found = ((code ^ int.from_bytes(other, "big")).bit_count(), row)
            if found[0] <= distance and (best is None or found < best):
                best = found
    return best


def _remember_near(code: int, row: int, distance: int, database: sqlite3.Connection) -> None:
    rows = ((band, _signed(bits), code.to_bytes(8, "big"), row) for band, bits in enumerate(_bands(code, distance)))
    database.executemany("INSERT INTO near VALUES (?, ?, ?, ?)", rows)


def _signed(bits: int) -> int:
    """SQLite's integers end at 2^63; a band of all 64 bits may not."""
    return bits - (1 << 64) if bits >= 1 << 63 else bits


def _load_excluded(path: str, settings: Settings, database: sqlite3.Connection) -> None:
    """Remember the hashes of a file: JSON lines as in hashes.jsonl, or a SHA-256 at the start of each line."""
    with open_stream(path) as stream:
        for number, line in enumerate(BoundedLines(stream), start=1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line) if line.lstrip().startswith("{") else {"sha256": re.split(r"[\s,;]", line.strip())[0]}
                if not SHA256.fullmatch(fields["sha256"]):
                    raise ValueError(f"{str(fields['sha256'])[:40]!r} is no SHA-256")
                code = int(fields.get("perceptual") or "0", 16)
            except (ValueError, KeyError, TypeError) as error:
                wanted = "a line of hashes.jsonl, or 64 hexadecimal digits"
                raise DataError(f"{path}, line {number}: {error}; expected {wanted}") from error
            database.execute("INSERT OR IGNORE INTO exact VALUES (?, ?)", (bytes.fromhex(fields["sha256"]), EXCLUDED_ROW))
            if settings.perceptual and code:
                _remember_near(code, EXCLUDED_ROW, settings.near_distance, database)
