"""The run over all chunks: plan, pack, drop duplicates, commit; whole or in parts, from the start or from where it stopped.

    report = build(open_source("pairs.csv"), "s3://bucket/cc3m", settings=Settings(shard_size=10_000), workers=4)
    report.accepted, report.rejected           # 3318001, Counter({"image-undecodable": 332})

What OUT holds afterwards: see ``commit``. Killed at any point, the same command continues: chunks that were finished are
checked and kept. Until the commit an older dataset in OUT stays as it was, even with ``force``. Bytes depend on the rows,
the images, the settings and nothing else. An interrupted build is continued on trust that images under known names did
not change; ``force`` starts over.

A job array packs with ``part=(i, n)``, every task its share of the chunks, in any order; the same command without a part
packs what is still missing and commits. Its output is that of one process.
"""

from __future__ import annotations

import fcntl
import hashlib
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from data_prep.chunks import Chunk, plan
from data_prep.commit import REJECTS, REPORT, Report, commit, join, read_report, records, shard_lines
from data_prep.duplicates import find_drops
from data_prep.inputs import open_stream
from data_prep.pack import STAGING, Job, Packed, pack, read_record, without
from data_prep.places import AGAIN, LocalPlace, Place, open_place, write_text
from data_prep.pool import follow_parent, progress
from data_prep.retry import restore
from data_prep.rows import Source
from data_prep.settings import Settings
from pipeline.errors import DataError

REPLACES = f"{STAGING}/=replaces"
"""Holds the fingerprint of a plan that ``force`` lets take the place of another dataset, so that it can be continued."""

__all__ = ["REJECTS", "REPORT", "STAGING", "Report", "build", "survey"]


def survey(source: Source, settings: Settings) -> Report:
    """Plan without reading an image: counts per split, rows already known to be unusable, the fingerprint."""
    digest = hashlib.sha256(repr((source.name, sorted(source.eval_sets.items()))).encode())
    report = Report("")
    for chunk in plan(source, settings):
        digest.update(chunk.fingerprint.encode())
        report.add(chunk.split, len(chunk.rows), 0, chunk.rejects, chunk.left_out)
        report.num_rows += len(chunk.rows) + len(chunk.rejects)
    report.fingerprint = digest.hexdigest()
    return report


