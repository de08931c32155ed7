"""Whole trainings on real shards, resumed at other world sizes and stages: the losses of the run that was never interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import checkpoint
from pipeline.config import RunConfig
from pipeline.dist import World
from pipeline.errors import Superseded
from pipeline.train import train
from tests.distributed import run_ranks
from tests.runs import losses, run_config, write_shards

PLAN = [(1, 0), (2, 1), (4, 2), (3, 3)]
"""World size and stage of each part of two steps."""


def run(world: World, cfg: RunConfig) -> None:
    train(cfg, world)


def test_a_run_goes_on_at_other_world_sizes_and_stages_with_the_same_losses(tmp_path: Path) -> None:
    """1 -> 2 -> 4 -> 3 ranks, stages 0 -> 1 -> 2 -> 3, also in micro-batches; patch dropout and mixup draw by step."""
    write_shards(tmp_path / "shards")
    common = {
        "model__patch_dropout": 0.25,
        "objective__terms": {"clip": {}, "v_mix": {"weight": 0.3}},
        "checkpoint__every_steps": 2,
        "train__steps": 8,
        "optim__lr": 1e-3,
        "engine__ema_decay": 0.99,
    }
    parts = [
        run_config(
            tmp_path,
            name=f"part{number}",
            engine__zero_stage=stage,
            train__micro_batches=1 + number % 2,
            resume_from=str(tmp_path / f"runs/part{number - 1}/checkpoints/step-{2 * number:08d}") if number else None,
            **common,
        )
        for number, (_, stage) in enumerate(PLAN)
    ]
    for (world_size, _), cfg in zip(PLAN, parts, strict=True):
        run_ranks(run, world_size, cfg)
    whole = losses(parts[0])
    assert sorted(whole) == list(range(1, 9))
    for number, cfg in enumerate(parts):
        seen = losses(cfg)
        assert sorted(seen) == list(range(2 * number + 1, 9))
        assert list(seen.values()) == pytest.approx([whole[step] for step in seen], abs=1e-4)
    ends = [checkpoint.newest(cfg.run_dir) for cfg in (parts[0], parts[-1])]
    ours, theirs = (checkpoint.read_weights(end, averaged=True) for end in ends if end is not None)
    assert all(ours[name].allclose(theirs[name], atol=1e-4) for name in ours)


def overtaken(world: World, cfg: RunConfig) -> int:
    """A start whose folder another one claims before its first record."""
    (cfg.run_dir / "generations").mkdir(parents=True, exist_ok=True)
    (cfg.run_dir / "generations" / "00001.json").write_text("{}")
    original = checkpoint.Generation.claim(cfg.run_dir, world)
    stale = checkpoint.Generation(original.folder, 1)
    try:
        stale.agree(world)
    except Superseded as error:
        return error.exit_code
    return 0


def test_every_rank_of_an_overtaken_start_leaves_with_the_same_code(tmp_path: Path) -> None:
    assert run_ranks(overtaken, 2, run_config(tmp_path)) == [9, 9]
