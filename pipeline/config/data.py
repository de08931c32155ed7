"""What is read, from where, in which order, and how much of it may fail."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pipeline.config.limits import INFINITY, POSITIVE, Ranges, Rule


@dataclass(frozen=True)
class FilterConfig:
    """Keeps the samples whose number in the JSON member is within bounds; the others are replaced, and counted apart."""

    field: str
    """Name in the JSON member, for example ``similarity`` or ``width``."""
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class SourceConfig:
    """One of several sources of a mixture."""

    path: str
    """As ``data.train``."""
    name: str = ""
    """What logs call it; by default the last part of the path."""
    weight: float = 1.0
    """Its part of every batch relative to the other sources'; see ``data.mixture_temperature``."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the weight goes from ``weight`` to ``final_weight`` over the run."""
    final_weight: float = 0.0
    replacement: bool = False
    """Draw runs of samples with replacement, instead of every sample once per epoch of this source."""
    captions: tuple[str, ...] = ()
    """Where captions stand, all of them usable: a member as ``txt``, or a field of the JSON member as ``json.llava``.
    Empty: the JSON member's ``captions``, else ``txt``."""
    filters: tuple[FilterConfig, ...] = ()


@dataclass(frozen=True)
class DataConfig:
    """Which samples are read, and what happens to those that cannot be."""

    train: str = ""
    """Folder with ``manifest.jsonl``, or shards with braces, ``shards/cc3m-{000000..000331}.tar``; several joined by ``::``.
    Local, or a URL (s3://, https://, hf://, ...)."""
    mixture: tuple[SourceConfig, ...] = ()
    """Several sources in fixed parts, instead of ``train``."""
    mixture_temperature: float | None = None
    """None: weights are parts of the batch. Else each is multiplied by (samples of the source) ** (1 / temperature): at 1
    weights are upsampling factors, larger values even the sources out."""
    shuffle_window: int = 1_000_000
    """Samples mixed at a time; larger mixes better, smaller touches fewer shards at a time. Smaller sets are mixed whole."""
    shuffle_lanes: int = 64
    """Parts of the epoch that are read side by side (canonical nodes). Part of the order: leave it when the world changes."""
    unindexed: Literal["scan", "stream"] = "scan"
    """Shards without index: ``scan`` reads them once from end to end; ``stream`` draws them with replacement and shuffles in
    a buffer, which is inexact: no even coverage, and another order after a resume."""
    allow_commands: bool = False
    """Whether ``pipe:`` sources may run their command (never through a shell)."""
    workers_per_rank: int = 2
    """Loader processes per rank; 0 loads in the training process."""
    prefetch_batches: int = 4
    """Batches that each worker keeps ready."""
    map_files: bool = False
    """Read local shards through memory maps: one copy less, but what was read counts as the workers' memory."""
    cache_dir: str | None = None
    """Keep remote shards in this folder, shared by all processes of a host."""
    cache_gigabytes: float = 100.0
    """Most that the cache may hold; the shards used longest ago go first."""
    verify: Literal["size", "sha256"] = "size"
    """What is held against the manifest when a process first opens a shard; ``sha256`` reads all of it once more."""
    read_attempts: int = 8
    """Tries for one read from a remote place, with growing pauses; then the sample counts as bad."""
    storage: dict[str, Any] = field(default_factory=dict)
    """Options of fsspec file systems by protocol, ``{s3: {endpoint_url: ...}}``. Secrets belong into the environment."""
    stall_seconds: float = 60.0
    """Waiting for a batch longer than this is reported, with what each worker is reading."""
    stall_limit_seconds: float = 300.0
    """A worker that keeps a batch waiting longer than this is ended and started again; a few times, then the run stops."""
    max_bad_fraction: float = 0.01
    """Largest tolerated fraction of undecodable samples; past it the run stops on every rank."""
    max_image_pixels: int = 64_000_000
    """Images with more pixels are refused before they are decoded (decompression bombs)."""
    max_member_bytes: int = 64_000_000
    """Samples whose members take more bytes than this are refused before they are read."""
    max_caption_characters: int = 100_000
    """Longer captions make a sample bad, before the tokenizer sees them."""


RANGES: Ranges = {
    "data.mixture_temperature": (POSITIVE, INFINITY),
    "data.workers_per_rank": (0, INFINITY),
    "data.prefetch_batches": (1, INFINITY),
    "data.shuffle_window": (1, INFINITY),
    "data.shuffle_lanes": (1, INFINITY),
    "data.cache_gigabytes": (0, INFINITY),
    "data.read_attempts": (1, INFINITY),
    "data.stall_seconds": (POSITIVE, INFINITY),
    "data.stall_limit_seconds": (POSITIVE, INFINITY),
    "data.max_bad_fraction": (0, 1),
    "data.max_image_pixels": (1, INFINITY),
    "data.max_member_bytes": (1, INFINITY),
    "data.max_caption_characters": (1, INFINITY),
}


def data_sources(data: DataConfig) -> tuple[SourceConfig, ...]:
    """The sources of a run, named: those of the mixture, or the single one that ``data.train`` is."""
    found = data.mixture or (SourceConfig(data.train, name="train"),)
    return tuple(
        source if source.name else replace(source, name=source.path.rstrip("/").rpartition("/")[2]) for source in found
    )


def rules(data: DataConfig) -> list[Rule]:
    """Combinations of these settings that must hold."""
    names = [source.name for source in data_sources(data)]
    checks: list[Rule] = [
        (
            bool(data.train) != bool(data.mixture),
            f"data.train = {data.train!r} with {len(data.mixture)} sources in data.mixture: set one of the two",
        ),
        (
            len(set(names)) == len(names),
            f"data.mixture: sources are named {', '.join(names)}; give each a name of its own",
        ),
    ]
    for source in data.mixture:
        weights = (source.weight, source.final_weight)
        checks.append((min(weights) >= 0, f"data.mixture: weights of {source.path} are {weights}: must not be negative"))
        checks += [
            (
                item.at_least is not None or item.at_most is not None,
                f"data.mixture: the filter on {item.field!r} of {source.path} has neither at_least nor at_most",
            )
            for item in source.filters
        ]
        checks += [
            (
                name == "txt" or (name.startswith("json.") and len(name) > 5),
                f"data.mixture: captions of {source.path} in {name!r}: use txt, or json.FIELD",
            )
            for name in source.captions
        ]
    return checks
