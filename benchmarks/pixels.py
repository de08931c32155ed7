"""Why the loader decodes and resizes with what it does: the candidates beside each other, CPU time of one thread.

    make peers && .venv-peers/bin/python benchmarks/pixels.py           # OpenCV is among the peers

Decoding: 683 x 512 photo-like JPEGs (``photos.py``), whole and at half size. Resizing: a 640 x 480 part, and a 320 x 240 one as
half-size decoding leaves it, to 224 x 224. Blur: one 224 x 224 view in fp32. The fastest of the rounds counts.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SIZE, REPEATS = 224, 8


def main() -> None:
    """Measure all candidates in turn, round after round, and print the tables."""
    from benchmarks.photos import jpeg, photo

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    data = jpeg(photo(0))
    whole = simplejpeg.decode_jpeg(data)
    parts = {"640 x 480": whole[16:496, 21:661], "320 x 240": _half(data)[8:248, 10:330]}
    _table(f"decode {len(data) / 1000:.0f} KB", _decoders(data), args.rounds)
    for name, part in parts.items():
        _table(f"resize {name} to {SIZE} x {SIZE}", _resizers(part), args.rounds)
    _table(f"blur {SIZE} x {SIZE}, sigma 2", _blurs(), args.rounds)


def _table(title: str, candidates: dict[str, Callable[[], object]], rounds: int) -> None:
    best = dict.fromkeys(candidates, float("inf"))
    for _ in range(rounds):
        for name, function in candidates.items():
            start = time.process_time()
            for _ in range(REPEATS):
                function()
            best[name] = min(best[name], (time.process_time() - start) / REPEATS)
    print(f"\n{title}")
    for name, seconds in best.items():
        print(f"  {name:44} {seconds * 1e6:8.0f} us")


def _half(data: bytes, **options: bool) -> np.ndarray:
    return simplejpeg.decode_jpeg(data, min_height=256, min_width=342, min_factor=2, **options)


def _decoders(data: bytes) -> dict[str, Callable[[], object]]:
    def pillow(draft: bool) -> np.ndarray:
        image = Image.open(io.BytesIO(data))
        if draft:
            image.draft(None, (341, 256))
        return np.asarray(image)

    array = np.frombuffer(data, np.uint8)
    return {
        "Pillow": lambda: pillow(False),
        "Pillow, half size": lambda: pillow(True),
        "simplejpeg (chosen: equals Pillow)": lambda: simplejpeg.decode_jpeg(data),
        "simplejpeg, half size (chosen)": lambda: _half(data),
        "simplejpeg, fast transform (other pixels)": lambda: simplejpeg.decode_jpeg(data, fastdct=True),
        "OpenCV": lambda: cv2.imdecode(array, cv2.IMREAD_COLOR),
        "OpenCV, half size": lambda: cv2.imdecode(array, cv2.IMREAD_REDUCED_COLOR_2),
        "header: Pillow": lambda: Image.open(io.BytesIO(data)).getexif(),
    }


def _resizers(part_HWC: np.ndarray) -> dict[str, Callable[[], object]]:
    part_1CHW = torch.from_numpy(part_HWC).permute(2, 0, 1)[None]

    def interpolated(mode: str) -> torch.Tensor:
        return F.interpolate(part_1CHW, (SIZE, SIZE), mode=mode, antialias=True)

    return {
        "Pillow bicubic": lambda: Image.fromarray(part_HWC).resize((SIZE, SIZE), Image.Resampling.BICUBIC),
        "torch bicubic, antialiased (chosen)": lambda: interpolated("bicubic"),
        "torch bilinear, antialiased": lambda: interpolated("bilinear"),
        "OpenCV area": lambda: cv2.resize(part_HWC, (SIZE, SIZE), interpolation=cv2.INTER_AREA),
        "OpenCV bilinear (aliases)": lambda: cv2.resize(part_HWC, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR),
    }


def _blurs() -> dict[str, Callable[[], object]]:
    from pipeline.data.colour import BLUR_REACH, blur

    level_1CHW = torch.rand(1, 3, SIZE, SIZE) * 255
    reach = 2 * BLUR_REACH
    kernel_T = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / 2) ** 2)
    matrix_HH = torch.rand(SIZE, SIZE)

    def convolved() -> torch.Tensor:
        padded = F.pad(level_1CHW, (reach,) * 4, mode="reflect")
        across = F.conv2d(padded, kernel_T.expand(3, 1, 1, -1), groups=3)
        return F.conv2d(across, kernel_T[:, None].expand(3, 1, -1, 1), groups=3)

    return {
        "sum over taps (chosen)": lambda: blur(level_1CHW, torch.full((1, 1, 1, 1), 2.0), 2.0),
        "grouped convolutions": convolved,
        "two matrix products": lambda: matrix_HH @ level_1CHW @ matrix_HH.T,
    }


if __name__ == "__main__":
    main()
