"""Shards as one sequence of samples: ``ShardSet.read(i)`` fetches one byte range and parses it. Layer 1; no torch.

    shards = ShardSet.open("shards/cc3m")           # or a brace pattern, one .tar, a URL; see shards.py
    shards.preflight()                              # wrong member names fail here, in the first second
    len(shards), shards.counts                      # 3318333, array([10000, 10000, ...])
    shards.read(17).captions                        # ("a dog on a red sofa",)

What a sample is, and what makes one unusable, stands in ``members.py``.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np

from pipeline.config.data import DataConfig
from pipeline.data import tar
from pipeline.data.drops import BadSample
from pipeline.data.files import ByteSource, LocalFiles, is_url
from pipeline.data.members import CAPTIONS
from pipeline.data.members import IMAGE_EXTENSIONS as IMAGE_EXTENSIONS
from pipeline.data.members import MAX_MEMBER_BYTES as MAX_MEMBER_BYTES
from pipeline.data.members import Reading as Reading
from pipeline.data.members import Sample as Sample
from pipeline.data.members import group_number as group_number
from pipeline.data.members import sample_from as sample_from
from pipeline.data.plain import Data, plain_sample
from pipeline.data.plan import MAX_LANES
from pipeline.data.shards import Shard, ShardIndex, check, load_index, resolve
from pipeline.data.storage import open_storage
from pipeline.errors import DataError

MAX_INDEXED_SAMPLES = 4_000_000
"""Samples whose places are kept in memory, about 40 bytes each: above what a shuffle touches at a time (see ``plan.py``)."""
MIN_INDEXES = 2 * MAX_LANES
"""Shards whose indexes are kept however large they are: a lane reads from one or two, and reading one again takes long."""

PREFLIGHT_SHARDS = 4
OPENERS = 16


class ShardSet:
    """A sequence of samples over shards, numbered shard after shard.

    Args:
        shards: from ``shards.resolve``.
        source: what to read them through; local files by default.
        reading: how to read a sample.
        verify: what a shard is held to when its first sample is asked for.
        watch: told the shard and the key of each sample before it is read, for whoever waits for this process.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        source: ByteSource | None = None,
        reading: Reading | None = None,
        *,
        verify: Literal["size", "sha256"] = "size",
        watch: Callable[[str, str], None] | None = None,
    ) -> None:
        self.shards = tuple(shards)
        self.counts = np.array([shard.count for shard in shards], np.int64)
        self._first = (np.cumsum(self.counts) - self.counts).tolist()
        self._total = int(self.counts.sum())
        self._source: ByteSource = source or LocalFiles()
        self._reading = reading or Reading()
        self._verify = verify
        self.watch = watch
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._num_indexed = 0

    @staticmethod
    def open(spec: str, *, max_member_bytes: int = MAX_MEMBER_BYTES) -> ShardSet:
        """Open a folder, a brace pattern, or one tar, local or remote. Raises as ``shards.resolve`` does."""
        source = open_storage(DataConfig())
        return ShardSet(resolve(spec, source), source, Reading(max_member_bytes=max_member_bytes))

    def __len__(self) -> int:
        return self._total

    @property
    def sources(self) -> tuple[str, ...]:
        """Paths of the shards, in order."""
        return tuple(shard.path for shard in self.shards)

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return len(self.shards)

    def read(self, i: int) -> Sample:
        """Sample ``i`` in [0, len).

        Raises:
            BadSample: this one sample cannot be used; cause, shard and key are in its ``drop``.
            DataError: the index of its whole shard is broken.
        """
        shard, index, row, members = self._members(i)
        key = index.keys[row]
        try:
            return sample_from(members, self._reading, shard.path, key)
        except BadSample as bad:
            raise bad.located(shard.path, key) from bad

    def span(self, i: int) -> tuple[int, int]:
        """First and behind-last number of the samples that may stand in for sample ``i``: here, all of them."""
        return 0, self._total

    def prepare(self, indices: Iterable[int]) -> None:
        """Start bringing near the samples that will be read next; changes nothing but time.

        Raises:
            DataError: the index of a whole shard is broken, or a shard is not what its manifest says.
        """
        indices = list(indices)
        self._open_together({bisect.bisect_right(self._first, i) - 1 for i in indices})
        ranges = []
        for i in indices:
            try:
                shard, index, row = self._locate(i)
            except BadSample:
                continue  # the read itself will say so
            if index.size[row] <= self._reading.max_member_bytes:
                ranges.append((shard.path, int(index.offset[row]), int(index.size[row])))
        self._source.prepare(ranges)

    def members(self, i: int) -> dict[str, Data]:
        """The members of sample ``i`` as stored, by extension; large ones as views. Raises as ``read`` does."""
        return self._members(i)[3]

    def locate(self, i: int) -> tuple[str, str]:
        """Shard path and key of sample ``i``, without reading it."""
        shard, index, row = self._locate(i)
        return shard.path, index.keys[row]

    def preflight(self, k: int = 8) -> tuple[str, ...]:
        """Read the first ``k`` samples of the first shards, so that a wrong layout fails before anything is started.

        Returns:
            The extensions of the first usable sample's members.

        Raises:
            DataError: not one of them can be used; names the members found and those expected.
        """
        found: set[str] = set()
        first_bad: BadSample | None = None
        num_read = 0
        for shard in [number for number in range(len(self.shards)) if self.counts[number]][:PREFLIGHT_SHARDS]:
            for i in range(self._first[shard], self._first[shard] + min(k, self.counts[shard])):
                num_read += 1
                try:
                    members = self.members(i)
                    found.update(members)
                    self.read(i)
                    return tuple(members)
                except BadSample as bad:
                    first_bad = first_bad or bad
        assert first_bad is not None, "a ShardSet has at least one sample"
        raise DataError(
            f"none of the first {num_read} samples can be used; the first fails with {first_bad}. "
            f"Members found: {', '.join('.' + extension for extension in sorted(found)) or 'none readable'}. "
            f"Expected: an image (.{', .'.join(IMAGE_EXTENSIONS)}) with a caption in "
            f"{', '.join(self._reading.captions) or CAPTIONS}"
            f"{', or a class in .cls' if self._reading.evaluation else ''}. "
            "Rename the members, or build the shards again with `unisphere shards build`"
        )

    def _locate(self, i: int) -> tuple[Shard, ShardIndex, int]:
        if not 0 <= i < self._total:
            raise IndexError(f"sample {i} of {self._total}")
        number = bisect.bisect_right(self._first, i) - 1
        index = self._indexes.get(number)
        if index is not None:
            self._indexes.move_to_end(number)
        else:
            index = self._open(self.shards[number])
            self._remember(number, index)
        return self.shards[number], index, i - self._first[number]

    def _remember(self, number: int, index: ShardIndex) -> None:
        self._num_indexed += len(index.keys)
        while self._num_indexed > MAX_INDEXED_SAMPLES and len(self._indexes) > MIN_INDEXES:
            self._num_indexed -= len(self._indexes.popitem(last=False)[1].keys)
        self._indexes[number] = index

    def _open_together(self, numbers: set[int]) -> None:
        """Open remote shards side by side: an epoch begins with many new ones, and each takes several answers."""

        def opened(number: int) -> ShardIndex | None:
            try:
                return self._open(self.shards[number])
            except BadSample:
                return None  # the read itself will say so

        new = sorted(number for number in numbers - self._indexes.keys() if is_url(self.shards[number].path))
        if len(new) > 1:
            with ThreadPoolExecutor(min(OPENERS, len(new))) as pool:
                for number, index in zip(new, pool.map(opened, new), strict=True):
                    if index is not None:
                        self._remember(number, index)

    def _open(self, shard: Shard) -> ShardIndex:
        if self.watch is not None:
            self.watch(shard.path, "its index")
        try:
            check(shard, self._source, content=self._verify == "sha256")
        except OSError as error:
            raise BadSample("read-failed", str(error), shard=shard.path, key="every sample") from error
        self._source.keep(shard.path, shard.num_bytes, shard.sha256)
        return load_index(shard, self._source)

    def _members(self, i: int) -> tuple[Shard, ShardIndex, int, dict[str, Data]]:
        shard, index, row = self._locate(i)
        offset, size = index.offset.item(row), index.size.item(row)
        most = self._reading.max_member_bytes
        if size > most:
            detail = f"its members take {size:,} bytes, the bound is {most:,} (data.max_member_bytes)"
            raise BadSample("sample-too-large", detail, shard=shard.path, key=index.keys[row])
        if self.watch is not None:
            self.watch(shard.path, index.keys[row])
        try:
            buffer = self._source.read(shard.path, offset, size)
        except OSError as error:
            raise BadSample("read-failed", str(error), shard=shard.path, key=index.keys[row]) from error
        if len(buffer) < size:
            detail = f"only {len(buffer):,} of {size:,} bytes at byte {offset:,}: the shard was cut while in use"
            raise BadSample("read-failed", detail, shard=shard.path, key=index.keys[row])
        members = plain_sample(buffer, index.keys.raw(row))
        if members is None:
            try:
                members = {**tar.parse_sample(bytes(buffer), f"{shard.path} at byte {offset:,}")}
            except DataError as error:
                raise BadSample("tar-corrupt", str(error), shard=shard.path, key=index.keys[row]) from error
        return shard, index, row, members
