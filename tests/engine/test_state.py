"""State outlives its ranks: bitwise at the same world size, elastic at another; averages and frozen weights too."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline import checkpoint, dist
from pipeline.checkpoint import TrainState
from pipeline.config import EngineConfig, OptimConfig
from pipeline.dist import World
from tests import tiny
from tests.distributed import RanksFailed, run_ranks

B = 12
"""Divides by every world size here."""


class WithCounters(nn.Module):
    """A model with a frozen tower, and a buffer that counts forward passes."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.clip = tiny.model()
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        for parameter in self.clip.text.parameters():
            parameter.requires_grad_(not frozen)

    def forward(self, *inputs: Any) -> Any:
        """Count, and delegate."""
        if self.training:
            self.passes += 1
        return self.clip(*inputs)


def new_engine(world: World, stage: int, precision: str = "fp32", *, frozen: bool = False, **engine: Any) -> Any:
    from pipeline.engine.engine import Engine

    return Engine(
        WithCounters(frozen),
        OptimConfig(),
        EngineConfig(zero_stage=stage, precision=precision, **{"ema_decay": 0.9, **engine}),  # type: ignore[arg-type]
        world=world,
        device=torch.device("cpu"),
        micro_batch_size=B // world.size,
    )


def losses(engine: Any, world: World, which: range) -> list[float]:
    """The global loss of the steps ``which``."""
    engine.train()
    seen = []
    for step in which:
        inputs = tiny.share(tiny.batch(B, seed=step, num_groups=9), world.rank, world.size)
        loss = tiny.objective()(engine.forward(inputs), step=step).total
        engine.backward(loss)
        engine.step(1e-3)
        seen.append(dist.all_reduce_mean(loss.detach()).item())
    return seen


def leg(world: World, run: str, stage: int, which: range, settings: dict[str, Any]) -> list[float]:
    """Continue from the newest checkpoint of ``run``, if any, for the steps ``which``, and save."""
    engine = new_engine(world, stage, **settings)
    if (folder := checkpoint.newest(Path(run), deep=True)) is not None:
        checkpoint.restore(engine, folder)
    seen = losses(engine, world, which)
    state = TrainState(which.stop, which.stop * B, {})
    checkpoint.save(Path(run), engine, state, world=world, keep_last=0)
    return seen


def weights_of(run: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    folder = checkpoint.newest(run)
    assert folder is not None
    return checkpoint.read_weights(folder), checkpoint.read_weights(folder, averaged=True)


def chain(run: Path, plan: list[tuple[int, int]], length: int, **settings: Any) -> list[float]:
    """Losses of a run whose legs of ``length`` steps are at the (world size, stage) of ``plan``."""
    seen = []
    for number, (world_size, stage) in enumerate(plan):
        which = range(number * length, (number + 1) * length)
        seen += run_ranks(leg, world_size, str(run), stage, which, settings)[0]
    return seen


DIAGONAL = [(1, 0), (2, 1), (4, 2), (3, 3), (1, 1), (2, 0)]


def test_elastic_over_world_sizes_and_stages(tmp_path: Path) -> None:
    """1 -> 2 -> 4 -> 3 -> 1 -> 2 ranks, another stage each time: losses, weights and averages of one uninterrupted process."""
    expected = run_ranks(leg, 1, str(tmp_path / "whole"), 0, range(2 * len(DIAGONAL)), {})[0]
    assert chain(tmp_path / "elastic", DIAGONAL, 2) == pytest.approx(expected, abs=1e-4)
    for ours, theirs in zip(weights_of(tmp_path / "elastic"), weights_of(tmp_path / "whole"), strict=True):
        assert list(ours) == list(theirs)
        for name, weight in theirs.items():
            torch.testing.assert_close(ours[name], weight, rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("to_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("from_stage", [0, 1, 2, 3])
def test_elastic_matrix(tmp_path: Path, from_stage: int, to_stage: int) -> None:
    """Every stage to every stage over 1 -> 2 -> 4 -> 3 ranks."""
    expected = run_ranks(leg, 1, str(tmp_path / "whole"), 0, range(8), {})[0]
    plan = [(1, from_stage), (2, to_stage), (4, from_stage), (3, to_stage)]
    assert chain(tmp_path / "elastic", plan, 2) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        (0, {}),
        (1, {"precision": "bf16"}),
        (2, {"frozen": True}),
        (3, {"frozen": True, "precision": "bf16"}),
        (2, {"offload": "cpu"}),
    ],
)
def test_the_same_world_size_continues_bitwise(tmp_path: Path, stage: int, settings: dict[str, Any]) -> None:
    """Losses, weights, averages, frozen weights and buffers."""
    run_ranks(leg, 2, str(tmp_path / "first"), stage, range(2), settings)
    expected = run_ranks(leg, 2, str(tmp_path / "whole"), stage, range(4), settings)[0]
    assert run_ranks(leg, 2, str(tmp_path / "first"), stage, range(2, 4), settings)[0] == expected[2:]
    for ours, theirs in zip(weights_of(tmp_path / "first"), weights_of(tmp_path / "whole"), strict=True):
        assert ours["passes"].item() == 4
        assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def averages(world: World, stage: int, precision: str) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """The weights after each of four steps, by name, and the engine's average of them."""
    engine = new_engine(world, stage, precision)
    seen = [engine.consolidated()]
    for step in range(4):
        losses(engine, world, range(step, step + 1))
        seen.append(engine.consolidated())
    return seen, engine.consolidated(averaged=True)


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "fp32"), (2, "bf16"), (3, "bf16")])
def test_the_average_is_the_recursion_over_the_fp32_weights(stage: int, precision: str) -> None:
    seen, averaged = run_ranks(averages, 2, stage, precision)[0]
    expected = dict(seen[0])
    for updates, weights in enumerate(seen[1:]):
        kept = min(0.9, (1 + updates) / (10 + updates))
        expected = {name: kept * expected[name] + (1 - kept) * weights[name] for name in expected}
    expected["passes"] = seen[-1]["passes"]
    for name, value in expected.items():
        torch.testing.assert_close(averaged[name], value, rtol=1e-6, atol=1e-7, msg=f"{name} at stage {stage}")
    assert any(not torch.equal(averaged[name], seen[-1][name]) for name in averaged)


