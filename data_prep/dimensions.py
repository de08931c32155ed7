"""Width and height of an encoded picture from its first bytes, at a few microseconds each, without decoding it.

    dimensions(png[:64])          # (640, 480)
    dimensions(b"not a picture")  # None

An index of existing shards is to be made at the speed of the disk, so Pillow is asked only about formats that are not JPEG,
PNG, WebP or GIF. The numbers are those stored in the file: an EXIF orientation that asks viewers to turn the picture is not
applied.
"""

from __future__ import annotations

import io
import warnings

HEAD_BYTES = 1 << 16
"""Enough for every format but a JPEG with large colour profiles or thumbnails before its frame header."""

# Start-of-frame markers: all of C0..CF but the tables that share the range (C4, C8, CC).
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
STANDALONE = frozenset(range(0xD0, 0xD9)) | {0x01}


def dimensions(head: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels of the picture whose file begins with ``head``; None where that cannot be told."""
    if head[:2] == b"\xff\xd8":
        return _jpeg(head)
    if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) >= 24:
        return _sides(int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big"))
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP" and len(head) >= 30:
        return _webp(head)
    if head[:6] in (b"GIF87a", b"GIF89a") and len(head) >= 10:
        return _sides(int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little"))
    return _by_pillow(head)


def _sides(width: int, height: int) -> tuple[int, int] | None:
    return (width, height) if width and height else None


def _jpeg(head: bytes) -> tuple[int, int] | None:
    """Hop from marker to marker to the frame header (ITU T.81, annex B)."""
    at = 2
    while at + 9 <= len(head):
        if head[at] != 0xFF:
            return None
        marker = head[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in STANDALONE:
            at += 2
        elif marker in FRAMES:
            return _sides(int.from_bytes(head[at + 7 : at + 9], "big"), int.from_bytes(head[at + 5 : at + 7], "big"))
        else:
            at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return None


def _webp(head: bytes) -> tuple[int, int] | None:
    """The three forms of a WebP's first chunk: lossy, lossless, extended."""
    chunk = head[12:16]
    if chunk == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        return _sides(int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF)
    if chunk == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return _sides((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if chunk == b"VP8X":
        return _sides(int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1)
    return None


def _by_pillow(head: bytes) -> tuple[int, int] | None:
    if not head:
        return None
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(head)) as image:
                return _sides(*image.size)
    except Exception:  # whatever a parser stumbles over, the answer is: cannot be told
        return None
