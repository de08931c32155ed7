"""Images rewritten: turned upright, one frame, 8-bit RGB, resized, encoded again.

    data, extension = rewrite(jpeg, Transform(resize=256, format="jpeg"))

An image that already is as asked (format, size, upright, plain RGB or grey) keeps its bytes: encoding again would only
lose quality. Otherwise, in this order: the first frame of an animation; 16-bit samples scaled to 8; palette, grey, CMYK to RGB;
transparent parts over white; the EXIF orientation applied; resized; encoded without metadata. ``format="keep"`` encodes
JPEG, PNG and WebP as what they were and everything else as PNG.

A large JPEG is decoded by libjpeg-turbo at 1/2, 1/4 or 1/8, as far as that stays above the asked size: the decoder's own
reduction costs less than decoding in full. What libjpeg-turbo refuses Pillow decodes, with the same reduction (``draft``).
The rest of the way is a cubic filter as wide as the reduction asks for, by fast_image_resize: the pixels of Pillow's, give or
take rounding, in a fifth of the time. All of it is whole-number arithmetic, with the same result for every set of vector
instructions, so that the bytes depend on the libraries' versions and not on the machine; the versions are part of a build's
fingerprint. Colour profiles are dropped, not applied.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from data_prep.pictures import DCT_SCALES, examine, opened, to_rgb, turbo
from data_prep.settings import Transform

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    Pixels = npt.NDArray[np.uint8]

ORIENTATION = 0x0112  # EXIF tag
FORMAT_OF = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "WEBP": "webp"}
EXTENSION_OF = {"jpeg": "jpg", "webp": "webp", "png": "png"}


def rewrite(data: bytes, transform: Transform) -> tuple[bytes, str]:
    """``data`` as ``transform`` asks, and its extension. Raises BadRow when it cannot be decoded."""
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
        scale = dct_scale(image.size, target)
        pixels_HWC = _pixels(data, image, scale if stored == "jpeg" else 1)
        pixels_HWC = _resized(pixels_HWC, target)
        if transform.mode == "exact":
            pixels_HWC = _middle(pixels_HWC, min(target))
        if turned:
            pixels_HWC = _turned(pixels_HWC, orientation)
        return _encode(pixels_HWC, wanted, transform), EXTENSION_OF[wanted]


def target_size(size: tuple[int, int], transform: Transform) -> tuple[int, int]:
    """(width, height) that an image of ``size`` is resized to, before "exact" crops it; the longer side is rounded down.

    Down, so that 683 x 512 at half size is 341 x 256 whole pixels, which a JPEG's decoder makes by itself.

    >>> target_size((640, 480), Transform(resize=240)), target_size((100, 80), Transform(resize=240))
    ((320, 240), (100, 80))
    """
    short = min(size)
    if transform.resize is None or short == transform.resize or (transform.mode == "larger" and short < transform.resize):
        return size
    width, height = (side * transform.resize // short for side in size)
    return width, height


def libraries() -> dict[str, str]:
    """Versions of everything that decides the bytes of a rewritten image."""
    from importlib.metadata import version

    from PIL import features

    codecs = {name: str(features.version(name)) for name in ("libjpeg_turbo", "webp", "zlib")}
    return {name: version(name) for name in ("pillow", "simplejpeg", "cykooz_resizer")} | codecs


def _is_plain(image: Image.Image) -> bool:
    """One frame of 8-bit RGB or grey, nothing transparent."""
    animated = getattr(image, "is_animated", False) and image.format != "MPO"
    return image.mode in ("RGB", "L") and "transparency" not in image.info and not animated


def dct_scale(size: tuple[int, int], target: tuple[int, int]) -> int:
    """The largest reduction of a JPEG's decoder that leaves ``target`` in whole pixels.

    >>> dct_scale((1024, 768), (341, 256)), dct_scale((683, 512), (341, 256)), dct_scale((300, 300), (256, 256))
    (2, 2, 1)
    """
    return next((n for n in DCT_SCALES if all(side // n >= wanted for side, wanted in zip(size, target, strict=True))), 1)


def _pixels(data: bytes, image: Image.Image, scale: int) -> Pixels:
    """The image at 1/``scale`` in RGB ``[H, W, 3]``; what does not fill a whole pixel at its right and lower edge is left out.

    A reduced edge pixel is partly the decoder's padding, and stretching it like the others would shift the picture.
    """
    import numpy as np

    width, height = image.size
    pixels_HWC = None
    if FORMAT_OF.get(image.format or "") == "jpeg" and image.mode in ("RGB", "L"):
        pixels_HWC = turbo(data, "RGB", width, height, scale)
    if pixels_HWC is None:
        if scale > 1 and image.mode == "RGB":
            image.draft("RGB", (-(-width // scale), -(-height // scale)))
        image.seek(0)
        pixels_HWC = np.asarray(to_rgb(image))
        scale = round(width / pixels_HWC.shape[1])  # Pillow may have kept to a smaller one
    return pixels_HWC[: height // scale, : width // scale]


def _resized(pixels_HWC: Pixels, target: tuple[int, int]) -> Pixels:
    """``pixels_HWC`` at ``target`` (width, height)."""
    import numpy as np
    from cykooz_resizer import FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer

    height, width, _ = pixels_HWC.shape
    if (width, height) == target:
        return pixels_HWC
    source = ImageData(width, height, PixelType.U8x3, pixels_HWC.tobytes())
    result = ImageData(*target, PixelType.U8x3)
    cubic = ResizeOptions(ResizeAlg.convolution(FilterType.catmull_rom), use_alpha=False)
    Resizer().resize(source, result, cubic)
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(target[1], target[0], 3)


def _middle(pixels_HWC: Pixels, side: int) -> Pixels:
    height, width, _ = pixels_HWC.shape
    left, top = (width - side) // 2, (height - side) // 2
    return pixels_HWC[top : top + side, left : left + side]


def _turned(pixels_HWC: Pixels, orientation: int) -> Pixels:
    """The picture as its EXIF orientation asks: 5 to 8 exchange rows and columns, then either direction may be mirrored.

    >>> import numpy as np
    >>> [_turned(np.array([[[1], [2]]]), orientation).tolist() for orientation in (3, 6)]
    [[[[2], [1]]], [[[1]], [[2]]]]
    """
    if orientation >= 5:
        pixels_HWC = pixels_HWC.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels_HWC = pixels_HWC[::-1]
    if orientation in (2, 3, 6, 7):
        pixels_HWC = pixels_HWC[:, ::-1]
    return pixels_HWC


def _encode(pixels_HWC: Pixels, wanted: str, transform: Transform) -> bytes:
    import numpy as np
    import simplejpeg
    from PIL import Image

    pixels_HWC = np.ascontiguousarray(pixels_HWC)
    if wanted == "jpeg":
        subsampling = transform.subsampling.replace(":", "")
        encoded: bytes = simplejpeg.encode_jpeg(
            pixels_HWC, transform.quality, colorspace="RGB", colorsubsampling=subsampling, fastdct=False
        )
        return encoded
    stream, picture = io.BytesIO(), Image.fromarray(pixels_HWC)
    if wanted == "webp":
        picture.save(stream, "WEBP", quality=transform.quality, method=4)
    else:
        picture.save(stream, "PNG", compress_level=6)
    return stream.getvalue()
