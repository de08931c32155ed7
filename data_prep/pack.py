"""One chunk -> one tar, its index and its record. A function of the chunk alone, whoever calls it and whenever.

    packed = pack(chunk, Job(place, settings))     # reads its images, writes .build/SPLIT/000000.tar, .index.jsonl, .json

The .json record is written last. It names the fingerprint of the chunk (a hash of everything that was planned), the
SHA-256 of the tar and of every image; ``pack`` returns it without work only while the tar is still what it says.

With ``retry`` a finished chunk is opened once more: samples that it has are copied, and only rows that failed are read
again. ``without`` copies a chunk leaving some samples out, which is how duplicates go.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from data_prep.chunks import Chunk, Planned, Reject
from data_prep.dimensions import HEAD_BYTES, dimensions
from data_prep.encode import rewrite
from data_prep.filters import check_image
from data_prep.hashes import perceptual, sha256
from data_prep.manifest import index_line
from data_prep.pictures import examine, fetch, stored_size
from data_prep.places import Place, write_text
from data_prep.rows import BadRow
from data_prep.settings import Settings
from pipeline.data.samples import MAX_MEMBER_BYTES
from pipeline.data.tar import END_OF_ARCHIVE, SampleSpan, member_bytes
from pipeline.errors import DataError

STAGING = ".build"
MAX_FAILED_READS = 100  # in a row: then it is not the images, it is the way to them


@dataclass(frozen=True)
class Job:
    """What is the same for all chunks of a run."""

    place: Place
    settings: Settings
    root: str = ""  # where the source's images lie, when that can be checked; see Source
    retry: bool = False


@dataclass(frozen=True)
class Kept:
    """A sample in a packed chunk."""

    row: int
    key: str
    image: str
    size: int  # bytes of its members in the tar
    sides: tuple[int, int] | None  # width, height as stored
    sha256: str  # of the image's bytes in the source
    perceptual: int | None


@dataclass(frozen=True)
class Packed:
    """What became of a chunk; the record ``.build/SPLIT/NUMBER.json``."""

    split: str
    number: int
    fingerprint: str
    bytes: int
    sha256: str
    kept: tuple[Kept, ...]
    rejects: tuple[Reject, ...]
    left_out: Mapping[str, int]
    retried: bool = False
    reused: bool = field(default=False, compare=False)  # true when an earlier run had packed it

    @property
    def count(self) -> int:
        """Samples in the tar."""
        return len(self.kept)


def staged(split: str, number: int, ending: str) -> str:
    """Name of a chunk's staged file. The folder "=" is for no split: no split can have that name.

    >>> staged("", 7, ".tar")
    '.build/=/000007.tar'
    """
    return f"{STAGING}/{split or '='}/{number:06d}{ending}"


def pack(chunk: Chunk, job: Job) -> Packed:
    """Write the chunk's tar, index and record; or return an earlier run's record that still holds.

    Raises DataError when the files cannot be written, or the source cannot be reached any more.
    """
    fingerprint = chunk.fingerprint
    earlier = read_record(job.place, chunk.split, chunk.number)
    if earlier is not None and (earlier.fingerprint != fingerprint or not _is_intact(job.place, earlier)):
        earlier = None
    planned = len(chunk.rejects)
    if earlier is not None and (not job.retry or earlier.retried or len(earlier.rejects) == planned):
        return replace(earlier, reused=True)
    rejects = list(chunk.rejects)
    samples = _samples(chunk, job, earlier, rejects)
    return _write(
        job.place, Packed(chunk.split, chunk.number, fingerprint, 0, "", (), (), chunk.left_out, job.retry), samples, rejects
    )


def without(packed: Packed, place: Place, drops: Mapping[int, tuple[str, str]]) -> Packed:
    """The chunk without the rows in ``drops`` (row -> cause and detail), written in its place."""
    rejects = list(packed.rejects)
    for sample in packed.kept:
        if sample.row in drops:
            rejects.append(Reject(sample.row, sample.key, sample.image, packed.split, *drops[sample.row]))
    samples = ((sample, data) for sample, data in _stored(packed, place) if sample.row not in drops)
    return _write(place, packed, samples, rejects)


def read_record(place: Place, split: str, number: int) -> Packed | None:
    """The record of a chunk; None when there is none or it is of another layout."""
    content = place.read(staged(split, number, ".json"))
    try:
        record = json.loads(content or b"")
        kept = tuple(Kept(**{**item, "sides": item["sides"] and tuple(item["sides"])}) for item in record.pop("kept"))
        rejects = tuple(Reject(**reject) for reject in record.pop("rejects"))
        return Packed(**{**record, "kept": kept, "rejects": rejects, "reused": False})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def write_record(place: Place, packed: Packed) -> None:
    """Write the record; from now on the chunk counts as done."""
    record: dict[str, Any] = {**vars(packed), "kept": [vars(kept) for kept in packed.kept]}
    record["rejects"] = [vars(reject) for reject in packed.rejects]
    del record["reused"]
    write_text(place, staged(packed.split, packed.number, ".json"), json.dumps(record) + "\n")


def _write(place: Place, packed: Packed, samples: Iterable[tuple[Kept, bytes]], rejects: list[Reject]) -> Packed:
    """Write tar and index of ``samples``, and ``packed`` with what came of them as the record, last."""
    kept: list[Kept] = []
    digest, offset = hashlib.sha256(), 0
    with place.writer(staged(packed.split, packed.number, ".tar")) as handle:
        for sample, data in samples:
            handle.write(data)
            digest.update(data)
            offset += len(data)
            kept.append(sample)
        handle.write(END_OF_ARCHIVE)
        digest.update(END_OF_ARCHIVE)
    with place.writer(staged(packed.split, packed.number, ".index.jsonl")) as handle:
        handle.writelines(_index_lines(kept))
    rejects.sort(key=lambda reject: reject.row)
    size = offset + len(END_OF_ARCHIVE)
    done = replace(packed, bytes=size, sha256=digest.hexdigest(), kept=tuple(kept), rejects=tuple(rejects))
    write_record(place, done)
    return done


def _index_lines(kept: Iterable[Kept]) -> Iterator[bytes]:
    offset = 0
    for sample in kept:
        yield index_line(SampleSpan(sample.key, offset, sample.size, ()), sample.sides)
        offset += sample.size


def _samples(chunk: Chunk, job: Job, earlier: Packed | None, rejects: list[Reject]) -> Iterator[tuple[Kept, bytes]]:
    """The samples of a chunk in order, from ``earlier`` where it has them; rows that fail are added to ``rejects``."""
    copies = _stored(earlier, job.place) if earlier is not None else iter(())
    copy = next(copies, None)
    failed_reads = 0
    for row in chunk.rows:
        if copy is not None and copy[0].row == row.row:
            yield copy
            copy = next(copies, None)
            continue
        try:
            yield _sample(row, job.settings)
            failed_reads = 0
        except BadRow as bad:
            failed_reads = failed_reads + 1 if bad.cause == "read-failed" else 0
            _stop_if_unreachable(job, bad, failed_reads)
            rejects.append(Reject(row.row, row.key, row.image, chunk.split, bad.cause, bad.detail))


def _stop_if_unreachable(job: Job, bad: BadRow, failed_reads: int) -> None:
    """Raise DataError when a row failed because its source is gone: rejecting all that follow would help nobody."""
    advice = "when it is back, run the same command again: what was finished is kept"
    if job.root and bad.cause in ("image-missing", "read-failed") and not os.path.exists(job.root):
        raise DataError(f"the source {job.root} is no longer there ({bad.detail}); {advice}")
    if failed_reads >= MAX_FAILED_READS:
        raise DataError(f"{failed_reads} images in a row could not be read, the last: {bad.detail}; {advice}")


def _sample(row: Planned, settings: Settings) -> tuple[Kept, bytes]:
    """One sample as tar bytes. Raises BadRow when its image cannot be used."""
    image = fetch(row.image)
    if settings.transform.rewrites and not settings.perceptual:
        width, height = stored_size(image)
        check_image(settings.filters, width, height)
        code = None
    else:
        picture = examine(image, want_grey=settings.perceptual)
        check_image(settings.filters, picture.width, picture.height)
        code = None if picture.grey_HW is None else perceptual(picture.grey_HW)
    data, extension = rewrite(image, settings.transform) if settings.transform.rewrites else (image, picture.extension)
    members = {extension: data, "txt": row.text.encode("utf-8"), "json": row.json.encode("utf-8")}
    if row.label is not None:
        members["cls"] = str(row.label).encode("ascii")
    buffer = b"".join(member_bytes(f"{row.key}.{name}", content) for name, content in members.items())
    if len(buffer) > MAX_MEMBER_BYTES:
        raise BadRow("sample-too-large", f"{len(buffer):,} bytes in all members, the loader reads {MAX_MEMBER_BYTES:,}")
    sides = dimensions(data[:HEAD_BYTES])
    return Kept(row.row, row.key, row.image, len(buffer), sides, sha256(image), code), buffer


def _stored(packed: Packed, place: Place) -> Iterator[tuple[Kept, bytes]]:
    """The samples of a packed chunk, read back from its staged tar."""
    name = staged(packed.split, packed.number, ".tar")
    with closing(place.reader(name)) as stream:
        for sample in packed.kept:
            data = stream.read(sample.size)
            if len(data) < sample.size:
                raise DataError(f"{place.show(name)} was cut while in use; remove it and run the same command again")
            yield sample, data


def _is_intact(place: Place, packed: Packed) -> bool:
    if place.size(staged(packed.split, packed.number, ".index.jsonl")) is None:  # a clean-up was killed
        return False
    return place.holds(staged(packed.split, packed.number, ".tar"), packed.bytes, packed.sha256)
