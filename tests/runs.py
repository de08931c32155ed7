"""Small training runs on small shards, for tests of everything around the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import config, logs
from pipeline.config import RunConfig
from tests import tiny
from tests.data.on_disk import pair, tar_bytes, write_manifest

INLINE: dict[str, Any] = {**tiny.INLINE, "text_cfg": {**tiny.INLINE["text_cfg"], "vocab_size": 49408}}


def write_shards(folder: Path, num_samples: int = 40, shard_size: int = 16) -> Path:
    """A folder of good shards with a manifest."""
    folder.mkdir(parents=True)
    for start in range(0, num_samples, shard_size):
        samples = {f"s{number:03d}": pair(number) for number in range(start, min(start + shard_size, num_samples))}
        (folder / f"part-{start // shard_size:06d}.tar").write_bytes(tar_bytes(samples))
    write_manifest(folder)
    return folder


def run_tree(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a ten-step run; ``changes`` are ``group__key=value`` or ``key=value``."""
    tree: dict[str, Any] = {
        "name": "run",
        "runs_dir": str(tmp_path / "runs"),
        "data": {"train": str(tmp_path / "shards"), "workers_per_rank": 0},
        "augment": {"crop_scale": [0.5, 1.0], "flip_probability": 0.5},
        "model": {"inline": INLINE, "patch_dropout": 0.25},
        "train": {"steps": 10, "global_batch_size": 12},
        "optim": {"warmup_steps": 2},
        "log": {"every_steps": 1, "tensorboard": False},
        "checkpoint": {"every_steps": 6, "keep_last": 0},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def run_config(tmp_path: Path, **changes: Any) -> RunConfig:
    """``run_tree`` as a checked configuration."""
    return config.from_tree(run_tree(tmp_path, **changes))


def losses(cfg: RunConfig) -> dict[int, float]:
    """Loss by step, as the run logged it."""
    return {r["step"]: r["loss"] for r in logs.read_metrics(cfg.run_dir / logs.METRICS) if "loss" in r}
