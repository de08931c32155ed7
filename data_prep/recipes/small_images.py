"""What the recipes of small labelled image sets share: encoding, captions, the CLIP_benchmark layout of their test part.

    source("mnist", ["zero", ...], {"train": ..., "test": ...}, TEMPLATES, options, credits)

The training part has captions (the class name, and sentences with it) and one group per class, so that two images of a
class are never negatives; the test part, ``eval``, has class numbers, names and templates.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from data_prep.files import write_text
from data_prep.recipes.store import Store, stored
from data_prep.rows import EvalTexts, Row, Source
from pipeline.errors import DataError

if TYPE_CHECKING:
    from data_prep.recipes import Options

Pixels = npt.NDArray[np.uint8]
Part = Callable[[], Iterable[tuple[Pixels, int]]]
"""Images [H, W] or [H, W, 3] with their class numbers, in the order of the set."""

EVAL_SPLIT = "eval"


def source(
    name: str,
    classnames: Sequence[str],
    parts: Mapping[str, Part],
    templates: Sequence[str],
    options: Options,
    credit: str,
) -> Source:
    """Rows of ``train`` and ``test``, the latter as the test set ``eval``. Pictures are stored as PNG, losslessly."""
    labels: dict[str, list[int]] = {}
    stores: dict[str, Store] = {}
    limited = "" if options.limit is None else f"-first{options.limit}"
    for part, images in parts.items():
        path = options.cache / f"made-{name}-{part}{limited}.tar"
        stores[part] = stored(path, partial(_encoded, images, options.limit), options.cache_bytes)
        labels[part] = [int(file.split("-")[1].removesuffix(".png")) for file in stores[part].places]
        if labels[part] and max(labels[part]) >= len(classnames):
            raise DataError(f"{name} has a class {max(labels[part])}, there are {len(classnames)} names")
    credits = options.cache / f"CREDITS-{name}.md"
    write_text(credits, credit)
    texts = EvalTexts(tuple(classnames), tuple(templates))
    return Source(
        name,
        partial(_rows, name, stores, list(classnames), list(templates)),
        {EVAL_SPLIT: texts} if "test" in parts else {},
        companions=(str(credits),),
    )


def _encoded(images: Part, limit: int | None) -> Iterator[tuple[str, bytes]]:
    """(file name with number and class, PNG) of each image."""
    for number, (pixels, label) in enumerate(images()):
        if limit is not None and number >= limit:
            return
        yield f"{number:06d}-{label}.png", png(pixels)


def png(pixels: Pixels) -> bytes:
    """A PNG of grey [H, W] or colour [H, W, 3] pixels; its bytes depend on the pixels, Pillow and zlib."""
    from PIL import Image

    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG", compress_level=9, compress_type=zlib.Z_DEFAULT_STRATEGY)
    return encoded.getvalue()


def _rows(name: str, stores: Mapping[str, Store], classnames: list[str], templates: list[str]) -> Iterator[Row]:
    number = 0
    for part, store in stores.items():
        for file in store.places:
            place, label = file.removesuffix(".png").split("-")
            text = classnames[int(label)]
            sentences = tuple(template.replace("{c}", text) for template in templates)
            is_train = part == "train"
            yield Row(
                number,
                image=store.url(file),
                captions=tuple(dict.fromkeys((text, *sentences))) if is_train else (text,),
                key=f"{name}-{part}-{place}",
                split="train" if is_train else EVAL_SPLIT,
                label=int(label),
                meta={"group": f"{name}:{text}"},
            )
            number += 1


def idx(data: bytes) -> Pixels:
    """The array of an idx file (MNIST's format): two zero bytes, 8 for uint8, the number of axes, their lengths, values.

    Raises DataError when it is none, or its lengths do not fit its bytes.
    """
    axes = data[3] if len(data) > 4 and data[:3] == b"\0\0\x08" and data[3] in (1, 3) else 0  # labels, or images
    shape = tuple(int.from_bytes(data[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes))
    values = np.frombuffer(data, np.uint8, offset=min(len(data), 4 + 4 * axes))
    if not axes or math.prod(shape) != len(values):
        raise DataError(f"this is no idx file of bytes: it begins {data[:8]!r} and has {len(data):,} bytes for shape {shape}")
    return values.reshape(shape)
