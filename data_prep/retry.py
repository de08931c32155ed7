"""From a finished build back to its packed chunks, so that only the rows that failed are read again.

    restore(source, place, settings, report)      # then pack(chunk, Job(..., retry=True)) for every chunk, and commit

Which row of the plan is in which shard needs no book-keeping: the plan says which rows a chunk has, ``rejects.jsonl`` which
of them failed, and shards were numbered in the order of chunks that had any left. The restored chunk is a second link to
the shard (in an object store a copy inside it) with the record that ``pack`` had written. So nothing of the finished
build is lost until the new commit replaces it, and a retry that is killed continues like any build.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from data_prep.chunks import Chunk, Reject, plan
from data_prep.commit import HASHES, REJECTS, Report, join, shard_lines, shard_name
from data_prep.hashes import sha256
from data_prep.manifest import ShardLine, index_name
from data_prep.pack import Kept, Packed, read_record, staged, write_record
from data_prep.places import Place
from data_prep.rows import Source
from data_prep.settings import Settings
from data_prep.spill import scratch
from pipeline.data.tar import END_OF_ARCHIVE
from pipeline.errors import DataError

SCHEMA = (
    "CREATE TABLE rejects (row INTEGER PRIMARY KEY, line TEXT)",
    "CREATE TABLE hashes (row INTEGER PRIMARY KEY, line TEXT)",
)


def restore(source: Source, place: Place, settings: Settings, report: Report) -> None:
    """Stage every chunk of a finished build, except those that an interrupted retry has staged already.

    Raises DataError when the folder's files do not fit each other, as when one was edited.
    """
    lines = {join(folder, line.shard): line for folder, line in shard_lines(place, report)}
    shards: Counter[str] = Counter()  # used so far, by split
    with scratch(*SCHEMA) as database:
        for table, name in (("rejects", REJECTS), ("hashes", HASHES)):
            rows = ((json.loads(line)["row"], line) for line in _lines(place, name))
            database.executemany(f"INSERT INTO {table} VALUES (?, ?)", rows)

        def stored(table: str, row: int) -> dict[str, Any] | None:
            found = database.execute(f"SELECT line FROM {table} WHERE row = ?", (row,)).fetchone()
            return None if found is None else json.loads(found[0])

        for chunk in plan(source, settings):
            failed = {row.row: stored("rejects", row.row) for row in chunk.rows}
            rejects = (*chunk.rejects, *(Reject(**reject) for reject in failed.values() if reject is not None))
            good = [row for row in chunk.rows if failed[row.row] is None]
            name = shard_name(source, chunk.split, shards[chunk.split])
            shards[chunk.split] += bool(good)
            before = read_record(place, chunk.split, chunk.number)
            if before is not None and before.fingerprint == chunk.fingerprint:
                continue
            line = lines.get(name) if good else None
            if bool(good) != (line is not None) or (line is not None and line.count != len(good)):
                raise DataError(f"{place.show(name)} does not fit {REJECTS}; pass --force to build again")
            kept = tuple(
                Kept(row.row, row.key, row.image, size, sides, hashes["sha256"], _code(hashes.get("perceptual")))
                for row, (size, sides) in zip(good, _spans(place, name, line), strict=True)
                if (hashes := stored("hashes", row.row)) is not None
            )
            _stage(chunk, place, name, line, kept, rejects)


def _stage(
    chunk: Chunk, place: Place, name: str, line: ShardLine | None, kept: tuple[Kept, ...], rejects: tuple[Reject, ...]
) -> None:
    ordered = tuple(sorted(rejects, key=lambda reject: reject.row))
    if line is None:  # all of its rows had failed, so that it had no shard
        with place.writer(staged(chunk.split, chunk.number, ".tar")) as handle:
            handle.write(END_OF_ARCHIVE)
        num_bytes, digest = len(END_OF_ARCHIVE), sha256(END_OF_ARCHIVE)
    else:
        place.publish(name, staged(chunk.split, chunk.number, ".tar"))
        place.publish(_index(name), staged(chunk.split, chunk.number, ".index.jsonl"))
        num_bytes, digest = line.bytes, line.sha256
    write_record(
        place, Packed(chunk.split, chunk.number, chunk.fingerprint, num_bytes, digest, kept, ordered, dict(chunk.left_out))
    )


def _spans(place: Place, name: str, line: ShardLine | None) -> Iterator[tuple[int, tuple[int, int] | None]]:
    """(bytes, width and height) of every sample of a shard, from its index."""
    for text in _lines(place, _index(name)) if line is not None else ():
        span = json.loads(text)
        yield span["size"], (span["width"], span["height"]) if "width" in span else None


def _index(shard: str) -> str:
    folder, _, name = shard.rpartition("/")
    return join(folder, index_name(name))


def _code(text: str | None) -> int | None:
    return None if text is None else int(text, 16)


def _lines(place: Place, name: str) -> Iterator[str]:
    if place.size(name) is None:
        raise DataError(f"{place.show(name)} is missing; pass --force to build again")
    with place.reader(name) as stream:
        for line in stream:
            yield line.decode("utf-8")
