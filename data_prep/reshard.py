"""The same samples in shards of another size, in the same order or in a random one that a seed decides.

    reshard(["shards/tiny"], "shards/large", shard_size=10_000)
    reshard(["shards/sorted"], "shards/shuffled", shard_size=10_000, shuffle_seed=0)

Shuffling reads every sample where it lies, so it wants a local disk; the order depends on the number of samples and the
seed. Memory: one sample, and 24 bytes per sample when shuffling.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_prep.grouping import Group, groups
from data_prep.inputs import is_remote, open_stream
from data_prep.output import ShardWriter, new_folder
from data_prep.pool import progress
from data_prep.reader import LEFT_OUT, Reader, Stored
from data_prep.walk import walk
from pipeline.data.files import LocalFiles
from pipeline.data.tar import group_key, parse_sample
from pipeline.errors import DataError


@dataclass
class Copied:
    """What a tool that copies samples did."""

    num_samples: int = 0  # looked at
    num_written: int = 0
    num_shards: int = 0
    num_renamed: int = 0
    left_out: dict[str, int] = field(default_factory=dict)  # links, devices and strays, which are no part of a sample

    def add(self, shards: ShardWriter) -> None:
        """Account for what a writer wrote."""
        self.num_written += shards.num_samples
        self.num_shards += len(shards.lines)
        self.num_renamed += shards.num_renamed


def reshard(
    specs: Sequence[str],
    out: str,
    *,
    shard_size: int = 0,
    shard_bytes: int = 0,
    shuffle_seed: int | None = None,
    name: str = "shard",
    force: bool = False,
) -> Copied:
    """Copy all samples into shards of ``shard_size`` samples, or of at least ``shard_bytes`` bytes.

    Raises DataError when there are no shards, one is damaged, or shuffling is asked of remote ones.
    """
    reader = Reader(specs, "reshard")
    if shuffle_seed is not None and any(map(is_remote, reader.paths)):
        raise DataError("shuffling reads samples one by one, which remote shards are too slow for; copy them here first")
    report = Copied()
    with new_folder(out, force=force) as folder:
        with ShardWriter(folder, name, shard_size=shard_size, shard_bytes=shard_bytes) as shards:
            for sample in reader if shuffle_seed is None else _shuffled(reader, shuffle_seed):
                shards.add(sample.key, sample.members)
                report.num_samples += 1
        report.add(shards)
    report.left_out = dict(reader.left_out.counts)
    return report


def _shuffled(reader: Reader, seed: int) -> Iterator[Stored]:
    """Every sample of the reader's shards in the order of a permutation."""
    shard, offset, size = array("q"), array("q"), array("q")
    for number, path in enumerate(reader.paths):
        with open_stream(path) as stream:
            for item in groups(walk(stream)):
                if isinstance(item, Group):
                    for column, value in ((shard, number), (offset, item.offset), (size, item.end - item.offset)):
                        column.append(value)
                elif item.kind not in LEFT_OUT:
                    raise DataError(f"{path}: {item.detail} ({item.kind}); make a clean copy with `unisphere shards repair`")
                else:
                    reader.left_out.add(item.kind, item.detail)
    files = LocalFiles()
    with progress(len(shard), "shuffle", "sample") as bar:
        for place in np.random.Generator(np.random.Philox(seed)).permutation(len(shard)):
            path = reader.paths[shard[place]]
            where = f"{path} at byte {offset[place]:,}"
            buffer = bytes(files.read(path, offset[place], size[place]))
            yield Stored(path, _key_of(buffer), parse_sample(buffer, where))
            bar.update(1)


def _key_of(buffer: bytes) -> str:
    """The key of the one sample in these bytes."""
    import io

    for item in walk(io.BytesIO(buffer)):
        split = group_key(getattr(item, "name", ""))
        if split is not None:
            return split[0]
    raise AssertionError("a sample has a member with a key")
