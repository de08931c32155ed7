"""The same samples in shards of another size, in the same order or in a random one that a seed decides.

    reshard(["shards/tiny"], "shards/large", shard_size=10_000)
    reshard(["shards/sorted"], "shards/shuffled", shard_size=10_000, shuffle_seed=0)

Shuffling reads every sample where it lies, so remote shards are first copied to the temporary folder (``TMPDIR``), which
must have room for them. The order depends on the number of samples and the seed. Memory: one sample, and 24 bytes per
sample when shuffling.
"""

from __future__ import annotations

import shutil
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.grouping import Group, groups
from data_prep.inputs import is_remote, open_stream, size_of
from data_prep.output import ShardWriter, new_folder
from data_prep.pool import progress
from data_prep.reader import LEFT_OUT, Reader, Stored
from data_prep.walk import walk
from pipeline.data.files import LocalFiles
from pipeline.data.tar import group_key, parse_sample
from pipeline.errors import DataError

COPY_BYTES = 1 << 20


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

    Raises DataError when there are no shards, one is damaged, or remote ones that are to be shuffled find no room here.
    """
    reader = Reader(specs, "reshard")
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
    with tempfile.TemporaryDirectory(prefix="unisphere-") as folder:
        local = _local_paths(reader.paths, Path(folder))
        shard, offset, size = array("q"), array("q"), array("q")
        for number, path in enumerate(reader.paths):
            with open_stream(local[number]) as stream:
                for item in groups(walk(stream)):
                    if isinstance(item, Group):
                        for column, value in ((shard, number), (offset, item.offset), (size, item.end - item.offset)):
                            column.append(value)
                    elif item.kind not in LEFT_OUT:
                        raise DataError(
                            f"{path}: {item.detail} ({item.kind}); make a clean copy with `unisphere shards repair`"
                        )
                    else:
                        reader.left_out.add(item.kind, item.detail)
        files = LocalFiles()
        with progress(len(shard), "shuffle", "sample") as bar:
            for place in np.random.Generator(np.random.Philox(seed)).permutation(len(shard)):
                path = reader.paths[shard[place]]
                where = f"{path} at byte {offset[place]:,}"
                buffer = bytes(files.read(local[shard[place]], offset[place], size[place]))
                yield Stored(path, _key_of(buffer), parse_sample(buffer, where))
                bar.update(1)


def _local_paths(paths: Sequence[str], folder: Path) -> list[str]:
    """``paths``, remote ones as copies in ``folder``. Raises DataError when there is no room or a copy is cut."""
    sizes = {path: size_of(path) for path in paths if is_remote(path)}
    wanted, free = sum(sizes.values()), shutil.disk_usage(folder).free
    if wanted > free:
        raise DataError(
            f"shuffling copies remote shards to {folder.parent} first: {wanted:,} bytes, of which {free:,} are free; set "
            "TMPDIR to a folder with room, or reshard without --shuffle and let training shuffle"
        )
    local = []
    with progress(wanted, "copy", "B") as bar:
        for number, path in enumerate(paths):
            copy = path
            if path in sizes:
                copy = str(folder / f"{number}.tar")
                _copy(path, copy, sizes[path])
                bar.update(sizes[path])
            local.append(copy)
    return local


def _copy(url: str, copy: str, num_bytes: int) -> None:
    try:
        with open_stream(url) as stream, open(copy, "wb") as handle:
            shutil.copyfileobj(stream, handle, COPY_BYTES)
            copied = handle.tell()
    except OSError as error:
        raise DataError(f"{url} cannot be copied to {copy}: {error}; set TMPDIR to a folder with room") from error
    if copied != num_bytes:
        raise DataError(f"{url} ended after {copied:,} of {num_bytes:,} bytes; run the same command again")


def _key_of(buffer: bytes) -> str:
    """The key of the one sample in these bytes."""
    import io

    for item in walk(io.BytesIO(buffer)):
        split = group_key(getattr(item, "name", ""))
        if split is not None:
            return split[0]
    raise AssertionError("a sample has a member with a key")
