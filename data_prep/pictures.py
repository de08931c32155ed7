"""An image's bytes by path or URL, and whether they are a picture.

    data = fetch("zip://cat.png::/data/pictures.zip")
    picture = examine(data)
    picture.extension, picture.width, picture.height     # "png", 640, 480: what the bytes are, whatever the name said

Every pixel is decoded once, so that damage is found now and not in training. A JPEG is decoded by libjpeg-turbo at an
eighth of its size, which reads all of its compressed data and skips most of the arithmetic; what that refuses or warns
about, and every other format, goes to Pillow, whose verdict counts.

Every way to fail is a ``BadRow`` with one of the causes image-missing, read-failed, image-empty, sample-too-large,
image-too-large, image-undecodable.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from data_prep.patience import patiently
from data_prep.rows import BadRow
from pipeline.data.samples import MAX_MEMBER_BYTES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

MAX_PIXELS = 64_000_000
# Pillow's format name -> extension. MPO is what phones write: a JPEG with further pictures behind it.
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
DCT_SCALES = (8, 4, 2)
"""The reductions that libjpeg-turbo computes with vector instructions; those between are slower than none at all."""

GREY_SIDE = 64
"""Pixels that a reduced grey picture keeps in either direction: with fewer, copies of other sizes hash differently."""

SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")
RANGE = "range://"
"""``range://OFFSET-SIZE::PATH``: bytes of a file, here of a tar; PATH may be any URL."""


@dataclass(frozen=True)
class Picture:
    """What ``examine`` found out. ``width`` and ``height`` are as stored, before an EXIF orientation turns them."""

    extension: str
    width: int  # pixels
    height: int
    grey_HW: npt.NDArray[np.uint8] | None  # the picture in grey, perhaps reduced; only when asked for


def fetch(image: str) -> bytes:
    """The bytes of an image at a local path or any fsspec URL. Raises BadRow when there are none, or too many."""
    try:
        remote = "://" in image.partition("::")[2] if image.startswith(RANGE) else "://" in image
        read = partial(_read, image, MAX_MEMBER_BYTES + 1)
        data = patiently(read) if remote else read()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, KeyError) as error:
        raise BadRow("image-missing", f"{image}: {type(error).__name__}") from error
    except Exception as error:  # each remote file system has exceptions of its own, most of them no OSError
        raise BadRow("read-failed", f"{image}: {type(error).__name__}: {error}") from error
    if not data:
        raise BadRow("image-empty", f"{image} has 0 bytes")
    if len(data) > MAX_MEMBER_BYTES:
        raise BadRow("sample-too-large", f"{image} has more than {MAX_MEMBER_BYTES:,} bytes")
    return data


def extension(data: bytes) -> str:
    """The extension that fits the bytes, after decoding every pixel. Raises BadRow as ``examine`` does."""
    return examine(data).extension


def examine(data: bytes, *, want_grey: bool = False) -> Picture:
    """Decode every pixel and say what the bytes are.

    Raises BadRow when they are no picture, are cut, or describe more than ``MAX_PIXELS`` (found out before decoding).
    """
    with opened(data) as image:
        assert image.format is not None, "an image read from bytes has a format"
        kind, (width, height) = image.format, image.size
        grey = _turbo_grey(data, width, height) if kind in ("JPEG", "MPO") else None
        if grey is None:
            image.load()
            grey = _grey(image) if want_grey else None
    return Picture(EXTENSIONS[kind], width, height, grey if want_grey else None)


