"""An image's bytes by path or URL, and whether they are a picture.

    data = fetch("zip://cat.png::/data/pictures.zip")
    extension(data)                                      # "png": what the bytes are, whatever the name said

Every way to fail is a ``BadRow`` with one of the causes image-missing, read-failed, image-empty, sample-too-large,
image-too-large, image-undecodable.
"""

from __future__ import annotations

import io
import warnings
from functools import lru_cache
from typing import Any

from data_prep.rows import BadRow
from pipeline.data.samples import MAX_MEMBER_BYTES

MAX_PIXELS = 64_000_000
# Pillow's format name -> extension. MPO is what phones write: a JPEG with further pictures behind it.
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}


def fetch(image: str) -> bytes:
    """The bytes of an image at a local path or any fsspec URL. Raises BadRow when there are none, or too many."""
    try:
        data = _read(image, MAX_MEMBER_BYTES + 1)
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
    """The extension that fits the bytes, after decoding every pixel.

    Raises BadRow when they are no picture, are cut, or describe more than ``MAX_PIXELS`` (found out before decoding).
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images; the bound below is lower than Pillow's
            with Image.open(io.BytesIO(data)) as image:
                kind, (width, height) = image.format, image.size
                if width * height > MAX_PIXELS:
                    raise BadRow("image-too-large", f"{width} x {height} pixels, at most {MAX_PIXELS:,} are read")
                if kind not in EXTENSIONS:
                    raise BadRow("image-undecodable", f"format {kind}; known are {', '.join(EXTENSIONS)}")
                image.load()
    except BadRow:
        raise
    except Image.DecompressionBombError as error:
        raise BadRow("image-too-large", str(error)) from error
    except Exception as error:  # a damaged file raises whatever its decoder stumbles over
        raise BadRow("image-undecodable", f"{type(error).__name__}: {error}; begins {data[:8]!r}") from error
    return EXTENSIONS[kind]


def _read(image: str, limit: int) -> bytes:
    """At most ``limit`` bytes. Members of one archive share one open archive: each would read its directory again."""
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


@lru_cache(maxsize=16)
def _archive(protocol: str, archive: str) -> Any:
    import fsspec

    return fsspec.core.url_to_fs(f"{protocol}://::{archive}")[0]
