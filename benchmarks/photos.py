"""Photo-like JPEGs that need no network: what benchmarks of loading read. The same bytes on every machine with this Pillow.

    jpeg(photo(0))                      # about 130 KB for 683 x 512 pixels at quality 90, as photographs have

Decoders spend their time per compressed bit and resizers per pixel, so both must be right, not the motif: a picture is noise
whose spectrum falls off as that of photographs (amplitude ~ 1 / frequency^1.35), discs cut by straight edges for contours,
colours that vary more slowly than brightness, and a little sensor noise; 3 bits per pixel at quality 90.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

CONTOURS = 12


def photo(number: int, width: int = 683, height: int = 512) -> Image.Image:
    """Picture ``number``, RGB."""
    rng = np.random.Generator(np.random.PCG64(number))
    fall_off = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    fall_off[0, 0] = 1 / width
    planes = []
    for _ in range(3):
        phases = rng.standard_normal((2, *fall_off.shape))
        plane = np.fft.irfft2((phases[0] + 1j * phases[1]) / fall_off**1.35, s=(height, width))
        planes.append(plane / plane.std())
    y, x = np.mgrid[:height, :width]
    for _ in range(CONTOURS):
        turn, across, down, radius = rng.uniform((0, 0, 0, 20), (2 * np.pi, width, height, 200))
        disc = ((x - across) ** 2 + (y - down) ** 2 < radius**2) & (np.cos(turn) * (x - across) + np.sin(turn) * (y - down) > 0)
        for plane, step in zip(planes, rng.normal(0, 0.7, 3), strict=True):
            plane += step * disc
    light, red, blue = planes
    light += 0.05 * rng.standard_normal(light.shape)
    rgb = np.stack([light + 0.3 * red, light - 0.1 * (red + blue), light + 0.3 * blue], axis=-1) * 48 + 118
    return Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    """The picture as a baseline JPEG with 4:2:0 colours."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
