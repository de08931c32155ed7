"""What is read, and the random views made of it."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.limits import INFINITY, Ranges, Rule


@dataclass(frozen=True)
class DataConfig:
    """Which samples are read, and what happens to those that cannot be."""

    train: str
    """Folder with ``manifest.jsonl``, or shard paths with braces: ``shards/cc3m-{000000..000331}.tar``."""
    workers_per_rank: int = 2
    """Loader processes per rank; 0 loads in the training process."""
    prefetch_batches: int = 4
    """Batches that each worker keeps ready."""
    shuffle_window: int = 100_000
    """Samples shuffled together after the shards were shuffled; larger mixes better, smaller touches fewer shards."""
    max_bad_fraction: float = 0.01
    """Largest tolerated fraction of undecodable samples; past it the run stops on every rank."""
    max_image_pixels: int = 64_000_000
    """Images with more pixels are refused before they are decoded (decompression bombs)."""
    max_member_bytes: int = 64_000_000
    """Samples whose members take more bytes than this are refused before they are read."""


@dataclass(frozen=True)
class AugmentConfig:
    """The random view of a training image. Each range is drawn uniformly, each probability independently."""

    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Area of the random resized crop as a fraction of the image."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    """Aspect ratio (width / height) of that crop, drawn log-uniformly."""
    flip_probability: float = 0.0
    jitter_probability: float = 0.0
    brightness: float = 0.0
    """Factor drawn from [1 - x, 1 + x]; likewise contrast and saturation."""
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    """Shift drawn from [-x, x] in turns of the colour wheel, at most 0.5."""
    grayscale_probability: float = 0.0


RANGES: Ranges = {
    "data.workers_per_rank": (0, INFINITY),
    "data.prefetch_batches": (1, INFINITY),
    "data.shuffle_window": (1, INFINITY),
    "data.max_bad_fraction": (0, 1),
    "data.max_image_pixels": (1, INFINITY),
    "data.max_member_bytes": (1, INFINITY),
    "augment.flip_probability": (0, 1),
    "augment.jitter_probability": (0, 1),
    "augment.brightness": (0, 1),
    "augment.contrast": (0, 1),
    "augment.saturation": (0, 1),
    "augment.hue": (0, 0.5),
    "augment.grayscale_probability": (0, 1),
}


def rules(augment: AugmentConfig) -> list[Rule]:
    """Combinations of these settings that must hold."""
    return [
        (
            0 < augment.crop_scale[0] <= augment.crop_scale[1] <= 1,
            f"augment.crop_scale = {augment.crop_scale}: need 0 < low <= high <= 1",
        ),
        (
            0 < augment.crop_ratio[0] <= augment.crop_ratio[1],
            f"augment.crop_ratio = {augment.crop_ratio}: need 0 < low <= high",
        ),
    ]
