"""``unisphere bench-loader CONFIG``: how fast one core makes batches of a run, where the time goes, and if that is enough.

    unisphere bench-loader configs/x.yaml                                   images per second and core, time per stage
    unisphere bench-loader configs/x.yaml --gpu H200 --mfu 0.45             ... against what such a GPU takes at this MFU
    unisphere bench-loader configs/x.yaml --target 3000 --cores 12          ... against 3000 samples/s per rank on 12 cores

Samples are those that the run would read first. Times are CPU time of one thread, so that other work on the machine does not
count; waiting for disks and networks shows as the difference of wall and CPU time in reading.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline import config
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pipeline.data.mixture import Rows
    from pipeline.data.sources import Sources
    from pipeline.data.tokenizer import Tokenizer

STAGES = ("read", "decode", "views", "tokenise")
HEADROOM = 1.1
"""Workers advised over those needed on average: images differ in size."""


@dataclass
class Measured:
    """CPU seconds of one core over ``num_samples`` samples, whole and by stage."""

    num_samples: int = 0
    num_bad: int = 0
    num_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    whole_seconds: float = 0.0
    """The same samples through the code that a worker runs: the stages, and laying them into a batch."""
    read_wall_seconds: float = 0.0

    @property
    def samples_per_second(self) -> float:
        """Of one core."""
        return self.num_samples / self.whole_seconds

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the CPU time of a block to a stage."""
        start = time.process_time()
        yield
        self.seconds[name] += time.process_time() - start


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="unisphere bench-loader", description="How fast one core makes batches of a run.")
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace the file's")
    parser.add_argument("--samples", type=int, default=512, metavar="N", help="how many to measure (default 512)")
    need = parser.add_mutually_exclusive_group()
    need.add_argument("--target", type=float, metavar="RATE", help="samples per second that one rank needs")
    need.add_argument("--gpu", metavar="NAME", help="take the target from the model's arithmetic on this GPU, H200 for example")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the GPU's peak that training reaches (default 0.4)")
    parser.add_argument("--cores", type=int, metavar="N", help="cores per rank (default: those of this machine)")
    args = parser.parse_intermixed_args(argv)
    if args.samples < 1 or not 0 < args.mfu <= 1 or (args.target is not None and args.target <= 0):
        raise ConfigError("bench-loader: --samples and --target must be positive, --mfu within (0, 1]")
    cfg = config.load(args.config, args.overrides)
    target = _gpu_rate(cfg, args.gpu, args.mfu) if args.gpu else args.target
    cores = args.cores or len(os.sched_getaffinity(0))
    print(report(measure(cfg, args.samples), cfg, target, cores), end="")
    return 0