def skip_one(world: World, stage: int) -> bool:
    """A step that is skipped changes neither weights nor averages."""
    engine = new_engine(world, stage)
    losses(engine, world, range(2))
    before = [piece.values.clone() for piece in engine.snapshot().pieces if piece.kind != "buffer"]
    inputs = tiny.share(tiny.batch(B, seed=5), world.rank, world.size)
    engine.backward(tiny.objective()(engine.forward(inputs), step=5).total)
    engine.step(1e-3, max_norm=1e-6)
    after = [piece.values for piece in engine.snapshot().pieces if piece.kind != "buffer"]
    return all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_skipped_step_changes_neither_weights_nor_moments_nor_averages(stage: int) -> None:
    assert run_ranks(skip_one, 2, stage) == [True, True]


def without_average_then_with(world: World, run: str) -> tuple[bool, list[float]]:
    """A checkpoint without averages, continued with them."""
    plain = new_engine(world, 1, ema_decay=None)
    losses(plain, world, range(1))
    checkpoint.save(Path(run), plain, TrainState(1, B, {}), world=world, keep_last=0)
    engine = new_engine(world, 2)
    folder = checkpoint.newest(Path(run))
    assert folder is not None
    checkpoint.restore(engine, folder)
    weights, averaged = engine.consolidated(), engine.consolidated(averaged=True)
    return all(torch.equal(weights[name], averaged[name]) for name in weights), losses(engine, world, range(1, 2))


def test_an_average_may_begin_at_a_resume_and_starts_from_the_weights(tmp_path: Path) -> None:
    (same, (loss,)), _ = run_ranks(without_average_then_with, 2, str(tmp_path / "run"))
    expected = run_ranks(leg, 2, str(tmp_path / "other"), 1, range(2), {})[0][1]
    assert same and loss == pytest.approx(expected, abs=1e-5)


def back_and_again(world: World, run: str, stage: int) -> tuple[list[float], list[float]]:
    """Two steps after a save, then the same two again after going back in the same process."""
    engine = new_engine(world, stage)
    losses(engine, world, range(2))
    folder = checkpoint.save(Path(run), engine, TrainState(2, 2 * B, {}), world=world, keep_last=0)
    first = losses(engine, world, range(2, 4))
    checkpoint.restore(engine, folder)
    return first, losses(engine, world, range(2, 4))


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_running_engine_can_go_back(tmp_path: Path, stage: int) -> None:
    first, again = run_ranks(back_and_again, 2, str(tmp_path), stage)[0]
    assert again == first


class Canary:
    """Unpickling this runs code: it creates a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


def test_a_file_that_would_run_code_is_refused_and_does_not_run_it(tmp_path: Path) -> None:
    """Even where its hash is right, as in a checkpoint made to look whole."""
    run_ranks(leg, 1, str(tmp_path), 1, range(1), {})
    (shard,) = tmp_path.glob("checkpoints/step-*/shards/*")
    shard.write_bytes(pickle.dumps(Canary(str(tmp_path / "executed"))))
    folder = shard.parent.parent
    record = checkpoint.Record.parse((folder / "state.json").read_text())
    entry = dataclasses.replace(
        record.files["shards/" + shard.name], bytes=shard.stat().st_size, sha256=checkpoint.file_sha256(shard)
    )
    forged = dataclasses.replace(record, files=record.files | {"shards/" + shard.name: entry})
    (folder / "state.json").write_text(forged.dump())
    with pytest.raises(RanksFailed, match="cannot be read as tensors"):
        run_ranks(leg, 1, str(tmp_path), 1, range(1, 2), {})
    assert not (tmp_path / "executed").exists()
