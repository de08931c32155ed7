"""The run over all chunks, and the commit of the finished folder.

    report = build(open_source("pairs.csv"), Path("shards/cc3m"), shard_size=1000, workers=4)
    report.accepted, report.rejected           # 3318001, Counter({"image-undecodable": 332})

    OUT/NAME-000000.tar ...  manifest.jsonl  sizes.json        rows without a split
    OUT/SPLIT/NAME-000000.tar ...                              rows with one
    OUT/SPLIT/classnames.txt ...  OUT/SPLIT/test/0.tar ...     splits that are test sets: CLIP_benchmark's layout
    OUT/rejects.jsonl        every row that was not accepted, with cause and detail
    OUT/build.json           the report; written last: a folder that has it is complete
    OUT/.build/              work in progress, gone at the end

Killed at any point, the same command continues: chunks that were finished are checked and kept. Until the commit an
older dataset in OUT stays as it was, even with ``force``; the commit itself only renames. Bytes depend on the rows,
the images, the shard size and nothing else. An interrupted build is continued on trust that images under known names
did not change; ``force`` starts over.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_prep.chunks import Chunk, Packed, Reject, pack, plan, staging_stem
from data_prep.files import write_text
from data_prep.manifest import MANIFEST, SIZES, ShardLine, folders_below, index_name, read_manifest, write_manifest
from data_prep.rows import EvalTexts, Source
from pipeline.errors import DataError

STAGING = ".build"
REPORT = "build.json"
REJECTS = "rejects.jsonl"


@dataclass
class Report:
    """What a build did, or with ``dry_run`` would do before looking at the images."""

    fingerprint: str  # of the plan
    num_rows: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # by cause
    splits: dict[str, dict[str, int]] = field(default_factory=dict)  # split -> shards, samples, bytes
    examples: dict[str, str] = field(default_factory=dict)  # cause -> its first detail
    num_reused: int = 0  # shards kept from an interrupted run
    already_complete: bool = False

    def add(self, split: str, count: int, num_bytes: int, rejects: Iterable[Reject]) -> None:
        """Account for one chunk."""
        if count:
            sizes = self.splits.setdefault(split, {"shards": 0, "samples": 0, "bytes": 0})
            sizes["shards"] += 1
            sizes["samples"] += count
            sizes["bytes"] += num_bytes
        self.accepted += count
        for reject in rejects:
            self.rejected[reject.cause] += 1
            self.examples.setdefault(reject.cause, f"row {reject.row}: {reject.detail}")

    def as_dict(self) -> dict[str, Any]:
        """For JSON; without what depends on how the run went."""
        kept = ("fingerprint", "num_rows", "accepted", "splits", "examples")
        rejected = dict(sorted(self.rejected.items()))
        return {
            **{name: getattr(self, name) for name in kept},
            "num_rejected": self.rejected.total(),
            "rejected": rejected,
        }


def survey(source: Source, shard_size: int) -> Report:
    """Plan without reading an image: counts per split, rows already known to be unusable, the fingerprint."""
    digest = hashlib.sha256(repr((source.name, shard_size, sorted(source.eval_sets.items()))).encode())
    report = Report("")
    for chunk in plan(source, shard_size):
        digest.update(chunk.fingerprint.encode())
        report.add(chunk.split, len(chunk.rows), 0, chunk.rejects)
        report.num_rows += len(chunk.rows) + len(chunk.rejects)
    report.fingerprint = digest.hexdigest()
    return report


def build(source: Source, out: Path, *, shard_size: int = 1000, workers: int = 1, force: bool = False) -> Report:
    """Write the rows of ``source`` as shards below ``out``; a folder already built from the same plan is left as it is.

    When no row is accepted only ``rejects.jsonl`` is written, and the caller should call that a failure. Raises
    DataError when ``out`` holds something else (unless ``force``), is being written by another build, or the disk
    refuses.
    """
    planned = survey(source, shard_size)
    if not force and _is_complete(out, planned.fingerprint):
        return _read_report(out)
    if not force:
        _refuse_foreign(out)
    with _locked(out / STAGING, start_over=force):
        report = Report(planned.fingerprint, planned.num_rows)
        packed = sorted(
            _pack_all(plan(source, shard_size), out / STAGING, workers, planned.num_rows),
            key=lambda chunk: (chunk.split, chunk.number),
        )
        for chunk in packed:
            report.add(chunk.split, chunk.count, chunk.bytes, chunk.rejects)
            report.num_reused += chunk.reused
        num_out = report.accepted + report.rejected.total()
        assert num_out == report.num_rows, f"{report.num_rows} rows went in, {num_out} came out"
        _commit(source, out, packed, report)
    return report


def _pack_all(chunks: Iterator[Chunk], staging: Path, workers: int, num_rows: int) -> list[Packed]:
    """Pack every chunk with ``workers`` processes, this one if 1; progress in rows on stderr."""
    from tqdm import tqdm

    packed: list[Packed] = []
    # In a log file every refresh is a line, so there it is rare.
    interval = 0.2 if sys.stderr.isatty() else 15.0
    with tqdm(total=num_rows, desc="rows", unit="row", file=sys.stderr, mininterval=interval) as bar:

        def finish(chunk: Packed) -> None:
            packed.append(chunk)
            bar.update(chunk.count + len(chunk.rejects))

        if workers == 1:
            for chunk in chunks:
                finish(pack(chunk, staging))
            return packed
        # spawn: a forked child would inherit the threads and sockets of remote file systems in a broken state.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent)
        running: set[Future[Packed]] = set()
        try:
            for chunk in chunks:
                running.add(pool.submit(pack, chunk, staging))
                if len(running) >= 2 * workers:  # bounded: a chunk holds its captions in memory
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        finish(future.result())
            for future in running:
                finish(future.result())
        except BrokenProcessPool as error:
            raise DataError("a worker process died, perhaps for lack of memory; continue with fewer --workers") from error
        finally:
            pool.shutdown(cancel_futures=True)
    return packed


def _follow_parent() -> None:
    """Run in each worker: leave Ctrl-C to the parent, and end when it does, which a killed parent cannot ask for."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only worker processes run this"
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _commit(source: Source, out: Path, packed: list[Packed], report: Report) -> None:
    """Move the staged shards to their final names and describe them; ``build.json`` last.

    If we die here, ``out`` has no ``build.json`` and still has its staging folder, so that the next run packs again
    the few chunks that had been moved, to the same bytes. A build that accepted nothing leaves an older dataset alone.
    """
    rejects = sorted((reject for chunk in packed for reject in chunk.rejects), key=lambda reject: reject.row)
    write_text(out / REJECTS, "".join(json.dumps(asdict(reject)) + "\n" for reject in rejects))
    if report.accepted:
        _remove_earlier_build(out)
    for split in report.splits:  # none when nothing was accepted
        chunks = [chunk for chunk in packed if chunk.split == split and chunk.count]
        texts = source.eval_sets.get(split)
        folder = out / split / "test" if texts else out / split
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for number, chunk in enumerate(chunks):
            shard = f"{number}.tar" if texts else f"{source.name}-{number:06d}.tar"
            staged = staging_stem(out / STAGING, chunk.split, chunk.number)
            os.replace(staged.with_suffix(".index.jsonl"), folder / index_name(shard))
            os.replace(staged.with_suffix(".tar"), folder / shard)
            lines.append(ShardLine(shard, chunk.count, chunk.bytes, chunk.sha256, index_name(shard)))
        if texts:
            _write_eval_texts(out / split, texts, len(lines))
        write_manifest(folder, lines)
    if report.accepted:
        write_text(out / REPORT, json.dumps(report.as_dict(), indent=1) + "\n")
    shutil.rmtree(out / STAGING)


