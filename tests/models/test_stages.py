"""At every ZeRO stage heads, locked towers, learning-rate factors, and the losses' own numbers train, save, and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import checkpoint
from pipeline.config import EngineConfig, OptimConfig
from pipeline.config.model import AugmentationConfig, HeadsConfig, ProjectorConfig, TowerConfig
from pipeline.dist import World
from pipeline.models.clip import ClipModel
from tests import tiny
from tests.distributed import run_ranks

B = 12
TERMS: tiny.Terms = {"uniclip": {"init_temperature": 0.011}, "separation": {}}
HEADS = HeadsConfig(AugmentationConfig(encoder_width=8), 1, ProjectorConfig())
LOCKED = TowerConfig(locked=True)


def new_model(seed: int = 0) -> ClipModel:
    """Image tower locked with its projection, text tower at a tenth of the learning rate, new heads on both."""
    text = TowerConfig(lr_scale=0.1, layer_decay=0.5)
    model = tiny.model(seed, TERMS, heads=HEADS, image_tower=LOCKED, text_tower=text)
    model.logit_scale.log_scale.requires_grad = False  # these terms bring their own temperatures
    return model


def new_engine(world: World, stage: int, model: ClipModel) -> Any:
    from pipeline.engine.engine import Engine

    optim = OptimConfig(weight_decay=0.5, grad_clip_norm=None)
    config = EngineConfig(zero_stage=stage, precision="fp32")
    return Engine(model, optim, config, world=world, device=torch.device("cpu"), micro_batch_size=B // world.size)


def steps(engine: Any, world: World, which: range) -> list[float]:
    """This rank's losses; the learning rate is so high that temperatures run into their bounds."""
    engine.train()
    seen = []
    for step in which:
        features = engine.forward(tiny.share(tiny.batch(B, seed=step, num_views=2), world.rank, world.size))
        for name, value in features.scalars.items():
            low, high = (-1.0, 1.0) if "offset" in name else (1.0, 100.0) if name == "scale" else (-4.6052, 0.0)
            assert low - 1e-6 <= value.item() <= high + 1e-4, (name, value.item())
        loss = tiny.objective(TERMS)(features, step=step).total
        engine.backward(loss)
        engine.step(0.05)
        seen.append(loss.item())
    return seen


def train_save_continue(world: World, stage: int, folder: str) -> tuple[list[float], dict[str, Tensor]]:
    engine = new_engine(world, stage, new_model())
    steps(engine, world, range(4))
    weights = engine.consolidated()
    checkpoint.save(Path(folder), engine, checkpoint.TrainState(4, 4 * B, {}), world=world, keep_last=1)
    return steps(engine, world, range(4, 6)), weights


def restore_continue(world: World, stage: int, folder: str) -> list[float]:
    """From other weights, of frozen parameters too: everything comes from the checkpoint."""
    from pipeline.checkpoint.resume import restore

    engine = new_engine(world, stage, new_model(seed=7))
    place = checkpoint.newest(Path(folder))
    assert place is not None
    restore(engine, place)
    return steps(engine, world, range(4, 6))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Weights after four steps in one process at stage 0."""
    weights: dict[str, Tensor] = run_ranks(train_save_continue, 1, 0, str(tmp_path_factory.mktemp("reference")))[0][1]
    return weights


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_everything_trains_saves_and_resumes(stage: int, tmp_path: Path, reference: dict[str, Tensor]) -> None:
    start = new_model().state_dict()
    first, second = run_ranks(train_save_continue, 2, stage, str(tmp_path))
    weights = first[1]
    assert weights.keys() == start.keys()
    for name, weight in weights.items():
        locked = name.startswith(("visual.", "logit_scale", "heads.image.norm", "heads.image.projection"))
        assert torch.equal(weight, start[name]) == locked, name
        torch.testing.assert_close(weight, reference[name], rtol=2e-2, atol=2e-2, msg=name)
    moved = {name: (weights[name] - start[name]).abs().max().item() for name in weights}
    # Adam moves each number by about lr per step: 4 steps of 0.05, and of a tenth and less of it in the text tower.
    assert 0.1 < moved["heads.augmentation.layers.4.weight"] < 0.3
    assert moved["heads.text.projection.weight"] < 0.03
    assert moved["text.token_embedding.weight"] < 0.01
    assert moved["scalars.uniclip_log_tau_II.value"] > 0.01
    assert [first[0], second[0]] == run_ranks(restore_continue, 2, stage, str(tmp_path))


def decay_only(world: World, stage: int) -> dict[str, Tensor]:
    """Three steps whose loss does not depend on the losses' own numbers, at a huge weight decay."""
    engine = new_engine(world, stage, new_model())
    for step in range(3):
        features = engine.forward(tiny.share(tiny.batch(B, seed=step, num_views=2), world.rank, world.size))
        engine.backward(0.0 * sum(value for value in features.scalars.values()) + features.embeddings["text"].sum())  # type: ignore[arg-type]
        engine.step(0.5)
    return engine.consolidated()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_losses_own_numbers_do_not_decay(stage: int) -> None:
    start, after = new_model().state_dict(), run_ranks(decay_only, 2, stage)[0]
    scalars = [name for name in start if name.startswith("scalars.")]
    assert len(scalars) == 3
    for name in scalars:
        assert torch.equal(after[name], start[name]), name
    assert not torch.equal(after["text.token_embedding.weight"], start["text.token_embedding.weight"])


def caption(world: World, stage: int) -> tuple[list[float], dict[str, Tensor]]:
    from tests.models.test_captioning import INLINE
    from tests.models.test_captioning import TERMS as CAPTIONING

    engine = new_engine(world, stage, tiny.model(terms=CAPTIONING, inline=INLINE))
    seen = []
    for step in range(3):
        features = engine.forward(tiny.share(tiny.batch(B, seed=step), world.rank, world.size))
        loss = tiny.objective(CAPTIONING)(features, step=step).total
        engine.backward(loss)
        engine.step(1e-3)
        seen.append(loss.item())
    return seen, engine.consolidated()


def test_captioning_models_train_alike_sharded_and_whole() -> None:
    ((whole, weights),) = run_ranks(caption, 1, 0)
    (first, sharded), (second, _) = run_ranks(caption, 2, 3)
    torch.testing.assert_close(torch.tensor([first, second]).mean(dim=0), torch.tensor(whole), rtol=1e-4, atol=1e-4)
    for name, weight in weights.items():
        torch.testing.assert_close(sharded[name], weight, rtol=1e-3, atol=3e-4, msg=name)
