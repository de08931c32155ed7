"""Shards without index as an endless stream, for ``data.unindexed: stream``: inexact, and labelled so. Layer 1; no torch.

    found = StreamSet("pipe:aws s3 cp s3://bucket/{000..331}.tar -", storage, Reading(), allow_commands=True)
    found.read(123456)          # the next sample of this process's stream; the number only seeds it

Each process draws shards at random with replacement, reads them from front to end, and shuffles samples in a buffer, as
open_clip does with ``--dataset-resampled``. What that cannot promise: that every sample is seen equally often, that another
number of ranks or workers sees the same batches, that a resumed run continues where it stopped. An index gives all of that:
`unisphere shards index`.

A ``pipe:`` source runs a program, so it needs ``data.allow_commands``, and gets no shell: the command is split into words,
and words that only a shell understands are refused.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import numpy as np

from pipeline.config import DataConfig
from pipeline.data import plan, tar
from pipeline.data.drops import BadSample
from pipeline.data.files import ByteSource
from pipeline.data.members import Reading, Sample, sample_from
from pipeline.data.shards import expand, read_manifest
from pipeline.errors import DataError

log = logging.getLogger(__name__)

PIPE = "pipe:"
UNKNOWN_SIZE = 1 << 40
"""What an endless stream gives as its number of samples."""
BUFFER_SAMPLES = 1000
BUFFER_BYTES = 256 << 20
MAX_BARREN_SHARDS = 100
SHELL_WORDS = frozenset(["|", "||", "&", "&&", ";", "<", ">", ">>", "2>", "2>&1"])


def is_unindexed(spec: str, data: DataConfig, source: ByteSource) -> bool:
    """Whether this source is to be streamed: that was asked for, and some of its shards have no index.

    Raises:
        DataError: it is a command, and streaming was not asked for; or a manifest is broken.
    """
    paths = expand(spec)
    commands = [path for path in paths if path.startswith(PIPE)]
    if commands and data.unindexed != "stream":
        raise DataError(
            f"{commands[0]} is a command, which can only be streamed, without an exact order or resume: set "
            "data.unindexed=stream and data.allow_commands=true; or index the tars with `unisphere shards index` and "
            "give their path or URL"
        )
    if data.unindexed != "stream" or commands:
        return bool(commands)
    return any(
        not isinstance(read_manifest(os.path.dirname(path), source).get(os.path.basename(path), {}).get("index"), str)
        if path.endswith(".tar")
        else not read_manifest(path, source)
        for path in paths
    )


class StreamSet:
    """An endless, inexact stream of samples with the interface of ``ShardSet``; one instance serves one process.

    Raises:
        DataError: a command without ``allow_commands``, or one that needs a shell.
    """

    def __init__(self, spec: str, source: ByteSource, reading: Reading, *, allow_commands: bool = False) -> None:
        self._paths = [path for found in expand(spec) for path in _tars(found, source)]
        self._source, self._reading = source, reading
        self.watch: Callable[[str, str], None] | None = None
        self.counts = np.array([UNKNOWN_SIZE], np.int64)
        self._stream: Iterator[Sample | BadSample] | None = None
        for path in self._paths:
            if path.startswith(PIPE):
                words(path, allow_commands)
        log.warning(
            "%s: streamed without index, so coverage and order are inexact and a resume continues elsewhere; "
            "`unisphere shards index` makes them exact",
            spec,
        )

    def __len__(self) -> int:
        return UNKNOWN_SIZE

    @property
    def num_shards(self) -> int:
        """Shards that samples are drawn from."""
        return len(self._paths)

    def read(self, i: int) -> Sample:
        """The next sample of this process; the first number asked for seeds the stream.

        Raises:
            BadSample: the next sample, or the rest of the shard it is in, cannot be used.
        """
        if self._stream is None:
            self._stream = self._shuffled(plan.generator(i, plan.STREAM))
        found = next(self._stream)
        if isinstance(found, BadSample):
            raise found
        return found

    def locate(self, i: int) -> tuple[str, str]:
        """Nothing is known of a sample before it is read."""
        return "stream", str(i)

    def span(self, i: int) -> tuple[int, int]:
        """Any number stands in for any other."""
        return 0, UNKNOWN_SIZE

    def prepare(self, indices: Iterable[int]) -> None:
        """Nothing: a stream reads ahead by itself."""

    def preflight(self, k: int = 8) -> tuple[str, ...]:
        """Read up to ``k`` samples of the first shard; the extensions of the first usable one.

        Raises:
            DataError: not one of them can be used.
        """
        found: set[str] = set()
        first_bad: BadSample | None = None
        for number, (key, members) in enumerate(self._members(self._paths[0])):
            found.update(members or ())
            try:
                self._sample(members, self._paths[0], key)
                return tuple(members or ())
            except BadSample as bad:
                first_bad = first_bad or bad.located(self._paths[0], key)
            if number + 1 == k:
                break
        seen = ", ".join("." + extension for extension in sorted(found)) or "none"
        raise DataError(f"none of the first samples can be used; the first fails with {first_bad}. Members found: {seen}")

    def _shuffled(self, rng: np.random.Generator) -> Iterator[Sample | BadSample]:
        buffer: list[Sample] = []
        num_bytes = num_barren = 0
        while True:
            path = self._paths[int(rng.integers(len(self._paths)))]
            num_barren += 1
            for found in self._samples(path):
                num_barren = 0
                if isinstance(found, BadSample):
                    yield found
                    continue
                buffer.append(found)
                num_bytes += len(found.image)
                while len(buffer) > BUFFER_SAMPLES or num_bytes > BUFFER_BYTES:
                    place = int(rng.integers(len(buffer)))
                    buffer[place], buffer[-1] = buffer[-1], buffer[place]
                    num_bytes -= len(buffer[-1].image)
                    yield buffer.pop()
            if num_barren == MAX_BARREN_SHARDS:
                raise DataError(f"{MAX_BARREN_SHARDS} shards in a row, the last one {path}, hold no sample at all")

    def _samples(self, path: str) -> Iterator[Sample | BadSample]:
        try:
            for key, members in self._members(path):
                if self.watch is not None:
                    self.watch(path, key)
                try:
                    yield self._sample(members, path, key)
                except BadSample as bad:
                    yield bad.located(path, key)
        except (OSError, DataError) as error:
            yield BadSample("read-failed", f"the rest of the shard is lost: {error}", shard=path, key="the next sample")

    def _sample(self, members: dict[str, bytes] | None, path: str, key: str) -> Sample:
        if members is None:
            most = self._reading.max_member_bytes
            raise BadSample("sample-too-large", f"its members take more than {most:,} bytes (data.max_member_bytes)")
        return sample_from(members, self._reading, path, key)

    def _members(self, path: str) -> Iterator[tuple[str, dict[str, bytes] | None]]:
        with opened(path, self._source) as stream:
            yield from tar.read_samples(stream, path, max_bytes=self._reading.max_member_bytes)


def _tars(path: str, source: ByteSource) -> list[str]:
    if path.startswith(PIPE) or path.endswith(".tar"):
        return [path]
    found = sorted(name for name in source.names(path) if name.endswith(".tar"))
    if not found:
        raise DataError(f"no *.tar in {path}")
    return [os.path.join(path, name) for name in found]


@contextmanager
def opened(path: str, source: ByteSource) -> Iterator[BinaryIO]:
    """The bytes of a shard or of a command's output, read forwards.

    Raises:
        OSError: it cannot be opened.
        DataError: the command failed, after its output was read.
    """
    if not path.startswith(PIPE):
        with source.stream(path) as stream:
            yield stream
        return
    process = subprocess.Popen(words(path, allowed=True), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    finished = False
    try:
        yield cast(BinaryIO, process.stdout)
        finished = True
    finally:
        if not finished:
            process.kill()
        cast(BinaryIO, process.stdout).close()
        code = process.wait()
    if code:
        raise DataError(f"{path} exited with {code}")


def words(path: str, allowed: bool) -> list[str]:
    """The words of a ``pipe:`` command, which runs without a shell.

    Raises:
        DataError: it is not allowed, empty, not closed in its quotes, or needs a shell.
    """
    command = path.removeprefix(PIPE)
    if not allowed:
        raise DataError(f"{path} would run a program; if you wrote this path yourself, set data.allow_commands=true")
    try:
        found = shlex.split(command)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    shell = sorted(SHELL_WORDS & set(found))
    if shell or not found:
        raise DataError(f"{path}: commands run without a shell, which {' '.join(shell) or 'nothing'} needs; give one program")
    return found
