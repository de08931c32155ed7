"""What is random about a view: drawn first, recorded exactly, handed to the model as numbers. Layer 2; numpy only.

    views = draw_views(cfg.augment.views, 683, 512, sample_rng(seed, epoch, key))    # a ViewParams per recipe
    vector(views[0])                            # float32 [K], one number for each name in VIEW_PARAMS

``draw_views`` draws every parameter of every view, whether or not it will be used, so that switching one kind of
augmentation on, or adding a view, does not reshuffle the others. Making the view is then a pure function of the encoded
image and the parameters (``augment.py``): replaying them gives the same bytes.

The vector is what an augmentation-aware head reads (UniCLIP, arXiv 2209.13430). Nothing done to the image is all zeros,
and each number is at most about 1:

    crop                          1 if a part of the image was cut out
    top, left                     corner of the crop as a fraction of the image, before flipping
    height, width                 its sides as fractions, minus 1
    flip                          1 if mirrored
    jitter                        1 if a colour was changed
    brightness, contrast, saturation        the factor minus 1
    hue                           shift in half turns of the colour wheel
    grayscale                     1 if without colour
    blur, blur_sigma              1 if blurred; standard deviation in pixels of the view, halved
    solarise, solarise_threshold  1 if bright levels are inverted; from which fraction of white

Shapes: V views, K numbers in a vector, N random numbers that one view consumes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config import ViewConfig

VIEW_PARAMS = (
    "crop",
    "top",
    "left",
    "height",
    "width",
    "flip",
    "jitter",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "grayscale",
    "blur",
    "blur_sigma",
    "solarise",
    "solarise_threshold",
)
"""What each of the K entries of a view's vector says."""

JITTER = ("brightness", "contrast", "saturation", "hue")
"""The colour operations; ``ViewParams.jitter_order`` counts in this list."""

CROP_TRIES = 10
DRAWS = 4 * CROP_TRIES + 14
"""N: tries of a crop with 4 numbers each, 5 chances, 4 colour strengths, a blur, 4 keys that order the colours."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class ViewParams:
    """Everything that was random about one view, as it was realised. Defaults are operations left out."""

    source: tuple[int, int]
    """Width and height of the upright image in pixels, as stored (not as decoded)."""
    box: Box
    """Left, upper, right, lower of the crop in those pixels."""
    flip: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    """In turns of the colour wheel."""
    jitter_order: tuple[int, ...] = (0, 1, 2, 3)
    grayscale: bool = False
    blur_sigma: float = 0.0
    """In pixels of the view; 0 does not blur."""
    solarise: float | None = None
    """Fraction of white from which levels are inverted; None inverts nothing."""
    reduction: int = 1
    """The image is decoded at 1 / reduction of its size: 1, 2, 4, or 8; the box then lies on multiples of it."""

    @property
    def jitter(self) -> list[tuple[str, float]]:
        """The colour operations that change something, in the order in which they are applied."""
        return [(JITTER[n], value) for n in self.jitter_order if (value := getattr(self, JITTER[n])) != (n < 3)]


def draw_views(recipes: Sequence[ViewConfig], width: int, height: int, rng: np.random.Generator) -> tuple[ViewParams, ...]:
    """Draw the parameters of a view per recipe for an image of ``width`` x ``height`` pixels; always V * N numbers."""
    uniform_VN = rng.random((len(recipes), DRAWS)).tolist()
    return tuple(_draw(recipe, width, height, uniform_N) for recipe, uniform_N in zip(recipes, uniform_VN, strict=True))


def _draw(cfg: ViewConfig, width: int, height: int, uniform_N: list[float]) -> ViewParams:
    box = _draw_box(cfg, width, height, uniform_N)
    flip, jitter, gray, blur, solarise, *rest = uniform_N[4 * CROP_TRIES :]
    brightness, contrast, saturation, hue = (2 * number - 1 for number in rest[:4])
    jittered = jitter < cfg.jitter_probability
    low, high = cfg.blur_sigma
    order: tuple[int, ...] = (0, 1, 2, 3)
    if jittered and cfg.jitter_order == "random":
        order = tuple(sorted(order, key=rest[5:].__getitem__))
    return ViewParams(
        (width, height),
        box,
        flip < cfg.flip_probability,
        1 + cfg.brightness * brightness if jittered else 1.0,
        1 + cfg.contrast * contrast if jittered else 1.0,
        1 + cfg.saturation * saturation if jittered else 1.0,
        cfg.hue * hue if jittered else 0.0,
        order,
        gray < cfg.grayscale_probability,
        low + rest[4] * (high - low) if blur < cfg.blur_probability else 0.0,
        cfg.solarise_threshold if solarise < cfg.solarise_probability else None,
    )


def _draw_box(cfg: ViewConfig, width: int, height: int, uniform_N: list[float]) -> Box:
    """The first of the tries whose box fits inside; else the largest centred box of an allowed ratio."""
    log_low, log_high = math.log(cfg.crop_ratio[0]), math.log(cfg.crop_ratio[1])
    for start in range(0, 4 * CROP_TRIES, 4):
        area, shape, x, y = uniform_N[start : start + 4]
        pixels = width * height * (cfg.crop_scale[0] + area * (cfg.crop_scale[1] - cfg.crop_scale[0]))
        ratio = math.exp(log_low + shape * (log_high - log_low))
        crop_width, crop_height = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            return _box_at(int(x * (width - crop_width + 1)), int(y * (height - crop_height + 1)), crop_width, crop_height)
    ratio = min(max(width / height, cfg.crop_ratio[0]), cfg.crop_ratio[1])
    crop_width, crop_height = max(1, min(width, round(height * ratio))), max(1, min(height, round(width / ratio)))
    return _box_at((width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height)


def _box_at(left: int, upper: int, width: int, height: int) -> Box:
    return (left, upper, left + width, upper + height)


def vector(params: ViewParams) -> npt.NDArray[np.float32]:
    """The K numbers, in the order of ``VIEW_PARAMS``, that tell a model what was done; zeros for nothing."""
    (width, height), (left, upper, right, lower) = params.source, params.box
    return np.array(
        [
            params.box != (0, 0, width, height),
            upper / height,
            left / width,
            (lower - upper) / height - 1,
            (right - left) / width - 1,
            params.flip,
            bool(params.jitter),
            params.brightness - 1,
            params.contrast - 1,
            params.saturation - 1,
            2 * params.hue,
            params.grayscale,
            params.blur_sigma > 0,
            params.blur_sigma / 2,
            params.solarise is not None,
            params.solarise or 0.0,
        ],
        np.float32,
    )