def _write_eval_texts(folder: Path, texts: EvalTexts, num_shards: int) -> None:
    """The text files of CLIP_benchmark's layout; a set without classes says that it is for retrieval."""
    if texts.classnames:
        write_text(folder / "classnames.txt", "".join(f"{name}\n" for name in texts.classnames))
        write_text(folder / "zeroshot_classification_templates.txt", "".join(f"{line}\n" for line in texts.templates))
    else:
        write_text(folder / "dataset_type.txt", "retrieval\n")
    write_text(folder / "test" / "nshards.txt", f"{num_shards}\n")


def _is_complete(out: Path, fingerprint: str) -> bool:
    """Whether ``out`` holds a finished build of this plan. Raises DataError when it is one of another plan."""
    if not (out / REPORT).exists():
        return False
    if _read_report(out).fingerprint != fingerprint:
        raise DataError(f"{out} holds a dataset built from other rows or settings; choose another folder or pass --force")
    for folder in folders_below(out):
        for line in read_manifest(folder):
            path = folder / line.shard
            if not path.exists() or path.stat().st_size != line.bytes:
                raise DataError(f"{out} was built, but {path} is missing or has changed; pass --force to build it again")
    return True


def _read_report(out: Path) -> Report:
    try:
        stored = json.loads((out / REPORT).read_text(encoding="utf-8"))
        names = ("fingerprint", "num_rows", "accepted", "splits", "examples")
        fields = {name: stored[name] for name in names}
        return Report(**fields, rejected=Counter(stored["rejected"]), already_complete=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{out / REPORT} cannot be read ({error!r}); pass --force to build again") from error


def _refuse_foreign(out: Path) -> None:
    """Raise DataError unless ``out`` is absent, empty, or an interrupted build."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is not a folder; choose another output")
    entries = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if entries and STAGING not in entries and entries != [REJECTS]:
        shown = ", ".join(entries[:5])
        raise DataError(f"{out} is not empty ({shown}); choose another folder, or pass --force to replace its shards")


def _remove_earlier_build(out: Path) -> None:
    """Remove what ``out/build.json`` accounts for and nothing else; the file itself last, for a retry."""
    if not (out / REPORT).exists():
        return
    for split in _read_report(out).splits:
        for folder in (out / split, out / split / "test"):
            if not (folder / MANIFEST).exists():
                continue
            for line in read_manifest(folder):
                for name in (line.shard, line.index):
                    (folder / Path(name).name).unlink(missing_ok=True)
            (folder / SIZES).unlink(missing_ok=True)
            (folder / MANIFEST).unlink()
    (out / REPORT).unlink()


@contextmanager
def _locked(staging: Path, *, start_over: bool) -> Iterator[None]:
    """Hold the staging folder, emptied if ``start_over``. Raises DataError when another living build holds it."""
    try:
        staging.mkdir(parents=True, exist_ok=True)
        handle = open(staging / "=lock", "w")  # noqa: SIM115  (held open for the whole block: closing it releases the lock)
    except OSError as error:
        raise DataError(f"cannot write {staging}: {error}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another build is writing to {staging.parent}; wait for it or choose another folder") from error
        for folder in staging.iterdir() if start_over else ():
            if folder.is_dir():
                shutil.rmtree(folder)
        yield