def build(
    source: Source,
    out: str | Path,
    *,
    shard_size: int = 1000,
    settings: Settings | None = None,
    exclude: Iterable[str] = (),
    workers: int = 1,
    part: tuple[int, int] | None = None,
    force: bool = False,
    retry_failed: bool = False,
) -> Report:
    """Write the rows of ``source`` as shards below ``out``; a folder already built from the same plan is left as it is.

    ``settings`` (or just their ``shard_size``) say what is done to the rows; ``exclude`` names files of hashes, see
    ``duplicates``, whose contents become part of the settings. ``part=(i, n)`` packs every n-th chunk from the i-th and
    commits nothing. ``retry_failed`` reads the images again that a finished build rejected, and only those; the result is
    that of a build that had found them.

    When no row is accepted only ``rejects.jsonl`` is written, and the caller should call that a failure. Raises
    DataError when ``out`` holds something else (unless ``force``), is being written by another build, the source cannot
    be reached any more, or the disk refuses.
    """
    if part is not None and (force or retry_failed):
        raise DataError("--force would undo the other parts, and --retry-failed has none; leave out --part")
    exclude = tuple(exclude)
    settings = settings or Settings(shard_size=shard_size)
    if exclude:
        settings = replace(settings, excluded=_digest_of(exclude))
    place, planned = open_place(out), survey(source, settings)
    earlier = None if force else _earlier_build(place, planned.fingerprint)
    if earlier is not None and not retry_failed:
        _remove_leftovers(place, part)
        return earlier
    if not force and earlier is None:
        _refuse_foreign(place, retry_failed)
    with _locked(place, part, start_over=force):
        if force:
            write_text(place, REPLACES, planned.fingerprint)
        if earlier is not None:
            restore(source, place, settings, earlier)
        job = Job(place, settings, source.root, retry=earlier is not None)
        report = Report(planned.fingerprint, planned.num_rows)
        numbers: Counter[str] = Counter()
        chunks = _counted(plan(source, settings), numbers, part)

        def finish(chunk: Packed) -> None:
            report.num_reused += chunk.reused
            if part is not None:
                report.add(chunk.split, chunk.count, chunk.bytes, chunk.rejects, chunk.left_out)

        _pack_all(chunks, job, workers, planned.num_rows // (part[1] if part else 1), finish)
        if part is not None:
            report.part = f"{part[0]}/{part[1]}"
            report.num_rows = report.accepted + report.rejected.total()
            return report
        if settings.duplicates != "keep" or exclude:
            _drop_duplicates(place, numbers, settings, exclude)
        commit(source, place, numbers, report)
    return report


def _digest_of(paths: Iterable[str]) -> str:
    """SHA-256 over the files of excluded hashes. Raises DataError when one cannot be read."""
    digest = hashlib.sha256()
    for path in paths:
        with open_stream(path) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _counted(chunks: Iterator[Chunk], numbers: Counter[str], part: tuple[int, int] | None) -> Iterator[Chunk]:
    """The chunks of this part, all of them counted by split."""
    for place_in_plan, chunk in enumerate(chunks):
        numbers[chunk.split] += 1
        if part is None or place_in_plan % part[1] == part[0]:
            yield chunk


def _pack_all(chunks: Iterator[Chunk], job: Job, workers: int, num_rows: int, finish: Callable[[Packed], None]) -> None:
    """Pack every chunk with ``workers`` processes, this one if 1; progress in rows on stderr."""
    with progress(num_rows, "rows", "row") as bar:

        def done(chunk: Packed) -> None:
            finish(chunk)
            bar.update(chunk.count + len(chunk.rejects))

        if workers == 1:
            for chunk in chunks:
                done(pack(chunk, job))
            return
        # spawn: a forked child would inherit the threads and sockets of remote file systems in a broken state.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=follow_parent)
        running: set[Future[Packed]] = set()
        try:
            for chunk in chunks:
                running.add(pool.submit(pack, chunk, job))
                if len(running) >= 2 * workers:  # bounded: a chunk holds its captions in memory
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        done(future.result())
            for future in running:
                done(future.result())
        except BrokenProcessPool as error:
            raise DataError("a worker process died, perhaps for lack of memory; continue with fewer --workers") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _drop_duplicates(place: Place, numbers: Counter[str], settings: Settings, exclude: Iterable[str]) -> None:
    """Write the chunks again that hold duplicates or excluded images, without them.

    If we die here, chunks already written again are decided the same way next time: what went has no say in what stays.
    """
    splits = {split: records(place, split, number) for split, number in numbers.items()}
    with find_drops(splits, settings, exclude) as drops:
        for split, number in drops.chunks():
            packed = read_record(place, split, number)
            assert packed is not None, f"chunk {number} of split {split!r} was read a moment ago"
            without(packed, place, drops.of(split, number))


def _earlier_build(place: Place, fingerprint: str) -> Report | None:
    """The report of a finished build of this plan; None when there is none, or one that is just being replaced.

    Raises DataError when one of another plan is there, or one that lost a shard.
    """
    report = read_report(place)
    if report is None or (report.fingerprint != fingerprint and place.read(REPLACES) == fingerprint.encode()):
        return None
    if report.fingerprint != fingerprint:
        raise DataError(
            f"{place.show()} holds a dataset built from other rows or settings; choose another folder or pass --force"
        )
    for folder, line in shard_lines(place, report):
        name = join(folder, line.shard)
        if place.size(name) != line.bytes:
            raise DataError(
                f"{place.show()} was built, but {place.show(name)} is missing or has changed; pass --force to build it again"
            )
    return report


def _remove_leftovers(place: Place, part: tuple[int, int] | None) -> None:
    """What a run left that was killed after ``build.json``, or in the middle of a retry."""
    if part is None and STAGING in place.entries():
        with _locked(place, None, start_over=False):
            place.remove_tree(STAGING)


def _refuse_foreign(place: Place, retry_failed: bool) -> None:
    """Raise DataError unless the place is absent, empty, or an interrupted build."""
    entries = place.entries()
    if retry_failed and STAGING not in entries:
        raise DataError(
            f"{place.show()} holds no finished build whose failed rows could be read again; leave out --retry-failed"
        )
    if entries and STAGING not in entries and entries != [REJECTS]:
        shown = ", ".join(entries[:5])
        raise DataError(f"{place.show()} is not empty ({shown}); choose another folder, or pass --force to replace its shards")


@contextmanager
def _locked(place: Place, part: tuple[int, int] | None, *, start_over: bool) -> Iterator[None]:
    """Hold the staging folder, emptied if ``start_over``. Raises DataError when another living build holds it.

    Parts hold it together, each its own share. Object stores know no locks: there two builds of one plan write the same
    bytes under the same names, and no harm is done.
    """
    with ExitStack() as held:
        if isinstance(place, LocalPlace):
            staging = place.root / STAGING
            held.enter_context(_flock(staging, "=lock", shared=part is not None))
            if part is not None:
                held.enter_context(_flock(staging, f"=part-{part[0]}-of-{part[1]}", shared=False))
            else:
                _sweep(place.root)
        if start_over:
            for name in open_place(place.show(STAGING)).entries():
                if not name.startswith("=") or name == "=":
                    place.remove_tree(f"{STAGING}/{name}")
        yield


@contextmanager
def _flock(staging: Path, name: str, *, shared: bool) -> Iterator[None]:
    try:
        staging.mkdir(parents=True, exist_ok=True)
        handle = open(staging / name, "w")  # noqa: SIM115  (held open for the whole block: closing it releases the lock)
    except OSError as error:
        raise DataError(f"cannot write {staging}: {error}; {AGAIN}") from error
    with handle:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another build is writing to {staging.parent}; wait for it or choose another folder") from error
        yield


def _sweep(root: Path) -> None:
    """Remove the temporary files that killed processes left: half-written, under names that nothing reads."""
    for path in [*root.glob(".*.tmp"), *root.glob("*/.*.tmp"), *root.glob("*/test/.*.tmp"), *(root / STAGING).glob("*/.*.tmp")]:
        path.unlink(missing_ok=True)
