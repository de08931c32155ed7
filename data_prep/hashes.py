"""Two fingerprints of an image: of its bytes, and of what it looks like.

    sha256(data)                     # "9f86d0...": equal only for equal bytes
    perceptual(grey_HW)              # 0x8f0f...: 64 bits; few differ between an image and its copy, resized or saved again

The perceptual one is the pHash: the picture in grey, 32 x 32, its 8 x 8 lowest cosine frequencies, one bit each for "above
the median". All arithmetic is in whole numbers, so that machines agree on every bit. An image of one colour has no
structure to compare; it hashes to 0 and is never called a near duplicate.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 32  # pixels of the square that is transformed
LOW = 8  # frequencies kept per direction
FLAT = 8  # grey levels between darkest and brightest below which an image has no structure


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def perceptual(grey_HW: npt.NDArray[np.uint8]) -> int:
    """The 64-bit pHash of a grey picture, at least 1 pixel in each direction."""
    small = np.asarray(Image.fromarray(grey_HW).resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.int64)
    if int(small.max()) - int(small.min()) < FLAT:
        return 0
    cosines = _cosines()
    low_frequencies = (cosines @ small @ cosines.T).ravel()
    # The constant term says only how bright the picture is; one that hardly differs from the median is no information.
    bits = low_frequencies > np.sort(low_frequencies[1:])[(LOW * LOW - 1) // 2]
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@lru_cache(maxsize=1)
def _cosines() -> npt.NDArray[np.int64]:
    """The first ``LOW`` rows of the cosine transform (type II) of ``SIDE`` points, times 1024 and rounded."""
    rows = [[round(1024 * math.cos(math.pi * k * (2 * n + 1) / (2 * SIDE))) for n in range(SIDE)] for k in range(LOW)]
    return np.array(rows, dtype=np.int64)
