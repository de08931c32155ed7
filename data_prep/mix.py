"""One set out of several, in fixed proportions, interleaved so that every stretch of it has them.

    mix({"shards/photos": 0.7, "shards/icons": 0.3}, "shards/both")             # ends when one source is used up
    mix({"shards/photos": 0.7, "shards/icons": 0.3}, "shards/both", count=10**6, repeat=True)

At every place comes a sample of the source that is furthest behind its share; each source is read in its own order. After n
samples every source has had its share of n to within one sample (to within k - 1 of k sources). Keys get the source's name in
front, since two sources may use the same ones; the json member is not touched, so groups and captions stay what they were.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from data_prep.output import ShardWriter, new_folder
from data_prep.reader import Reader, Stored
from data_prep.reshard import Copied
from pipeline.errors import DataError


def mix(
    sources: Mapping[str, float],
    out: str,
    *,
    count: int | None = None,
    repeat: bool = False,
    shard_size: int = 1000,
    name: str = "mix",
    force: bool = False,
) -> Copied:
    """Copy samples of ``sources`` (spec -> weight, of any sum) until ``count``, or until one source has no more.

    With ``repeat`` a source that ends begins again, its keys marked ``-r1``, ``-r2``, ...; that needs a ``count``.

    Raises DataError when a weight is not positive, a source is damaged or has no samples, or ``count`` is not reached.
    """
    if not sources or min(sources.values()) <= 0:
        raise DataError(f"weights must be positive, got {dict(sources)}")
    if repeat and count is None:
        raise DataError("a repeating mixture never ends; give a count")
    names = _names(list(sources))
    readers = {names[spec]: Reader([spec], names[spec]) for spec in sources}
    weights = {names[spec]: weight / sum(sources.values()) for spec, weight in sources.items()}
    report = Copied()
    with new_folder(out, force=force) as folder:
        with ShardWriter(folder, name, shard_size=shard_size) as shards:
            for key, sample in _interleaved(readers, weights, repeat):
                if count is not None and shards.num_samples >= count:
                    break
                shards.add(key, sample.members)
                report.num_samples += 1
        report.add(shards)
        if count is not None and report.num_written < count:
            raise DataError(f"a source ended after {report.num_written:,} of {count:,} samples; pass --repeat or a lower count")
    for reader in readers.values():
        for kind, times in reader.left_out.counts.items():
            report.left_out[kind] = report.left_out.get(kind, 0) + times
    return report


def schedule(weights: Mapping[str, float]) -> Iterator[str]:
    """Names in the proportions of ``weights`` (which sum to 1), without end: always the one furthest behind its share.

    >>> from itertools import islice
    >>> "".join(islice(schedule({"a": 0.75, "b": 0.25}), 8))
    'aabaaaba'
    """
    given = dict.fromkeys(weights, 0)
    total = 0
    while True:
        total += 1
        name = max(weights, key=lambda name: (weights[name] * total - given[name], -list(weights).index(name)))
        given[name] += 1
        yield name


def _interleaved(readers: Mapping[str, Reader], weights: Mapping[str, float], repeat: bool) -> Iterator[tuple[str, Stored]]:
    """(key, sample) in the order of the schedule, until a source ends that must not repeat."""
    streams = {name: iter(reader) for name, reader in readers.items()}
    rounds = dict.fromkeys(readers, 0)
    for name in schedule(weights):
        sample = next(streams[name], None)
        if sample is None and repeat:
            rounds[name] += 1
            streams[name] = iter(readers[name])
            sample = next(streams[name], None)
            if sample is None:
                raise DataError(f"source {name} holds no samples")
        if sample is None:
            return
        mark = f"-r{rounds[name]}" if rounds[name] else ""
        yield f"{name}-{sample.key}{mark}", sample


def _names(specs: list[str]) -> dict[str, str]:
    """A short name per source, distinct: the last part of its path."""
    names: dict[str, str] = {}
    for spec in specs:
        stem = re.sub(r"[^\w-]", "_", PurePosixPath(spec.rstrip("/")).name.removesuffix(".tar")) or "source"
        name, number = stem, 1
        while name in names.values():
            number += 1
            name = f"{stem}_{number}"
        names[spec] = name
    return names
