"""A run writes down what its loss learned beside the weights: UniCLIP's temperature and offset of each kind of pair."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pipeline import logs
from pipeline.config import RunConfig
from pipeline.dist import World
from pipeline.train import train
from tests.distributed import run_ranks
from tests.runs import run_config, write_shards


def run(world: World, cfg: RunConfig) -> None:
    train(cfg, world)


def test_temperatures_and_offsets_are_logged_and_start_where_the_term_says(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards")
    cfg = run_config(
        tmp_path,
        augment__more_views=[{"crop_scale": [0.3, 1.0]}],
        objective__terms={"uniclip": {"image_image": "own", "text_text": "tie", "init_temperature": 0.05}},
        objective__learn_temperature=False,
        model__heads={"augmentation": {"encoder_width": 8}},
        checkpoint__every_steps=0,
        train__steps=3,
        optim__warmup_steps=0,
        optim__lr=1e-2,
    )
    run_ranks(run, 1, cfg)
    records = [record for record in logs.read_metrics(cfg.run_dir / logs.METRICS) if "loss" in record]
    assert len(records) == 3
    for name, start in (("log_tau_II", math.log(0.05)), ("log_tau_IT", math.log(0.05)), ("offset_II", 0.0)):
        values = [record[f"uniclip_{name}"] for record in records]
        assert values[0] == pytest.approx(start, abs=1e-6), name
        assert len(set(values)) == 3, name
    assert not any(key.endswith("_TT") for key in records[0]), "texts among themselves are tied to images with texts"
