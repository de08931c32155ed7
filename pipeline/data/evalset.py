"""Test sets in CLIP_benchmark's WebDataset layout, read completely and exactly once over all ranks. Layer 2.

    FOLDER/classnames.txt                          one class per line; absent for retrieval sets
    FOLDER/zeroshot_classification_templates.txt   one template per line, with {c} for the class name
    FOLDER/test/nshards.txt                        the number of tars (optional where the folder can be listed)
    FOLDER/test/0.tar, 1.tar, ...                  KEY.<image>, KEY.cls and/or KEY.txt (one caption per line), KEY.json

    emoji = EvalSet.open("data/emoji-eval")        # or "s3://bucket/evals/emoji-eval", or any other URL that fsspec knows
    emoji.has_labels, len(emoji.classnames), len(emoji)             # (True, 95, 1595)
    for batch in emoji.rank_batches(rank=0, size=2, batch_size=256, image_size=64):
        batch.image_BCHW, batch.label_B, batch.index_B      # index_B: place in the set, to put results in order

Ranks read contiguous parts whose sizes differ by one at most; nothing is padded or read twice. A measurement must be
over the whole set, so a sample that cannot be used is an error here, not a drop.

Shapes: B samples of one batch (the last is smaller), C = 3, H = W = image_size.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config import DataConfig
from pipeline.data.augment import decode, eval_view
from pipeline.data.drops import BadSample
from pipeline.data.files import ByteSource, is_url
from pipeline.data.samples import Reading, Sample, ShardSet
from pipeline.data.shards import describe, read_manifest
from pipeline.data.storage import open_storage
from pipeline.errors import DataError

log = logging.getLogger(__name__)

CLASSNAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
NUM_SHARDS = "nshards.txt"
MAX_IMAGE_PIXELS = 64_000_000
CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class EvalBatch:
    """Samples ``index_B`` of a set; ``label_B`` is -1 where there is no class, ``captions`` may be empty tuples."""

    index_B: torch.Tensor
    image_BCHW: torch.Tensor
    label_B: torch.Tensor
    captions: list[tuple[str, ...]]
    keys: list[str]
    meta: list[dict[str, Any]]


class EvalSet:
    """A test set: shards, and for classification also class names and templates (empty for retrieval).

    Args:
        address: where it lies.
        shards: its samples.
        classnames: of its classes.
        templates: with ``{c}`` for the class name.
        limit: use only so many samples, at even distances.
        source: what the shards are read through.
    """

    def __init__(
        self,
        address: str,
        shards: ShardSet,
        classnames: tuple[str, ...],
        templates: tuple[str, ...],
        limit: int | None = None,
        source: ByteSource | None = None,
    ) -> None:
        self.address, self.shards, self.classnames, self.templates = address, shards, classnames, templates
        self._source = source or open_storage(DataConfig())
        self._size = len(shards) if limit is None else min(limit, len(shards))

    @staticmethod
    def open(address: str | Path, split: str = "test", source: ByteSource | None = None, limit: int | None = None) -> EvalSet:
        """Open and check a test set, or its part for fitting probes (``split="train"``).

        Args:
            address: a folder or URL.
            split: which part.
            source: what to read it through; by default local files, and URLs without options.
            limit: use only so many samples, at even distances.

        Raises:
            DataError: the folder, a shard, or a text file is missing or unusable, or no first sample can be used.
        """
        address, source = str(address).rstrip("/"), source or open_storage(DataConfig())
        if not has_split(address, split, source):
            raise DataError(
                f"evaluation set {address}: no folder {address}/{split} with 0.tar, 1.tar, ...; check eval.sets and eval.root"
            )
        classnames = tuple(read_lines(f"{address}/{CLASSNAMES}", source) or ())
        shards = ShardSet(describe(_shard_paths(f"{address}/{split}", source), source), source, Reading(evaluation=True))
        if not len(shards):
            raise DataError(f"evaluation set {address}: {len(shards.shards)} shards with 0 samples")
        shards.preflight()
        return EvalSet(address, shards, classnames, _templates(address, source) if classnames else (), limit, source)

    def twin(self, limit: int | None = None) -> EvalSet:
        """The same set for another thread: with connections, open files and copies of its own; of at most ``limit`` samples."""
        source = copy.deepcopy(self._source)
        shards = ShardSet(self.shards.shards, source, Reading(evaluation=True))
        size = self._size if limit is None else min(limit, self._size)
        return EvalSet(self.address, shards, self.classnames, self.templates, size, source)

    @property
    def name(self) -> str:
        """Last part of the address."""
        return self.address.rpartition("/")[2]

    @property
    def has_labels(self) -> bool:
        """Whether this is a classification set; otherwise it is for retrieval."""
        return bool(self.classnames)

    def __len__(self) -> int:
        return self._size

    def rank_batches(self, rank: int, size: int, batch_size: int, image_size: int) -> Iterator[EvalBatch]:
        """This rank's contiguous part of the set, in order; the number of batches may differ between ranks, and be 0.

        Decodes in the calling thread. An open set serves one thread; its ``twin`` serves another one.

        Raises:
            DataError: a sample cannot be used, or its label has no class name.
        """
        first, last = len(self) * rank // size, len(self) * (rank + 1) // size
        for low in range(first, last, batch_size):
            yield self._batch(range(low, min(low + batch_size, last)), image_size)

    def _batch(self, indices: range, image_size: int) -> EvalBatch:
        image_BCHW = np.empty((len(indices), 3, image_size, image_size), np.uint8)
        samples = []
        stored = [i * len(self.shards) // len(self) for i in indices]
        self.shards.prepare(stored)
        for place, i in enumerate(stored):
            try:
                sample = self.shards.read(i)
                image_BCHW[place] = eval_view(decode(sample.image, MAX_IMAGE_PIXELS), image_size)
            except BadSample as bad:
                shard, key = self.shards.locate(i)
                drop = bad.located(shard, key).drop
                raise DataError(f"{self.address}: {drop}; a result must cover all samples, so repair the set") from bad
            self._check_label(sample)
            samples.append(sample)
        return EvalBatch(
            torch.tensor(indices, dtype=torch.int64),
            torch.from_numpy(image_BCHW),
            torch.tensor([-1 if sample.label is None else sample.label for sample in samples], dtype=torch.int64),
            [sample.captions for sample in samples],
            [sample.key for sample in samples],
            [sample.meta for sample in samples],
        )

    def _check_label(self, sample: Sample) -> None:
        if self.has_labels and (sample.label is None or sample.label >= len(self.classnames)):
            where = f"{sample.key} in {sample.shard}"
            raise DataError(f"{where} has label {sample.label}, {CLASSNAMES} has {len(self.classnames)} classes")


def has_split(address: str | Path, split: str, source: ByteSource) -> bool:
    """Whether a set has this part. Raises DataError when a remote place does not answer."""
    folder = f"{address}/{split}"
    if not is_url(folder):
        return os.path.isdir(folder)
    return _size(f"{folder}/{NUM_SHARDS}", source) is not None or bool(_names(folder, source))


def digest(address: str | Path, source: ByteSource) -> str:
    """SHA-256 of a set's own files, names and bytes: what must be equal for a result to hold.

    Local files are read. Of remote ones only the texts are: a shard counts by the SHA-256 that its manifest has (its size is
    checked when it is opened), and only where there is none its bytes are fetched for this.

    Raises:
        DataError: a file cannot be read.
    """
    address = str(address).rstrip("/")
    found = {}
    for folder in ("", "test/", "train/"):
        listed = read_manifest(f"{address}/{folder}".rstrip("/"), source) if folder and is_url(address) else {}
        for name in _files(f"{address}/{folder}".rstrip("/"), bool(folder), source):
            if folder or name.endswith(".txt"):
                known = listed.get(name, {}).get("sha256")
                found[folder + name] = known or _file_sha256(f"{address}/{folder}{name}", source)
    total = hashlib.sha256()
    for name in sorted(found, key=lambda name: name.split("/")):
        total.update(f"{name}\n{found[name]}\n".encode())
    return total.hexdigest()


def _files(folder: str, is_split: bool, source: ByteSource) -> list[str]:
    """Names in a folder of a set; those that a set has, where the place cannot be listed."""
    names = _names(folder, source)
    if names or not is_url(folder):
        return names
    if is_split:
        has_any = _size(f"{folder}/{NUM_SHARDS}", source) is not None
        return [path.rpartition("/")[2] for path in _shard_paths(folder, source)] if has_any else []
    return [name for name in (CLASSNAMES, TEMPLATES) if _size(f"{folder}/{name}", source) is not None]


def _file_sha256(path: str, source: ByteSource) -> str:
    total = hashlib.sha256()
    try:
        with source.stream(path) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                total.update(chunk)
    except OSError as error:
        raise DataError(f"evaluation set: {path} cannot be read: {error}") from error
    return total.hexdigest()


def _names(folder: str, source: ByteSource) -> list[str]:
    """Entries of a folder; none where it is missing or, behind a URL, cannot be listed."""
    try:
        return sorted(name for name in source.names(folder) if name)
    except OSError as error:
        if not isinstance(error, FileNotFoundError | NotADirectoryError) and not is_url(folder):
            raise DataError(f"{folder} cannot be read: {error}") from error
        return []


def _size(path: str, source: ByteSource) -> int | None:
    """Bytes of a file, None if it is missing."""
    try:
        return source.size(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _shard_paths(folder: str, source: ByteSource) -> list[str]:
    """0.tar .. (n - 1).tar; n from nshards.txt, or counted, in which case the numbers must have no gap."""
    stated = read_lines(f"{folder}/{NUM_SHARDS}", source)
    text = "".join(stated or ())
    if stated is not None and not text.isdecimal():
        raise DataError(f"{folder}/{NUM_SHARDS} must hold the number of shards, got {text[:20]!r}")
    names = _names(folder, source)
    numbers = sorted(int(name[:-4]) for name in names if name.endswith(".tar") and name[:-4].isdecimal())
    if stated is None:
        log.info("%s has no %s; found %d shards", folder, NUM_SHARDS, len(numbers))
    expected = len(numbers) if stated is None else int(text)
    if stated is not None and not names:  # some places cannot be listed: opening the shards will tell
        numbers = list(range(expected))
    missing = sorted(set(range(expected)) - set(numbers))
    if missing or not expected:
        found = f"found {len(numbers)}, missing {', '.join(f'{number}.tar' for number in missing[:5]) or 'all'}"
        raise DataError(f"{folder}: expected {expected} shards 0.tar, 1.tar, ...; {found}; copy the set again")
    return [f"{folder}/{number}.tar" for number in range(expected)]


def _templates(address: str, source: ByteSource) -> tuple[str, ...]:
    path = f"{address}/{TEMPLATES}"
    templates = tuple(read_lines(path, source) or ())
    wrong = [template for template in templates if "{c}" not in template]
    if wrong or not templates:
        raise DataError(
            f"{path} {'has a template without {c}: ' + repr(wrong[0]) if wrong else 'is missing or empty'}; "
            "write one template per line with {c} for the class name, for example: a photo of a {c}."
        )
    return templates


def read_lines(path: str, source: ByteSource) -> list[str] | None:
    """The lines of a text file without surrounding space; blank lines at its end do not count. None if it is missing.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    if _size(path, source) is None:
        return None
    try:
        with source.stream(path) as stream:
            lines = [line.strip() for line in stream.read().decode("utf-8").rstrip().split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from error
    return [] if lines == [""] else lines
