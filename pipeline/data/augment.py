"""From encoded bytes to the uint8 views that a model sees. Layer 2.

    encoded = Encoded(sample.image, max_pixels=64_000_000)              # reads the header, no pixel yet
    params = draw(encoded, cfg.augment, 224, sample_rng(seed, epoch, sample.key))       # a ViewParams per recipe
    views = make_views(encoded, params, 224, cfg.augment.interpolation)     # V tensors, uint8 [1, 3, 224, 224]
    pixels = normalise(batch.image_VBCHW, cfg.model.image_mean, cfg.model.image_std)     # float32, on the device

Everything random is drawn before a pixel is decoded, from the header alone. So the decoder knows what the views need: a
JPEG is decoded once, at 1/2, 1/4 or 1/8 of its size where every crop keeps at least the pixels of its view (libjpeg has
fast transforms for these sizes only). ``make_views`` is a pure function of bytes and parameters. Crops lie on whole
pixels and are resized with antialiasing as Pillow does it, to one level; what follows is ``colour.py``.

``eval_view`` is pixel for pixel what open_clip's evaluation transform does (bicubic, shorter side, centre crop).

Shapes: V views, B batch, C = 3 channels, H = W = size.
"""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.config import AugmentConfig
from pipeline.data.colour import recolour
from pipeline.data.drops import BadSample
from pipeline.data.views import Box, ViewParams, draw_views