def measure(cfg: RunConfig, num_samples: int) -> Measured:
    """Make the first batches of a run on this thread, by stage and then as a worker does it.

    Raises:
        DataError: the shards cannot be opened, or not one of the samples can be used.
    """
    import torch

    from pipeline.data import tokenizer
    from pipeline.data.batches import TrainBatches
    from pipeline.data.sources import open_sources, run_plan
    from pipeline.models import towers

    torch.set_num_threads(1)
    architecture = towers.architecture(cfg.model)
    size = _side(architecture["vision_cfg"].get("image_size", 224))
    tokenize = tokenizer.build(architecture, trim=True)
    sources = open_sources(cfg.data)
    sources.preflight()
    batch_size = min(cfg.train.global_batch_size, num_samples)
    steps = -(-num_samples // batch_size)
    order = run_plan(cfg.data, sources, seed=cfg.seed, global_batch_size=batch_size, total_steps=steps)
    make = TrainBatches(sources, cfg.augment, size, tokenize, cfg.data.max_image_pixels, cfg.seed)
    found = Measured()
    make[order.rows(0)]  # imports, tables, and the words of captions are paid for once
    for step in range(steps):
        rows = order.rows(step)
        sources.prepare(rows.index_B.tolist())
        _stages(found, rows, cfg, size, tokenize, sources)
        start = time.process_time()
        made = make[rows]
        found.whole_seconds += time.process_time() - start
        if isinstance(made, Exception):
            raise made
        found.num_samples += len(made.keys)
    if not found.num_bytes:
        raise DataError(f"none of {found.num_bad} samples could be used; see: unisphere shards verify")
    return found


def _stages(found: Measured, rows: Rows, cfg: RunConfig, size: int, tokenize: Tokenizer, sources: Sources) -> None:
    from pipeline.data import plan, text
    from pipeline.data.augment import Encoded, crop, draw
    from pipeline.data.colour import recolour
    from pipeline.data.device_views import cut
    from pipeline.data.drops import BadSample

    captions = []
    for index, epoch in zip(rows.index_B.tolist(), rows.epoch_B.tolist(), strict=True):
        start = time.perf_counter()
        try:
            with found.stage("read"):
                sample = sources.read(index)
            found.read_wall_seconds += time.perf_counter() - start
            rng = plan.sample_rng(cfg.seed, epoch, sample.key)
            captions.append(text.choose(sample.captions, cfg.augment.text, rng))
            with found.stage("decode"):
                encoded = Encoded(sample.image, cfg.data.max_image_pixels)
                params = draw(encoded, cfg.augment, size, rng)
                pixels = encoded.pixels(params[0].reduction)
        except BadSample:
            found.num_bad += 1
            continue
        found.num_bytes += len(sample.image)
        with found.stage("views"):
            if cfg.augment.on_device:
                cut(pixels, params)
            for view in () if cfg.augment.on_device else params:
                recolour(crop(pixels, view, size, cfg.augment.interpolation), [view])
    with found.stage("tokenise"):
        tokenize(captions)


def _side(image_size: int | Sequence[int]) -> int:
    return int(image_size if isinstance(image_size, int) else image_size[0])


def _gpu_rate(cfg: RunConfig, gpu: str, mfu: float) -> float:
    """Samples per second that one GPU trains at this share of its peak."""
    from pipeline.data.views import VIEW_PARAMS
    from pipeline.losses import Objective
    from pipeline.models import clip
    from pipeline.watching import flops
    from pipeline.watching.speed import flops_per_sample

    peak = flops.peak_tflops(gpu)
    if peak is None:
        raise ConfigError(f"--gpu {gpu!r} is not known; use one of {', '.join(flops.PEAK_TFLOPS)}, or give --target")
    scalars = Objective(cfg.objective, seed=0, total_steps=1).scalars()
    model = clip.build(cfg.model, cfg.objective, scalars, num_view_params=len(VIEW_PARAMS))
    return mfu * peak * 1e12 / (3 * flops_per_sample(model, len(cfg.augment.views), len(VIEW_PARAMS)))


def report(found: Measured, cfg: RunConfig, target: float | None, cores: int) -> str:
    """What was measured, as text; with a target, whether the workers of the configuration reach it."""
    each = 1e3 / found.num_samples
    views = 1 + len(cfg.augment.more_views)
    made = "canvases for the device" if cfg.augment.on_device else f"{views} view{'s' * (views > 1)}"
    lines = [
        f"{found.num_samples} samples of {found.num_bytes / found.num_samples / 1000:.0f} KB, {made}, one thread",
        f"{'stage':<10}{'CPU ms':>9}{'share':>8}",
    ]
    rest = found.whole_seconds - sum(found.seconds.values())
    for name, seconds in (*found.seconds.items(), ("collate", max(0.0, rest)), ("all", found.whole_seconds)):
        lines.append(f"{name:<10}{seconds * each:>9.3f}{seconds / found.whole_seconds:>8.0%}")
    waiting = max(0.0, found.read_wall_seconds - found.seconds["read"]) * each
    lines.append(f"waiting for storage: {waiting:.3f} ms per sample in one worker")
    if found.num_bad:
        lines.append(f"{found.num_bad} samples could not be used; see: unisphere shards verify")
    rate = found.samples_per_second
    lines.append(f"{rate:.0f} samples/s per core")
    return "\n".join([*lines, *_verdict(rate, cfg, target, cores)]) + "\n"


def _verdict(rate: float, cfg: RunConfig, target: float | None, cores: int) -> list[str]:
    if target is None:
        return ["give --target RATE or --gpu NAME to learn how many cores a rank needs"]
    needed = target / rate
    workers = max(1, cfg.data.workers_per_rank)
    supply = min(workers, cores) * rate
    lines = [f"a rank that trains {target:.0f} samples/s needs {needed:.1f} cores"]
    if supply >= target:
        return [*lines, f"{workers} workers on {cores} cores make {supply:.0f}: the device would not starve"]
    lines.append(
        f"{workers} workers on {cores} cores make {supply:.0f}: the device would starve, {1 - supply / target:.0%} of the time"
    )
    wanted = math.ceil(HEADROOM * needed)
    if wanted <= cores:
        return [*lines, f"set data.workers_per_rank = {wanted}"]
    lines.append(f"{wanted} cores per rank would do, or images stored smaller")
    if not cfg.augment.on_device:
        lines.append("augment.on_device = true leaves only decoding to them")
    return lines
