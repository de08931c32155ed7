"""Images rewritten: turned upright, one frame, 8-bit RGB, resized, encoded again.

    data, extension = rewrite(jpeg, Transform(resize=256, format="jpeg"))

An image that already is as asked (format, size, upright, plain RGB or grey) keeps its bytes: encoding again would only
lose quality. Otherwise, in this order: the first frame of an animation; 16-bit samples scaled to 8; palette, grey, CMYK to RGB;
transparent parts over white; the EXIF orientation applied; resized; encoded without metadata. ``format="keep"`` encodes
JPEG, PNG and WebP as what they were and everything else as PNG.

A large JPEG is decoded by libjpeg-turbo at 1/2, 1/4 or 1/8, as far as that stays above the asked size, and only then resized
by Pillow: the decoder's own reduction costs less than decoding in full. What libjpeg-turbo refuses Pillow decodes, with the
same reduction (``draft``). All of it is whole-number arithmetic, so that the bytes depend on the libraries' versions and
not on the machine; the versions are part of a build's fingerprint. Colour profiles are dropped, not applied.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from data_prep.pictures import DCT_SCALES, examine, opened, to_rgb, turbo
from data_prep.settings import Transform

if TYPE_CHECKING:
    from PIL import Image

ORIENTATION = 0x0112  # EXIF tag
FORMAT_OF = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "WEBP": "webp"}
EXTENSION_OF = {"jpeg": "jpg", "webp": "webp", "png": "png"}


def rewrite(data: bytes, transform: Transform) -> tuple[bytes, str]:
    """``data`` as ``transform`` asks, and its extension. Raises BadRow when it cannot be decoded."""
    from PIL import ImageOps

    with opened(data) as image:
        assert image.format is not None, "an image read from bytes has a format"
        stored = FORMAT_OF.get(image.format)
        wanted = transform.format if transform.format != "keep" else stored or "png"
        orientation = image.getexif().get(ORIENTATION, 1)
        turned = orientation in range(2, 9)
        target = target_size(image.size, transform)
        cropped = transform.mode == "exact" and image.size != (transform.resize, transform.resize)
        if target == image.size and not turned and not cropped and stored == wanted and _is_plain(image):
            return data, examine(data).extension
        width, height = image.size
        scale = dct_scale(image.size, target) if stored == "jpeg" else 1
        pixels = _decode_jpeg(data, image, scale) if stored == "jpeg" else None
        if pixels is None:
            image.seek(0)
            pixels = to_rgb(image)
            scale = round(width / pixels.width)  # Pillow may have kept to a smaller one
        pixels = _resized(pixels, (width / scale, height / scale), target)
        if transform.mode == "exact":
            pixels = _middle(pixels, min(target))
        if turned:
            pixels.getexif()[ORIENTATION] = orientation
            pixels = ImageOps.exif_transpose(pixels)
        return _encode(pixels, wanted, transform), EXTENSION_OF[wanted]


def target_size(size: tuple[int, int], transform: Transform) -> tuple[int, int]:
    """(width, height) that an image of ``size`` is resized to, before "exact" crops it; the longer side is rounded.

    >>> target_size((640, 480), Transform(resize=240)), target_size((100, 80), Transform(resize=240))
    ((320, 240), (100, 80))
    """
    short = min(size)
    if transform.resize is None or short == transform.resize or (transform.mode == "larger" and short < transform.resize):
        return size
    width, height = (max(1, (side * transform.resize + short // 2) // short) for side in size)
    return width, height


def libraries() -> dict[str, str]:
    """Versions of everything that decides the bytes of a rewritten image."""
    import PIL
    import simplejpeg
    from PIL import features

    codecs = {name: str(features.version(name)) for name in ("libjpeg_turbo", "webp", "zlib")}
    return {"pillow": PIL.__version__, "simplejpeg": simplejpeg.__version__, **codecs}


def _is_plain(image: Image.Image) -> bool:
    """One frame of 8-bit RGB or grey, nothing transparent."""
    animated = getattr(image, "is_animated", False) and image.format != "MPO"
    return image.mode in ("RGB", "L") and "transparency" not in image.info and not animated


def _resized(pixels: Image.Image, extent: tuple[float, float], target: tuple[int, int]) -> Image.Image:
    """``pixels`` at ``target``: shrunk by averaging whole blocks as far as that goes, the rest by a filter.

    ``extent`` is how much of ``pixels`` is picture: where a reduction did not divide its size, the last row and column are
    partly padding, and stretching them too would shift the picture by a fraction of a pixel.
    """
    from PIL import Image

    blocks = _most_blocks(extent, target)
    if blocks > 1:
        pixels, extent = pixels.reduce(blocks), (extent[0] / blocks, extent[1] / blocks)
    ratios = extent[0] / target[0], extent[1] / target[1]
    if ratios == (1.0, 1.0):
        return pixels
    # A Hamming window averages in less time, but blurs where there is little to average.
    shrinks = min(ratios) >= 1.25
    return pixels.resize(target, Image.Resampling.HAMMING if shrinks else Image.Resampling.BICUBIC, box=(0, 0, *extent))


def _most_blocks(extent: tuple[float, float], target: tuple[int, int]) -> int:
    """The side of the largest blocks whose averages still are an image of ``target``, which was rounded by up to 0.5.

    >>> _most_blocks((683, 512), (342, 256)), _most_blocks((500, 400), (342, 256))
    (2, 1)
    """
    return max(1, int(min(side / (wanted - 0.5) for side, wanted in zip(extent, target, strict=True))))


def dct_scale(size: tuple[int, int], target: tuple[int, int]) -> int:
    """The largest reduction of a JPEG's decoder that leaves ``target``, which was rounded by up to 0.5.

    >>> dct_scale((1024, 768), (341, 256)), dct_scale((683, 512), (342, 256)), dct_scale((300, 300), (256, 256))
    (2, 2, 1)
    """
    blocks = _most_blocks(size, target)
    return next((scale for scale in DCT_SCALES if scale <= blocks), 1)


def _decode_jpeg(data: bytes, image: Image.Image, scale: int) -> Image.Image | None:
    """A JPEG in RGB at 1/``scale``; None when Pillow must decode it, which then knows the scale."""
    from PIL import Image

    width, height = image.size
    if image.mode in ("RGB", "L"):
        pixels = turbo(data, "RGB", width, height, scale)
        if pixels is not None:
            return Image.fromarray(pixels)
    if image.mode == "RGB":
        image.draft("RGB", (-(-width // scale), -(-height // scale)))
    return None


def _middle(pixels: Image.Image, side: int) -> Image.Image:
    left, top = (pixels.width - side) // 2, (pixels.height - side) // 2
    return pixels.crop((left, top, left + side, top + side))


def _encode(pixels: Image.Image, wanted: str, transform: Transform) -> bytes:
    import numpy as np
    import simplejpeg

    if wanted == "jpeg":
        subsampling = transform.subsampling.replace(":", "")
        encoded: bytes = simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels), transform.quality, colorspace="RGB", colorsubsampling=subsampling, fastdct=False
        )
        return encoded
    stream = io.BytesIO()
    if wanted == "webp":
        pixels.save(stream, "WEBP", quality=transform.quality, method=4)
    else:
        pixels.save(stream, "PNG", compress_level=6)
    return stream.getvalue()
