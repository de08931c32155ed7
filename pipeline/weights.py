"""Weights to start from: ``unisphere weights rename`` and ``unisphere weights align``.

    unisphere weights rename tf_efficientnet_lite0 efficientnet-lite0-57934424.pth lite0.safetensors
        a file that holds a timm model's tensors under other names -> that model's own names, for model.image_tower.init_weights

    unisphere weights align configs/two_encoders.yaml aligned.safetensors
        the model of a configuration with two image towers, the second one's cone turned onto the first one's by Procrustes on
        training images, for model.init_weights

Weights are blended when they are exported: ``unisphere export RUN OUT --mix OTHER=SHARE``.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import config
from pipeline.cli import guarded
from pipeline.config import RunConfig
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

ALIGN_BATCH = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="unisphere weights", description="Make files of weights to start a run from.")
    commands = parser.add_subparsers(dest="command", required=True)
    rename = commands.add_parser("rename", help="bring a file of a timm model's tensors under timm's names")
    rename.add_argument("name", help="the timm model, for example tf_efficientnet_lite0")
    rename.add_argument("source", type=Path, help=".safetensors, .pt, .pth or .bin with the same tensors in the same order")
    rename.add_argument("out", type=Path, help="the .safetensors file to write")
    align = commands.add_parser("align", help="start two image towers in the same cone")
    align.add_argument("config", help="YAML file of a run with model.second_tower = image")
    align.add_argument("out", type=Path, help="the .safetensors file to write")
    align.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace the file's")
    align.add_argument("--images", type=int, default=2048, help="training images to align on (default 2048)")
    args = parser.parse_args(argv)
    if args.out.suffix != ".safetensors":
        raise ConfigError(f"{args.out}: weights are written as .safetensors")
    if args.command == "rename":
        count = rename_timm(args.name, args.source, args.out)
        print(f"{count} tensors of {args.name} written to {args.out}")
    else:
        before, after = align_towers(config.load(args.config, args.overrides), args.out, args.images)
        print(f"distance of the towers' mean embeddings: {before:.4f} before, {after:.4f} after; written to {args.out}")
    return 0


def rename_timm(name: str, source: Path, out: Path) -> int:
    """Write the tensors of ``source`` under the names of timm's model ``name``, matched in order; returns their number.

    Ports of a network between libraries keep the order of its layers and rename them. Every shape must agree, counters of
    batch norms aside.

    Raises:
        ConfigError: timm does not know the model, or a tensor has another shape; the first few are named.
    """
    import timm
    from safetensors.torch import save_file

    from pipeline.models.weights import read_file

    found = {key: t for key, t in read_file(source, "SOURCE").items() if not key.endswith("num_batches_tracked")}
    if name not in timm.list_models():
        raise ConfigError(f"timm knows no model {name!r}; see timm.list_models()")
    model = timm.create_model(name)
    wanted = {key: t for key, t in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    pairs = list(zip(wanted.items(), found.items(), strict=False))
    wrong = [f"{theirs} {tuple(t.shape)} for {ours} {tuple(w.shape)}" for (ours, w), (theirs, t) in pairs if w.shape != t.shape]
    if wrong or len(found) != len(wanted):
        listed = "".join(f"\n  {line}" for line in wrong[:5])
        raise ConfigError(f"{source} has {len(found)} tensors, {name} {len(wanted)}; {len(wrong)} shapes differ:{listed}")
    save_file({ours: tensor.contiguous() for (ours, _), (_, tensor) in pairs}, out)
    return len(pairs)


def align_towers(cfg: RunConfig, out: Path, num_images: int) -> tuple[float, float]:
    """Write the initial weights of ``cfg`` with its two image towers aligned; see ``models/align.py``.

    Returns:
        The distance of the two towers' mean embeddings before and after.

    Raises:
        ConfigError: the model has no two image towers, or no image is to be read.
        DataError: the training data cannot be read.
    """
    import torch
    from safetensors.torch import save_file

    from pipeline.models import clip
    from pipeline.models.align import align

    if num_images < 1:
        raise ConfigError(f"--images {num_images}: must be at least 1")
    torch.manual_seed(cfg.seed)
    model = clip.build(cfg.model, cfg.objective)
    distances = align(model, training_images(cfg, model.image_size, math.ceil(num_images / ALIGN_BATCH)))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, out)
    return distances


def training_images(cfg: RunConfig, size: int, num_batches: int) -> Iterator[Tensor]:
    """Normalised pixels [64, 3, H, W] of view 0 as the run's first steps will see them, ``num_batches`` times."""
    from pipeline.data import tokenizer
    from pipeline.data.augment import normalise
    from pipeline.data.loader import train_batches
    from pipeline.models.towers import architecture

    batches = train_batches(
        cfg.data,
        cfg.augment,
        image_size=size,
        tokenizer=tokenizer.build(architecture(cfg.model)),
        world_rank=0,
        world_size=1,
        global_batch_size=ALIGN_BATCH,
        seed=cfg.seed,
        start_step=0,
        total_steps=num_batches,
    )
    for batch in batches:
        yield normalise(batch.image_VBCHW[0], cfg.model.image_mean, cfg.model.image_std)


if __name__ == "__main__":
    sys.exit(guarded(main))
