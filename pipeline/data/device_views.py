"""All views of a batch in one pass on the training device, equal to those that workers make. Layer 2.

    pack = Canvases.pack(canvases, params_BV, size=224, interpolation="bicubic")      # in a worker
    image_VBCHW = make_views(pack.to(device))                                          # uint8, on the device

A worker only decodes, and sends the part of each picture that its views show: one canvas per sample, of its own size. On
the device a crop and its resizing are two matrix products, one over columns and one over rows, with a matrix per view
that holds the resampling filter's weights. Flipping is the same matrix with its rows reversed. The weights are the 16-bit
integers that torch's uint8 resize uses on the CPU, and the products are split so that fp32 adds them up without rounding:
the crops are equal bit for bit. Colours follow as in ``colour.py``; there the result may differ by one level.

Shapes: V views, B samples, n samples handled at once, C = 3 channels, H x W canvas, S size of a view.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.data.augment import View, decoded_box
from pipeline.data.colour import recolour
from pipeline.data.views import Box, ViewParams

CHUNK_BYTES = 256_000_000
"""Canvases in fp32 that are unpacked at once."""

MAX_PRECISION = 22
SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
"""Half the width of each filter, in pixels of the larger of input and output."""


Canvas = tuple[View, int, int]
"""Decoded pixels, and where their left upper corner lies in the decoded picture."""


@dataclass(frozen=True)
class Canvases:
    """Decoded pixels of B samples, one after another, and the views to be made of them."""

    pixel_N: Tensor
    """uint8; sample b is [height, width, 3] from ``start[b]`` on."""
    start: tuple[int, ...]
    shape: tuple[tuple[int, int], ...]
    boxes_BV: tuple[tuple[Box, ...], ...]
    """Crops in pixels of each canvas."""
    params_BV: tuple[tuple[ViewParams, ...], ...]
    size: int
    interpolation: str

    @staticmethod
    def pack(
        canvases: Sequence[Canvas], params_BV: Sequence[tuple[ViewParams, ...]], size: int, interpolation: str
    ) -> Canvases:
        """Lay canvases, as ``cut`` gives them, end to end."""
        lengths = [pixels_HWC.size for pixels_HWC, _, _ in canvases]
        boxes_BV = tuple(
            tuple(_moved(decoded_box(p.box, p.reduction), left, upper) for p in params_V)
            for (_, left, upper), params_V in zip(canvases, params_BV, strict=True)
        )
        return Canvases(
            torch.from_numpy(np.concatenate([pixels_HWC.ravel() for pixels_HWC, _, _ in canvases])),
            tuple(int(end) for end in np.cumsum([0, *lengths[:-1]])),
            tuple((pixels_HWC.shape[0], pixels_HWC.shape[1]) for pixels_HWC, _, _ in canvases),
            boxes_BV,
            tuple(params_BV),
            size,
            interpolation,
        )

    def to(self, device: torch.device) -> Canvases:
        """The same with its pixels on ``device``."""
        return dataclasses.replace(self, pixel_N=self.pixel_N.to(device, non_blocking=True))

    def pin_memory(self) -> Canvases:
        """The same with its pixels in page-locked memory."""
        return dataclasses.replace(self, pixel_N=self.pixel_N.pin_memory())


def cut(pixels_HWC: View, params_V: Sequence[ViewParams]) -> Canvas:
    """The smallest part of a decoded picture that holds all its views' crops, and its left upper corner."""
    boxes = np.array([decoded_box(p.box, p.reduction) for p in params_V])
    left, upper = (int(edge) for edge in boxes[:, :2].min(axis=0))
    right, lower = (int(edge) for edge in boxes[:, 2:].max(axis=0))
    return pixels_HWC[upper:lower, left:right], left, upper


def _moved(box: Box, left: int, upper: int) -> Box:
    return (box[0] - left, box[1] - upper, box[2] - left, box[3] - upper)


def make_views(canvases: Canvases) -> Tensor:
    """Every view of every sample, uint8 [V, B, 3, S, S], on the device where the canvases are."""
    num_views = len(canvases.params_BV[0])
    size, device = canvases.size, canvases.pixel_N.device
    image_VBCHW = torch.empty((num_views, len(canvases.shape), 3, size, size), dtype=torch.uint8, device=device)
    for first, last in _chunks(canvases):
        canvas_nCHW = _unpacked(canvases, first, last)
        for view in range(num_views):
            params = [params_V[view] for params_V in canvases.params_BV[first:last]]
            boxes = [boxes_V[view] for boxes_V in canvases.boxes_BV[first:last]]
            flips = [p.flip for p in params]
            cropped = resized(canvas_nCHW, boxes, flips, size, canvases.interpolation)
            image_VBCHW[view, first:last] = recolour(cropped, params)
    return image_VBCHW


