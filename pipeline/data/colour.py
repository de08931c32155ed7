"""What is done to the levels of a view: colour jitter, grayscale, blur, solarise. One code for any device. Layer 2.

    recolour(image_NCHW, [params_of_view_0, ...])         # uint8 [N, 3, H, W] in and out

Each operation is torchvision's (``transforms.functional``) on floating-point images, within rounding; levels are rounded
to uint8 once, after the last one. A worker calls this for the views of one sample, the training device for those of a
whole batch: the same operations on the same numbers, so that both agree to one level. An operation touches only the
views that have it.

Shapes: N views, C = 3 channels, H x W pixels. Levels are float32 in [0, 255] between the operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.views import JITTER, ViewParams

LUMA = (0.299, 0.587, 0.114)
"""Red, green and blue in grey (ITU-R BT.601)."""

BLUR_REACH = 4
"""Standard deviations after which the Gaussian is cut off: 0.006 % of its weight, 0.02 levels at most."""


def recolour(image_NCHW: Tensor, params: Sequence[ViewParams]) -> Tensor:
    """Apply what ``params`` say about colours to each of N uint8 views, in the order jitter, grayscale, blur, solarise."""
    touched = [n for n, p in enumerate(params) if p.jitter or p.grayscale or p.blur_sigma or p.solarise is not None]
    if not touched:
        return image_NCHW
    picked = [params[n] for n in touched]
    some = image_NCHW if len(touched) == len(params) else image_NCHW[_index(touched, image_NCHW)]
    level_NCHW = some.to(torch.float32, memory_format=torch.contiguous_format)
    for place in range(len(JITTER)):
        done = [p.jitter_order[place] for p in picked]
        for number, (name, neutral) in enumerate(zip(JITTER, (1.0, 1.0, 1.0, 0.0), strict=True)):
            strengths = {n: getattr(p, name) for n, p in enumerate(picked) if done[n] == number and getattr(p, name) != neutral}
            level_NCHW = _where(level_NCHW, _OPERATIONS[name], strengths)
    level_NCHW = _where(level_NCHW, _grayscale, {n: 0.0 for n, p in enumerate(picked) if p.grayscale})
    widest = max(p.blur_sigma for p in picked)
    blurred = {n: p.blur_sigma for n, p in enumerate(picked) if p.blur_sigma}
    level_NCHW = _where(level_NCHW, lambda some, sigma_N111: blur(some, sigma_N111, widest), blurred)
    level_NCHW = _where(level_NCHW, _solarise, {n: p.solarise for n, p in enumerate(picked) if p.solarise is not None})
    new_NCHW = level_NCHW.round_().to(torch.uint8)
    if len(touched) == len(params):
        return new_NCHW
    return image_NCHW.index_copy(0, _index(touched, image_NCHW), new_NCHW)


def _index(numbers: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=like.device)


def _where(level_NCHW: Tensor, operation: Callable[[Tensor, Tensor], Tensor], strengths: dict[int, float]) -> Tensor:
    """``operation`` on the views that ``strengths`` names; its second argument is their strength, [n, 1, 1, 1]."""
    if not strengths:
        return level_NCHW
    strength_N111 = torch.tensor([*strengths.values()], dtype=torch.float32, device=level_NCHW.device).view(-1, 1, 1, 1)
    if len(strengths) == len(level_NCHW):
        return operation(level_NCHW, strength_N111)
    index = _index([*strengths], level_NCHW)
    return level_NCHW.index_copy(0, index, operation(level_NCHW[index], strength_N111))


def grey(level_NCHW: Tensor) -> Tensor:
    """Levels of grey, [N, 1, H, W]."""
    red, green, blue = level_NCHW.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).unsqueeze(1)


def _brightness(level_NCHW: Tensor, factor_N111: Tensor) -> Tensor:
    return (level_NCHW * factor_N111).clamp_(0, 255)


def _contrast(level_NCHW: Tensor, factor_N111: Tensor) -> Tensor:
    mean_N111 = grey(level_NCHW).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean_N111, level_NCHW, factor_N111).clamp_(0, 255)


def _saturation(level_NCHW: Tensor, factor_N111: Tensor) -> Tensor:
    return torch.lerp(grey(level_NCHW), level_NCHW, factor_N111).clamp_(0, 255)


def _hue(level_NCHW: Tensor, turns_N111: Tensor) -> Tensor:
    """Turn the hue of the HSV model: the largest and the smallest channel keep their levels, the others move between."""
    red, green, blue = level_NCHW.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - torch.minimum(torch.minimum(red, green), blue)
    divisor = chroma.clamp_min(1e-6)  # a grey pixel has no hue, and chroma 0 keeps it grey whatever comes out here
    warm = torch.where(high == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    sixths = torch.where(high == red, (green - blue) / divisor, warm).add_(6 * turns_N111[:, 0])
    turned = torch.empty_like(level_NCHW)
    for channel, offset in enumerate((5, 3, 1)):
        wave = sixths + offset
        wave.sub_(torch.floor(wave / 6), alpha=6)
        wave = torch.minimum(wave, 4 - wave).clamp_(0, 1)
        turned[:, channel] = high.addcmul(chroma, wave, value=-1)
    return turned


def _grayscale(level_NCHW: Tensor, _: Tensor) -> Tensor:
    return grey(level_NCHW).expand_as(level_NCHW).contiguous()


def _solarise(level_NCHW: Tensor, threshold_N111: Tensor) -> Tensor:
    return torch.where(level_NCHW >= 255 * threshold_N111, 255 - level_NCHW, level_NCHW)


def blur(level_NCHW: Tensor, sigma_N111: Tensor, widest: float) -> Tensor:
    """Gaussian blur of each view with its own standard deviation in pixels, mirrored at the edges without repeating them.

    ``widest`` is at least the largest of them; told apart, because looking it up would wait for the device.
    """
    size = min(level_NCHW.shape[-2:])
    reach = min(math.ceil(BLUR_REACH * widest), size - 1)
    offset_T = torch.arange(-reach, reach + 1, device=level_NCHW.device)
    inside_NT = offset_T.abs() <= torch.ceil(BLUR_REACH * sigma_N111.view(-1, 1))
    # In fp64 and per view, so that the weights do not depend on which views share a batch.
    weight_NT = torch.exp(-0.5 * (offset_T / sigma_N111.double().view(-1, 1)) ** 2) * inside_NT
    weight_TN111 = (weight_NT / weight_NT.sum(1, keepdim=True)).float().T.reshape(len(offset_T), -1, 1, 1, 1)
    padded = F.pad(level_NCHW, (reach, reach, reach, reach), mode="reflect")
    return _weighted_sum(_weighted_sum(padded, weight_TN111, 3), weight_TN111, 2)


def _weighted_sum(level: Tensor, weight_TN111: Tensor, dim: int) -> Tensor:
    """Sum over T neighbours along ``dim``, which becomes T - 1 shorter."""
    length = level.shape[dim] - len(weight_TN111) + 1
    total = level.narrow(dim, 0, length) * weight_TN111[0]
    for tap in range(1, len(weight_TN111)):
        total.addcmul_(level.narrow(dim, tap, length), weight_TN111[tap])
    return total


_OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "hue": _hue,
}
