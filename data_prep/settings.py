"""What a build may be asked to do with its rows, as one value that enters the fingerprint of every chunk.

    Settings(shard_size=10_000, transform=Transform(resize=256, format="jpeg"), filters=Filters(min_side=64))

Two builds with equal settings and equal rows give equal bytes, so everything that changes a byte is a field here, and
nothing else is: the number of workers, the part of a Slurm array, the output's place are arguments of the run.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.errors import DataError

RESIZE_MODES = ("larger", "shortest", "exact")
FORMATS = ("keep", "jpeg", "webp", "png")
SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")
DUPLICATES = ("keep", "exact", "near")
MAX_NEAR_DISTANCE = 7


@dataclass(frozen=True)
class Transform:
    """How images are rewritten. The default stores every image's own bytes."""

    resize: int | None = None  # pixels: of the shortest side, or with mode "exact" of both
    mode: str = (
        "larger"  # "larger": only images that are larger; "shortest": every image; "exact": square, cropped in the middle
    )
    format: str = "keep"
    quality: int = 92  # of JPEG and WebP, 1 to 100
    subsampling: str = "4:2:0"  # of JPEG

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("mode", self.mode, RESIZE_MODES),
            ("format", self.format, FORMATS),
            ("subsampling", self.subsampling, SUBSAMPLINGS),
        ):
            if value not in allowed:
                raise DataError(f"image {name} {value!r} is unknown; there are: {', '.join(allowed)}")
        if not 1 <= self.quality <= 100 or (self.resize is not None and not 1 <= self.resize <= 16_384):
            raise DataError(f"quality {self.quality} must lie in 1 to 100 and resize {self.resize} in 1 to 16384 pixels")
        if self.mode == "exact" and self.resize is None:
            raise DataError("mode 'exact' needs a size; give --resize N")

    @property
    def rewrites(self) -> bool:
        """Whether any image may be stored with other bytes than it had."""
        return self.resize is not None or self.format != "keep"


@dataclass(frozen=True)
class Filters:
    """Which images and captions are good enough. None and False: not asked."""

    min_side: int | None = None  # pixels, of the shorter side
    max_aspect: float | None = None  # longer side / shorter side
    min_pixels: int | None = None  # width x height
    max_pixels: int | None = None
    min_chars: int | None = None  # of a caption
    max_chars: int | None = None
    keep_matching: str | None = None  # regular expression that a caption must match somewhere; \p{...} classes work
    drop_matching: str | None = None  # regular expression that it must not match anywhere
    drop_placeholders: bool = False  # "untitled", "IMG_0042.jpg", ... see data_prep.filters


@dataclass(frozen=True)
class Settings:
    """Everything that decides the bytes of a build beside its rows and images."""

    shard_size: int = 1000  # samples per shard, at most
    transform: Transform = field(default_factory=Transform)
    filters: Filters = field(default_factory=Filters)
    duplicates: str = "keep"  # "exact": equal bytes; "near": also equal-looking; the first in input order stays
    near_distance: int = 3  # differing bits of 64 up to which two images look equal
    excluded: str = ""  # SHA-256 of the --exclude-hashes file; empty for none

    def __post_init__(self) -> None:
        if self.duplicates not in DUPLICATES:
            raise DataError(f"duplicates {self.duplicates!r} is unknown; there are: {', '.join(DUPLICATES)}")
        if not 0 <= self.near_distance <= MAX_NEAR_DISTANCE or self.shard_size < 1:
            limits = f"shard size at least 1, near distance 0 to {MAX_NEAR_DISTANCE} bits"
            raise DataError(f"shard size {self.shard_size}, near distance {self.near_distance}: out of range ({limits})")

    @property
    def perceptual(self) -> bool:
        """Whether perceptual hashes are needed."""
        return self.duplicates == "near"

    def fingerprint(self, libraries: dict[str, str]) -> str:
        """SHA-256 over the settings and, where images are rewritten, the versions of what decodes and encodes them."""
        stored: list[Any] = [asdict(self), libraries if self.transform.rewrites else None]
        return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()
