"""Test sets in CLIP_benchmark's WebDataset layout, read completely and exactly once over all ranks. Layer 2.

    FOLDER/classnames.txt                          one class per line; absent for retrieval sets
    FOLDER/zeroshot_classification_templates.txt   one template per line, with {c} for the class name
    FOLDER/test/nshards.txt                        the number of tars (optional)
    FOLDER/test/0.tar, 1.tar, ...                  KEY.<image>, KEY.cls and/or KEY.txt (one caption per line)

    emoji = EvalSet.open("data/emoji-eval")
    emoji.has_labels, len(emoji.classnames), len(emoji)             # (True, 95, 1595)
    for batch in emoji.rank_batches(rank=0, size=2, batch_size=256, image_size=64):
        batch.image_BCHW, batch.label_B, batch.index_B      # index_B: place in the set, to put results in order

Ranks read contiguous parts whose sizes differ by one at most; nothing is padded or read twice. A measurement must be
over the whole set, so a sample that cannot be used is an error here, not a drop.

Shapes: B samples of one batch (the last is smaller), C = 3, H = W = image_size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.augment import decode, eval_view
from pipeline.data.drops import BadSample
from pipeline.data.samples import Reading, Sample, ShardSet
from pipeline.data.shards import LocalFiles, describe
from pipeline.errors import DataError

log = logging.getLogger(__name__)

CLASSNAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
MAX_IMAGE_PIXELS = 64_000_000


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
    """A test set: shards, and for classification also class names and templates (empty for retrieval)."""

    def __init__(self, folder: Path, shards: ShardSet, classnames: tuple[str, ...], templates: tuple[str, ...]) -> None:
        self.folder, self.shards, self.classnames, self.templates = folder, shards, classnames, templates

    @staticmethod
    def open(folder: str | Path, split: str = "test") -> EvalSet:
        """Open and check a test set, or its part for fitting probes (``split="train"``).

        Raises:
            DataError: the folder, a shard, or a text file is missing or unusable, or no first sample can be used.
        """
        folder = Path(folder)
        if not (folder / split).is_dir():
            raise DataError(f"evaluation set {folder}: no folder {folder / split} with 0.tar, 1.tar, ...; check eval.sets")
        classnames = tuple(_lines(folder / CLASSNAMES)) if (folder / CLASSNAMES).exists() else ()
        source = LocalFiles()
        shards = ShardSet(describe(_shard_paths(folder / split), source), source, Reading(evaluation=True))
        if not len(shards):
            raise DataError(f"evaluation set {folder}: {len(shards.shards)} shards with 0 samples")
        shards.preflight()
        return EvalSet(folder, shards, classnames, _templates(folder) if classnames else ())

    @property
    def has_labels(self) -> bool:
        """Whether this is a classification set; otherwise it is for retrieval."""
        return bool(self.classnames)

    def __len__(self) -> int:
        return len(self.shards)

    def rank_batches(self, rank: int, size: int, batch_size: int, image_size: int) -> Iterator[EvalBatch]:
        """This rank's contiguous part of the set, in order; the number of batches may differ between ranks, and be 0.

        Decodes in the calling thread. An open set serves one thread; a (deep) copy of it serves another one.

        Raises:
            DataError: a sample cannot be used, or its label has no class name.
        """
        first, last = len(self) * rank // size, len(self) * (rank + 1) // size
        for low in range(first, last, batch_size):
            yield self._batch(range(low, min(low + batch_size, last)), image_size)

    def _batch(self, indices: range, image_size: int) -> EvalBatch:
        image_BCHW = np.empty((len(indices), 3, image_size, image_size), np.uint8)
        samples = []
        for place, i in enumerate(indices):
            try:
                sample = self.shards.read(i)
                image_BCHW[place] = eval_view(decode(sample.image, MAX_IMAGE_PIXELS), image_size)
            except BadSample as bad:
                shard, key = self.shards.locate(i)
                drop = bad.located(shard, key).drop
                raise DataError(f"{self.folder}: {drop}; a result must cover all samples, so repair the set") from bad
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


def _shard_paths(test: Path) -> list[str]:
    """test/0.tar .. test/(n - 1).tar; n from nshards.txt, or counted, in which case the numbers must have no gap."""
    numbers = sorted(int(path.stem) for path in test.glob("*.tar") if path.stem.isdecimal())
    if (test / "nshards.txt").exists():
        text = "".join(_lines(test / "nshards.txt"))
        if not text.isdecimal():
            raise DataError(f"{test / 'nshards.txt'} must hold the number of shards, got {text[:20]!r}")
        expected = int(text)
    else:
        expected = len(numbers)
        log.info("%s has no nshards.txt; found %d shards", test, expected)
    missing = sorted(set(range(expected)) - set(numbers))
    if missing or not expected:
        found = f"found {len(numbers)}, missing {', '.join(f'{number}.tar' for number in missing[:5]) or 'all'}"
        raise DataError(f"{test}: expected {expected} shards 0.tar, 1.tar, ...; {found}; copy the set again")
    return [str(test / f"{number}.tar") for number in range(expected)]


def _templates(folder: Path) -> tuple[str, ...]:
    path = folder / TEMPLATES
    templates = tuple(_lines(path)) if path.exists() else ()
    wrong = [template for template in templates if "{c}" not in template]
    if wrong or not templates:
        raise DataError(
            f"{path} {'has a template without {c}: ' + repr(wrong[0]) if wrong else 'is missing or empty'}; "
            "write one template per line with {c} for the class name, for example: a photo of a {c}."
        )
    return templates


def _lines(path: Path) -> list[str]:
    """The lines of a text file without surrounding space; blank lines at its end do not count."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").rstrip().split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from error
    return [] if lines == [""] else lines