def stored_size(data: bytes) -> tuple[int, int]:
    """(width, height) from the header alone. Raises BadRow as ``examine`` does, as far as a header tells."""
    with opened(data) as image:
        return image.size


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """Pillow's image of ``data``, its header read and its size within bounds; decoding inside the block is covered too.

    Raises BadRow with cause image-too-large or image-undecodable.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images; the bound below is lower than Pillow's
            with Image.open(io.BytesIO(data)) as image:
                (width, height) = image.size
                if width * height > MAX_PIXELS:
                    raise BadRow("image-too-large", f"{width} x {height} pixels, at most {MAX_PIXELS:,} are read")
                if image.format not in EXTENSIONS:
                    raise BadRow("image-undecodable", f"format {image.format}; known are {', '.join(EXTENSIONS)}")
                yield image
    except BadRow:
        raise
    except Image.DecompressionBombError as error:
        raise BadRow("image-too-large", str(error)) from error
    except Exception as error:  # a damaged file raises whatever its decoder stumbles over
        said = re.sub(r" at 0x[0-9a-f]+", "", str(error))  # where an object lay in memory differs from run to run
        raise BadRow("image-undecodable", f"{type(error).__name__}: {said}; begins {data[:8]!r}") from error


def turbo(data: bytes, colours: str, width: int, height: int, scale: int) -> npt.NDArray[np.uint8] | None:
    """A JPEG of ``width`` x ``height`` decoded at 1/``scale``, which must be 1 or of ``DCT_SCALES``; None when refused.

    ``colours``: "RGB" or "GRAY" (one channel). libjpeg-turbo's exact transform: its fast one is a little off.
    """
    import simplejpeg

    least = {"min_width": -(-width // scale), "min_height": -(-height // scale), "min_factor": scale} if scale > 1 else {}
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colours, strict=True, **least)
    except ValueError:  # damaged, or of a kind that libjpeg-turbo's plain interface does not take
        return None
    return pixels


def to_rgb(image: Image.Image) -> Image.Image:
    """The current frame as 8-bit RGB: 16-bit scaled, transparent parts over white."""
    import numpy as np
    from PIL import Image

    image.load()
    if image.mode in SIXTEEN_BIT:
        # Pillow's own conversion clips at 255 instead of scaling. "I" holds what a 16-bit PNG had on older versions.
        return Image.fromarray((np.asarray(image.convert("I")).clip(0, 65_535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return image.convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _turbo_grey(data: bytes, width: int, height: int) -> npt.NDArray[np.uint8] | None:
    scale = next((scale for scale in DCT_SCALES if min(width, height) >= GREY_SIDE * scale), 1)
    pixels = turbo(data, "GRAY", width, height, scale)
    return None if pixels is None else pixels[:, :, 0]


def _grey(image: Image.Image) -> npt.NDArray[np.uint8]:
    """A loaded image in grey, transparent parts white."""
    import numpy as np

    return np.asarray(to_rgb(image).convert("L"))


def _read(image: str, limit: int) -> bytes:
    """At most ``limit`` bytes. Members of one archive share one open archive: each would read its directory again."""
    if image.startswith(RANGE):
        return _read_range(image)
    if "://" not in image:
        with open(image, "rb") as local:
            return local.read(limit)
    member, chain, archive = image.partition("::")
    if chain:
        protocol, _, path = member.partition("://")
        system = _archive(protocol, archive)
    else:
        import fsspec

        system, path = fsspec.core.url_to_fs(image)
    with system.open(path, "rb") as remote:
        data = remote.read(limit)
    assert isinstance(data, bytes), f"{image} was opened as text"
    return data


def _read_range(image: str) -> bytes:
    """The bytes that a ``range://`` names. Raises OSError when the file ends before them."""
    numbers, _, path = image.removeprefix(RANGE).partition("::")
    offset, size = map(int, numbers.split("-"))
    if "://" in path:
        import fsspec

        system, inner = fsspec.core.url_to_fs(path)
        data: bytes = system.cat_file(inner, start=offset, end=offset + size)
    else:
        with open(path, "rb") as local:
            data = os.pread(local.fileno(), size, offset)
    if len(data) < size:
        raise OSError(f"only {len(data):,} of {size:,} bytes at byte {offset:,}")
    return data


@lru_cache(maxsize=16)
def _archive(protocol: str, archive: str) -> Any:
    import fsspec

    return fsspec.core.url_to_fs(f"{protocol}://::{archive}")[0]