def _chunks(canvases: Canvases) -> Iterator[tuple[int, int]]:
    height, width = (max(sides) for sides in zip(*canvases.shape, strict=True))
    step = max(1, CHUNK_BYTES // (12 * height * width))
    for first in range(0, len(canvases.shape), step):
        yield first, min(first + step, len(canvases.shape))


def _unpacked(canvases: Canvases, first: int, last: int) -> Tensor:
    """Canvases ``first`` to ``last``, fp32 [n, 3, H, W]; what lies beyond a smaller one is arbitrary, and weighs nothing."""
    device = canvases.pixel_N.device
    height, width = (max(sides) for sides in zip(*canvases.shape[first:last], strict=True))
    start_n11 = torch.tensor(canvases.start[first:last], device=device).view(-1, 1, 1)
    width_n11 = torch.tensor([shape[1] for shape in canvases.shape[first:last]], device=device).view(-1, 1, 1)
    row_H1, column_W = torch.arange(height, device=device).view(-1, 1), torch.arange(width, device=device)
    place_nHW = start_n11 + 3 * (row_H1 * width_n11 + column_W)
    place_nHW = place_nHW.clamp_(max=canvases.pixel_N.numel() - 3)
    return torch.stack([canvases.pixel_N[place_nHW + channel].float() for channel in range(3)], dim=1)


def resized(canvas_nCHW: Tensor, boxes: Sequence[Box], flips: Sequence[bool], size: int, interpolation: str) -> Tensor:
    """A box of each canvas, resized with antialiasing to uint8 [n, 3, size, size], mirrored where ``flips`` says so."""
    device = canvas_nCHW.device
    left, upper, right, lower = torch.tensor(boxes, dtype=torch.float64, device=device).unbind(1)
    across_nSW, across_bits = weights(left, right, canvas_nCHW.shape[3], size, interpolation)
    down_nSH, down_bits = weights(upper, lower, canvas_nCHW.shape[2], size, interpolation)
    flip_n11 = torch.tensor(flips, device=device).view(-1, 1, 1)
    across_nSW = torch.where(flip_n11, across_nSW.flip(1), across_nSW)
    columns_nCHS = _product(canvas_nCHW, across_nSW, across_bits)
    return _product(columns_nCHS.transpose(2, 3), down_nSH, down_bits).transpose(2, 3).to(torch.uint8)


def weights(low_n: Tensor, high_n: Tensor, length: int, size: int, interpolation: str) -> tuple[Tensor, Tensor]:
    """The filter that maps pixels [low, high) of a line of ``length`` to ``size`` pixels, in 16-bit integers as torch's.

    Returns:
        Integer weights [n, S, length], and the power of two [n] that they sum to (nearly) in each row.
    """
    scale_n11 = ((high_n - low_n) / size).view(-1, 1, 1)
    place_n1L = torch.arange(length, dtype=torch.float64, device=low_n.device) - low_n.view(-1, 1, 1)
    centre_nS1 = scale_n11 * (torch.arange(size, dtype=torch.float64, device=low_n.device) + 0.5).view(1, -1, 1)
    distance_nSL = ((place_n1L - centre_nS1 + 0.5) / scale_n11.clamp_min(1)).abs()
    inside_n1L = (place_n1L >= 0) & (place_n1L < (high_n - low_n).view(-1, 1, 1))
    weight_nSL = _filter(distance_nSL, interpolation) * inside_n1L
    weight_nSL = weight_nSL / weight_nSL.sum(dim=2, keepdim=True)
    bits_n = _bits(weight_nSL.amax(dim=(1, 2)))
    scaled_nSL = weight_nSL * 2.0 ** bits_n.view(-1, 1, 1)
    return torch.trunc(scaled_nSL + torch.where(scaled_nSL < 0, -0.5, 0.5)), bits_n


def _filter(distance: Tensor, interpolation: str) -> Tensor:
    """Triangle, or Keys' cubic with a = -1/2, at these distances from the centre."""
    if interpolation == "bilinear":
        return (1 - distance).clamp_min(0)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < SUPPORT[interpolation], far, 0.0))


def _bits(largest_n: Tensor) -> Tensor:
    """The most bits with which the largest weight still fits into 16 bits with its sign; int64 [n]."""
    bits_n = torch.full_like(largest_n, MAX_PRECISION, dtype=torch.int64)
    for bits in range(MAX_PRECISION - 1, -1, -1):
        bits_n = torch.where(torch.trunc(0.5 + largest_n * 2.0 ** (bits + 1)) >= 2**15, bits, bits_n)
    return bits_n


def _product(level_nCKL: Tensor, weight_nSL: Tensor, bits_n: Tensor) -> Tensor:
    """Weighted sums of levels along L in whole numbers, rounded to levels; fp32 [n, C, K, S].

    The weights' upper and lower halves are multiplied apart: every sum is then a whole number below 2^24, which fp32 holds (for
    crops up to 64 times as wide as the view). All factors have 8 bits, so that TF32 multiplies them exactly too.
    """
    upper_nSL = torch.floor(weight_nSL / 256)
    halves_nTL = torch.cat([upper_nSL, weight_nSL - 256 * upper_nSL], dim=1).float()
    with torch.autocast(level_nCKL.device.type, enabled=False):
        sums_nCKT = level_nCKL @ halves_nTL.transpose(1, 2).unsqueeze(1)
    upper, lower = sums_nCKT.to(torch.int32).chunk(2, dim=3)
    bits_n111 = bits_n.to(torch.int32).view(-1, 1, 1, 1)
    total = (upper * 256 + lower + (1 << (bits_n111 - 1))) >> bits_n111
    return total.clamp_(0, 255).float()
