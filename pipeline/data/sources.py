"""The sources of a run: opened, read as one sequence of samples, and given their places in the run's order. Layer 1.

    sources = open_sources(cfg.data)                    # every source's shards, numbered one source after the other
    print(sources.preflight())                          # a table; raises where a source cannot be used
    sources.read(17), sources.locate(17), sources.span(17)
    plan = run_plan(cfg.data, sources, seed=0, global_batch_size=4096, total_steps=100_000)

A sample that cannot be used is replaced from its own source (``span``), so that replacing does not change the mix.
"""

from __future__ import annotations

import bisect
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from pipeline.config import DataConfig, SourceConfig, WeightConfig, data_sources
from pipeline.data import plan
from pipeline.data.members import Reading, Sample
from pipeline.data.mixture import RunPlan, Shares
from pipeline.data.samples import ShardSet
from pipeline.data.shards import resolve
from pipeline.data.storage import open_storage
from pipeline.data.unindexed import StreamSet, is_unindexed
from pipeline.errors import ConfigError, DataError
from pipeline.schedule import weight_at

T = TypeVar("T")

PREFLIGHT_SECONDS = 25.0
SCHEDULE_PIECES = 1000
"""A schedule of weights is followed in this many steps of equal length."""


class Sources:
    """Several sets of samples as one, numbered set after set."""

    def __init__(self, names: Sequence[str], sets: Sequence[ShardSet | StreamSet]) -> None:
        self.names, self.sets = tuple(names), tuple(sets)
        self._first = list(itertools.accumulate((len(found) for found in sets), initial=0))

    def __len__(self) -> int:
        return self._first[-1]

    def watch(self, note: Callable[[str, str], None]) -> None:
        """Have ``note`` told the shard and key of every sample before it is read."""
        for found in self.sets:
            found.watch = note

    def read(self, i: int) -> Sample:
        """Sample ``i``. Raises BadSample or DataError, as its own set does."""
        number, inner = self._locate(i)
        return self.sets[number].read(inner)

    def locate(self, i: int) -> tuple[str, str]:
        """Shard path and key of sample ``i``, without reading it."""
        number, inner = self._locate(i)
        return self.sets[number].locate(inner)

    def span(self, i: int) -> tuple[int, int]:
        """First and behind-last number of the samples of the same source."""
        number, _ = self._locate(i)
        return self._first[number], self._first[number + 1]

    def prepare(self, indices: Iterable[int]) -> None:
        """Start bringing near the samples that will be read next. Raises DataError where a whole shard is unusable."""
        wanted: dict[int, list[int]] = {}
        for i in indices:
            number, inner = self._locate(int(i))
            wanted.setdefault(number, []).append(inner)
        for number, inner_indices in wanted.items():
            self.sets[number].prepare(inner_indices)

    def preflight(self) -> str:
        """Read the first samples of every source, and say what each is.

        Raises:
            DataError: none of a source's first samples can be used, or all of them together took more than
                ``PREFLIGHT_SECONDS``; the source that was waited for then is named.
        """
        end = time.monotonic() + PREFLIGHT_SECONDS
        rows = [("source", "shards", "samples", "members")]
        for name, found in zip(self.names, self.sets, strict=True):
            try:
                left = max(1.0, end - time.monotonic())
                members = within(left, f"source {name}: reading its first sample", found.preflight)
            except DataError as error:
                raise DataError(f"source {name}: {error}") from error
            samples = "unknown (inexact)" if isinstance(found, StreamSet) else f"{len(found):,}"
            rows.append((name, f"{found.num_shards:,}", samples, " ".join(f".{member}" for member in members)))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join(
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )

    def _locate(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        number = bisect.bisect_right(self._first, i) - 1
        return number, i - self._first[number]


def within(seconds: float, what: str, job: Callable[[], T]) -> T:
    """The result of ``job``, run in a thread.

    Raises:
        DataError: it takes longer; otherwise whatever it raises itself.
    """
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(job())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return answer.result(timeout=seconds)
    except TimeoutError:
        if answer.done():  # the job's own
            raise
        raise DataError(f"{what} took longer than {seconds:.0f} s; check the path and the network, or copy it here") from None


def open_sources(data: DataConfig) -> Sources:
    """Open every source of these settings.

    Raises:
        DataError: a source's shards cannot be opened.
    """
    storage = open_storage(data)

    def opened(source: SourceConfig) -> ShardSet | StreamSet:
        reading = Reading(source.captions, source.filters, data.max_member_bytes, data.max_caption_characters)
        if is_unindexed(source.path, data, storage):
            return StreamSet(source.path, storage, reading, allow_commands=data.allow_commands)
        return ShardSet(resolve(source.path, storage), storage, reading, verify=data.verify)

    found = data_sources(data)
    return Sources([source.name for source in found], [opened(source) for source in found])


def run_plan(data: DataConfig, sources: Sources, *, seed: int, global_batch_size: int, total_steps: int) -> RunPlan:
    """The order of a run over these sources.

    Raises:
        ConfigError: the weights cannot be used.
    """
    found = data_sources(data)
    passes = []
    for number, (source, samples) in enumerate(zip(found, sources.sets, strict=True)):
        whole = plan.num_steps_per_epoch(len(samples), global_batch_size) * global_batch_size
        passes.append(
            plan.Passes(
                samples.counts,
                seed=plan.source_seed(seed, number),
                shuffle_window=data.shuffle_window,
                max_lanes=data.shuffle_lanes,
                replacement=source.replacement,
                length=None if data.mixture else whole,
            )
        )
    return RunPlan(passes, shares(data, sources, global_batch_size, total_steps), global_batch_size)


def shares(data: DataConfig, sources: Sources, global_batch_size: int, total_steps: int) -> Shares:
    """How much each source contributes over the run. Raises ConfigError as ``Shares`` does, and for a temperature over
    a source whose size nobody knows."""
    found = data_sources(data)
    scale = [1.0] * len(found)
    if data.mixture_temperature is not None:
        unknown = [name for name, samples in zip(sources.names, sources.sets, strict=True) if isinstance(samples, StreamSet)]
        if unknown:
            raise ConfigError(f"data.mixture_temperature with {', '.join(unknown)}, whose size is unknown; give weights only")
        scale = [len(samples) ** (1 / data.mixture_temperature) for samples in sources.sets]
    constant = all(source.schedule == "constant" for source in found)
    num_pieces = 1 if constant else max(1, min(SCHEDULE_PIECES, total_steps))
    bounds = [total_steps * number // num_pieces for number in range(num_pieces + 1)]
    weights = [
        [
            factor * _weight(source, (low + high - 1) // 2, max(1, total_steps))
            for factor, source in zip(scale, found, strict=True)
        ]
        for low, high in zip(bounds, bounds[1:], strict=False)
    ]
    return Shares(weights, [max(1, high) * global_batch_size for high in bounds[1:]])


def _weight(source: SourceConfig, step: int, total_steps: int) -> float:
    schedule = WeightConfig(weight=source.weight, schedule=source.schedule, final_weight=source.final_weight)
    return weight_at(step, cfg=schedule, epoch=0, total_steps=total_steps)
