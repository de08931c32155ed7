"""Training on several views: made by workers or on the device, on one rank or on two under ZeRO stage 3, losses agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RunConfig
from pipeline.dist import World
from pipeline.train import train
from tests.distributed import run_ranks
from tests.runs import losses, run_config, write_shards

STRONG = {"crop_scale": [0.3, 1.0], "flip_probability": 0.5, "jitter_probability": 1.0, "brightness": 0.4, "hue": 0.1}


def run(world: World, cfg: RunConfig) -> None:
    train(cfg, world)


@pytest.mark.slow
def test_views_of_workers_and_of_the_device_train_alike(tmp_path: Path) -> None:
    """An augmentation-aware head reads the vectors, a loss compares the views."""
    write_shards(tmp_path / "shards")
    common: dict[str, Any] = {
        "augment__more_views": [{**STRONG, "blur_probability": 0.5}],
        "augment__text": {"edit_probability": 0.5, "templates": ["a {}"], "template_probability": 0.5},
        "objective__terms": {"uniclip": {}},
        "model__heads": {"augmentation": {"encoder_width": 8, "blocks": 1}},
        "model__patch_dropout": 0.0,
        "optim__lr": 1e-3,
        "train__steps": 5,
        "train__global_batch_size": 64,  # enough captions per rank for several groups of similar length
    }
    plain = run_config(tmp_path, name="workers", **common)
    device = run_config(
        tmp_path, name="device", augment__on_device=True, data__workers_per_rank=1, engine__zero_stage=3, **common
    )
    run_ranks(run, 1, plain)
    run_ranks(run, 2, device)
    assert len(losses(plain)) == 5
    assert list(losses(device).values()) == pytest.approx(list(losses(plain).values()), abs=2e-3)
    assert losses(plain)[5] < losses(plain)[1]
