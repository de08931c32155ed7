"""From encoded bytes to the uint8 view that a model sees. Layer 2; pictures are PIL images until the last line.

    image = decode(sample.image, max_pixels=64_000_000)             # PIL, RGB, upright, transparency over white
    view = train_view(image, cfg.augment, 64, sample_rng(seed, epoch, sample.key))      # uint8 [3, 64, 64]
    pixels = normalise(batch.image_VBCHW, cfg.model.image_mean, cfg.model.image_std)     # float32, on the device

A random view is made in two halves: ``draw_view`` draws every parameter, whether or not it will be used, so that
switching one kind of augmentation on does not reshuffle the others; ``apply_view`` is then a pure function of picture
and parameters. The order is crop, flip, brightness, contrast, saturation, hue, grayscale.

``eval_view`` is pixel for pixel what open_clip's evaluation transform does (bicubic, shorter side, centre crop).

Shapes: B batch, C = 3 channels, H = W = size.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageEnhance, ImageOps

from pipeline.config import AugmentConfig
from pipeline.data.drops import BadSample

View = npt.NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Decoders that untrusted bytes may reach; PIL knows others that start external programs."""

CROP_TRIES = 10

# ``decode`` refuses by its own bound before any pixel is read; PIL's notice would only repeat that, once per process.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class ViewParams:
    """Everything that was random about one view. ``box`` is (left, upper, right, lower) in pixels of the source."""

    box: tuple[float, float, float, float]
    flip: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    grayscale: bool = False


def decode(data: bytes, max_pixels: int, at_least: int | None = None) -> Image.Image:
    """Decode to an upright RGB image: EXIF orientation applied, transparency over white, 16-bit grey scaled to 8.

    Args:
        data: the encoded file.
        max_pixels: a larger picture is refused after reading its header, before memory is taken for its pixels.
        at_least: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as both sides keep this many pixels.

    Raises:
        BadSample: cause image-empty, image-too-large, or image-undecodable.
    """
    if not data:
        raise BadSample("image-empty", "the image has 0 bytes")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            detail = f"{width} x {height} pixels, the bound is {max_pixels} (data.max_image_pixels)"
            raise BadSample("image-too-large", detail)
        if at_least is not None and image.format == "JPEG":
            image.draft(None, (at_least, at_least))
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except BadSample:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadSample("image-too-large", str(error)) from error
    except Exception as error:  # PIL's decoders raise whatever broken bytes lead to: OSError, struct.error, IndexError
        raise BadSample("image-undecodable", f"{type(error).__name__}: {error} ({len(data)} bytes)") from error


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


def draw_view(cfg: AugmentConfig, width: int, height: int, rng: np.random.Generator) -> ViewParams:
    """Draw the parameters of one view of a ``width`` x ``height`` picture; uses up as many numbers for any ``cfg``."""
    box = _draw_box(cfg, width, height, rng.random((CROP_TRIES, 4)))
    chances = (cfg.flip_probability, cfg.jitter_probability, cfg.grayscale_probability)
    flip, jitter, grayscale = (rng.random(3) < chances).tolist()
    brightness, contrast, saturation, hue = (rng.random(4) * 2 - 1).tolist()
    if not jitter:
        return ViewParams(box, flip, grayscale=grayscale)
    return ViewParams(
        box,
        flip,
        max(0.0, 1 + cfg.brightness * brightness),
        max(0.0, 1 + cfg.contrast * contrast),
        max(0.0, 1 + cfg.saturation * saturation),
        cfg.hue * hue,
        grayscale,
    )


def _draw_box(
    cfg: AugmentConfig, width: int, height: int, uniform_T4: npt.NDArray[np.float64]
) -> tuple[float, float, float, float]:
    """The first of T tries whose box fits inside; else the largest centred box of an allowed ratio."""
    log_low, log_high = math.log(cfg.crop_ratio[0]), math.log(cfg.crop_ratio[1])
    for area, shape, x, y in uniform_T4.tolist():
        pixels = width * height * (cfg.crop_scale[0] + area * (cfg.crop_scale[1] - cfg.crop_scale[0]))
        ratio = math.exp(log_low + shape * (log_high - log_low))
        crop_width, crop_height = math.sqrt(pixels * ratio), math.sqrt(pixels / ratio)
        if crop_width <= width and crop_height <= height:
            return _box_at(x * (width - crop_width), y * (height - crop_height), crop_width, crop_height)
    ratio = min(max(width / height, cfg.crop_ratio[0]), cfg.crop_ratio[1])
    crop_width, crop_height = min(width, height * ratio), min(height, width / ratio)
    return _box_at((width - crop_width) / 2, (height - crop_height) / 2, crop_width, crop_height)


def _box_at(left: float, upper: float, width: float, height: float) -> tuple[float, float, float, float]:
    return (left, upper, left + width, upper + height)


def apply_view(image: Image.Image, params: ViewParams, size: int) -> View:
    """The view of an RGB picture that ``params`` describe, uint8 ``[3, size, size]``."""
    left, upper, right, lower = params.box
    box = (left, upper, min(right, image.width), min(lower, image.height))  # rounding may lie a hair outside
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    if params.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if params.brightness != 1:
        image = ImageEnhance.Brightness(image).enhance(params.brightness)
    if params.contrast != 1:
        image = ImageEnhance.Contrast(image).enhance(params.contrast)
    if params.saturation != 1:
        image = ImageEnhance.Color(image).enhance(params.saturation)
    if params.hue:
        image = _shift_hue(image, params.hue)
    if params.grayscale:
        image = image.convert("L").convert("RGB")
    return _channels_first(image)


def _shift_hue(image: Image.Image, turns: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    shift = round(turns * 256)
    hue = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def _channels_first(image: Image.Image) -> View:
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def train_view(image: Image.Image, cfg: AugmentConfig, size: int, rng: np.random.Generator) -> View:
    """One random view of an RGB picture, uint8 ``[3, size, size]``; the same generator state gives the same bytes."""
    return apply_view(image, draw_view(cfg, image.width, image.height, rng), size)


def smallest_useful_side(cfg: AugmentConfig, size: int) -> int:
    """Shorter side, in pixels, below which a crop that ``cfg`` allows would have to be enlarged; for ``decode``."""
    narrowest = min(cfg.crop_ratio[0], 1 / cfg.crop_ratio[1], 1.0)
    return math.ceil(size / math.sqrt(cfg.crop_scale[0] * narrowest))


def eval_view(image: Image.Image, size: int) -> View:
    """The view for evaluation, uint8 ``[3, size, size]``: shorter side to ``size``, bicubic, then the centre."""
    short, long = sorted(image.size)
    if short != size:
        # Truncation of the longer side and rounding of the crop corner as torchvision does them.
        scaled = int(size * long / short)
        new_size = (size, scaled) if image.width <= image.height else (scaled, size)
        image = image.resize(new_size, Image.Resampling.BICUBIC)
    left, upper = round((image.width - size) / 2), round((image.height - size) / 2)
    return _channels_first(image.crop((left, upper, left + size, upper + size)))


def normalise(image_BCHW: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """uint8 ``[..., 3, H, W]`` to float32 ``(x / 255 - mean) / std`` per channel, on the tensor's device."""
    mean_C11 = torch.tensor(mean, dtype=torch.float32, device=image_BCHW.device).view(-1, 1, 1)
    std_C11 = torch.tensor(std, dtype=torch.float32, device=image_BCHW.device).view(-1, 1, 1)
    return (image_BCHW.float() / 255 - mean_C11) / std_C11