View = npt.NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Decoders that untrusted bytes may reach; PIL knows others that start external programs."""

ORIENTATION = 0x0112
REDUCTIONS = (8, 4, 2)

# ``Encoded`` refuses by its own bound before any pixel is read; PIL's notice would only repeat that, once per process.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Encoded:
    """An image file of which the header has been read. ``size``: upright width and height in pixels.

    Args:
        data: the encoded file.
        max_pixels: a larger picture is refused before memory is taken for its pixels.

    Raises:
        BadSample: cause image-empty, image-too-large, or image-undecodable; the methods raise the last one too.
    """

    def __init__(self, data: bytes | memoryview, max_pixels: int) -> None:
        if not data:
            raise BadSample("image-empty", "the image has 0 bytes")
        self._data = data
        try:
            self._image = self._open()
            width, height = self._image.size
            if width * height > max_pixels:
                detail = f"{width} x {height} pixels, the bound is {max_pixels} (data.max_image_pixels)"
                raise BadSample("image-too-large", detail)
            self._orientation = self._image.getexif().get(ORIENTATION, 1)  # of some formats this reads the pixels
        except BadSample:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise BadSample("image-too-large", str(error)) from error
        except Exception as error:  # PIL raises whatever broken bytes lead to: OSError, struct.error, IndexError
            raise self._undecodable(error) from error
        self.size = (height, width) if self._orientation in (5, 6, 7, 8) else (width, height)

    @property
    def reducible(self) -> bool:
        """Whether it can be decoded at 1/2, 1/4 and 1/8 of its size."""
        return self._image.format == "JPEG"

    def image(self) -> Image.Image:
        """The upright RGB picture: EXIF orientation applied, transparency over white, 16-bit grey scaled to 8."""
        return self._rgb(self._image)

    def pixels(self, reduction: int = 1) -> View:
        """The same, uint8 [ceil(height / reduction), ceil(width / reduction), 3]; more than 1 only if ``reducible``."""
        if self._image.format == "JPEG" and self._image.mode in ("RGB", "L"):
            width, height = (-(-side // reduction) for side in self._image.size)
            try:
                stored: View = simplejpeg.decode_jpeg(
                    self._data, "RGB", min_height=height, min_width=width, min_factor=reduction
                )
                return _upright(stored, self._orientation)
            except ValueError:  # it refuses what is merely odd; Pillow decodes that, and refuses what is broken
                pass
        if reduction == 1:
            return np.array(self._rgb(self._image))
        smaller = self._open()
        smaller.draft(None, (max(1, smaller.width // reduction), max(1, smaller.height // reduction)))
        return np.array(self._rgb(smaller))

    def _open(self) -> Image.Image:
        return Image.open(io.BytesIO(self._data), formats=FORMATS)

    def _rgb(self, image: Image.Image) -> Image.Image:
        try:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
        except Exception as error:
            raise self._undecodable(error) from error

    def _undecodable(self, error: Exception) -> BadSample:
        # PIL's own words for this name an address in memory, which would differ from run to run.
        reason = "no image format is known to start so" if isinstance(error, UnidentifiedImageError) else str(error)
        return BadSample("image-undecodable", f"{type(error).__name__}: {reason} ({len(self._data)} bytes)")


def decode(data: bytes | memoryview, max_pixels: int) -> Image.Image:
    """Bytes to an upright RGB picture; see ``Encoded`` for what is refused."""
    return Encoded(data, max_pixels).image()


def _upright(pixels_HWC: View, orientation: int) -> View:
    """What ``ImageOps.exif_transpose`` does for this EXIF orientation; other numbers mean nothing."""
    if orientation in (5, 6, 7, 8):
        pixels_HWC = pixels_HWC.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels_HWC = pixels_HWC[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels_HWC = pixels_HWC[::-1]
    return np.ascontiguousarray(pixels_HWC)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; convert the image to 8 bits per channel")
    if image.mode.startswith("I"):  # PIL's own conversion would clip everything above 255 to white
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        pixels = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
    return image.convert("RGB")


def draw(encoded: Encoded, cfg: AugmentConfig, size: int, rng: np.random.Generator) -> tuple[ViewParams, ...]:
    """The parameters of a random view per recipe, and at which size to decode so that none of them lacks pixels."""
    params = draw_views(cfg.views, *encoded.size, rng)
    if not (cfg.reduced_decoding and encoded.reducible):
        return params
    shortest = min(min(right - left, lower - upper) for left, upper, right, lower in (p.box for p in params))
    reduction = next((r for r in REDUCTIONS if shortest >= r * size), 1)
    return tuple(_snapped(p, reduction) for p in params)


def _snapped(params: ViewParams, reduction: int) -> ViewParams:
    """With a box that lies on whole pixels of the decoded picture; it grows by less than one of them on each side."""
    (width, height), (left, upper, right, lower) = params.source, decoded_box(params.box, reduction)
    box = (left * reduction, upper * reduction, min(right * reduction, width), min(lower * reduction, height))
    return dataclasses.replace(params, box=box, reduction=reduction)


def decoded_box(box: Box, reduction: int) -> Box:
    """``box`` in pixels of a picture that was decoded at 1 / ``reduction``."""
    left, upper, right, lower = box
    return (left // reduction, upper // reduction, -(-right // reduction), -(-lower // reduction))


def make_views(encoded: Encoded, params: Sequence[ViewParams], size: int, interpolation: str) -> list[torch.Tensor]:
    """The views that ``params`` describe, uint8 [1, 3, size, size] each. Decodes once; equal arguments give equal bytes."""
    pixels_HWC = encoded.pixels(params[0].reduction)
    return [recolour(crop(pixels_HWC, p, size, interpolation), [p]) for p in params]


def crop(pixels_HWC: View, params: ViewParams, size: int, interpolation: str) -> torch.Tensor:
    """The box of ``params`` out of the decoded picture, resized and perhaps mirrored; uint8 [1, 3, size, size]."""
    left, upper, right, lower = decoded_box(params.box, params.reduction)
    part_1CHW = torch.from_numpy(pixels_HWC[upper:lower, left:right]).permute(2, 0, 1).unsqueeze(0)
    view_1CHW = F.interpolate(part_1CHW, (size, size), mode=interpolation, antialias=True)
    return view_1CHW.flip(-1) if params.flip else view_1CHW


def eval_view(image: Image.Image, size: int) -> View:
    """The view for evaluation, uint8 ``[3, size, size]``: shorter side to ``size``, bicubic, then the centre."""
    short, long = sorted(image.size)
    if short != size:
        # Truncation of the longer side and rounding of the crop corner as torchvision does them.
        scaled = int(size * long / short)
        new_size = (size, scaled) if image.width <= image.height else (scaled, size)
        image = image.resize(new_size, Image.Resampling.BICUBIC)
    left, upper = round((image.width - size) / 2), round((image.height - size) / 2)
    centre = image.crop((left, upper, left + size, upper + size))
    return np.ascontiguousarray(np.asarray(centre, dtype=np.uint8).transpose(2, 0, 1))


def normalise(image_BCHW: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """uint8 ``[..., 3, H, W]`` to float32 ``(x / 255 - mean) / std`` per channel, on the tensor's device."""
    mean_C11 = torch.tensor(mean, dtype=torch.float32, device=image_BCHW.device).view(-1, 1, 1)
    std_C11 = torch.tensor(std, dtype=torch.float32, device=image_BCHW.device).view(-1, 1, 1)
    return image_BCHW.float().div_(255).sub_(mean_C11).div_(std_C11)
