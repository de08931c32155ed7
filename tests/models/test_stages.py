"""At every ZeRO stage heads, locked towers, learning-rate factors, averages, and the losses' own numbers train, save, resume,
are evaluated and exported."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from pipeline import checkpoint
from pipeline.config import EngineConfig, ModelConfig, OptimConfig, dump, from_tree
from pipeline.config.model import AugmentationConfig, HeadsConfig, ProjectorConfig, TowerConfig
from pipeline.dist import World
from pipeline.eval.target import load
from pipeline.export import export
from pipeline.models.clip import ClipModel
from tests import tiny
from tests.distributed import run_ranks

B = 12
TERMS: tiny.Terms = {"uniclip": {"init_temperature": 0.011}, "separation": {}}
HEADS = HeadsConfig(AugmentationConfig(encoder_width=8), 1, ProjectorConfig())
INLINE: dict[str, Any] = {**tiny.INLINE, "text_cfg": {**tiny.INLINE["text_cfg"], "vocab_size": 49408}, "custom_text": True}
"""With CLIP's own vocabulary, so that open_clip can read the export."""
MODEL: dict[str, Any] = {
    "inline": INLINE,
    "heads": HEADS,
    "image_tower": TowerConfig(locked=True),
    "text_tower": TowerConfig(lr_scale=0.1, layer_decay=0.5),
}
DECAY = 0.9


def new_model(seed: int = 0) -> ClipModel:
    """Image tower locked with its projection, text tower at a tenth of the learning rate, new heads on both."""
    model = tiny.model(seed, TERMS, **MODEL)
    model.logit_scale.log_scale.requires_grad = False  # these terms bring their own temperatures
    return model


def new_engine(world: World, stage: int, model: ClipModel) -> Any:
    from pipeline.engine.engine import Engine

    optim = OptimConfig(weight_decay=0.5, grad_clip_norm=None)
    config = EngineConfig(zero_stage=stage, precision="fp32", ema_decay=DECAY)
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


def train_save_continue(
    world: World, stage: int, folder: str
) -> tuple[list[float], list[dict[str, Tensor]], dict[str, Tensor]]:
    """Losses after the save, the weights before each of four steps and after them, and their average there."""
    engine = new_engine(world, stage, new_model())
    seen = [engine.consolidated()]
    for step in range(4):
        steps(engine, world, range(step, step + 1))
        seen.append(engine.consolidated())
    averaged = engine.consolidated(averaged=True)
    checkpoint.save(Path(folder), engine, checkpoint.TrainState(4, 4 * B, {}), world=world, keep_last=1)
    return steps(engine, world, range(4, 6)), seen, averaged


def restore_continue(world: World, stage: int, folder: str) -> tuple[list[float], dict[str, Tensor]]:
    """From other weights, of frozen parameters too: everything comes from the checkpoint. Losses, and the average there."""
    from pipeline.checkpoint.resume import restore

    engine = new_engine(world, stage, new_model(seed=7))
    place = checkpoint.newest(Path(folder))
    assert place is not None
    restore(engine, place)
    averaged = engine.consolidated(averaged=True)
    return steps(engine, world, range(4, 6)), averaged


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Weights after four steps in one process at stage 0."""
    weights: dict[str, Tensor] = run_ranks(train_save_continue, 1, 0, str(tmp_path_factory.mktemp("reference")))[0][1][-1]
    return weights


def average(seen: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What the average of the weights ``seen`` must be: the recursion that docs/checkpoints.md states."""
    expected = dict(seen[0])
    for updates, weights in enumerate(seen[1:]):
        kept = min(DECAY, (1 + updates) / (10 + updates))
        expected = {name: kept * expected[name] + (1 - kept) * weights[name] for name in expected}
    return expected


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_everything_trains_saves_and_resumes(stage: int, tmp_path: Path, reference: dict[str, Tensor]) -> None:
    start = new_model().state_dict()
    first, second = run_ranks(train_save_continue, 2, stage, str(tmp_path))
    continued, seen, averaged = first
    weights = seen[-1]
    assert weights.keys() == averaged.keys() == start.keys()
    expected = average(seen)
    for name, weight in weights.items():
        locked = name.startswith(("visual.", "logit_scale", "heads.image.norm", "heads.image.projection"))
        assert torch.equal(weight, start[name]) == torch.equal(averaged[name], start[name]) == locked, name
        torch.testing.assert_close(weight, reference[name], rtol=2e-2, atol=2e-2, msg=name)
        torch.testing.assert_close(averaged[name], expected[name], rtol=1e-6, atol=1e-6, msg=name)
    moved = {name: (weights[name] - start[name]).abs().max().item() for name in weights}
    # Adam moves each number by about lr per step: 4 steps of 0.05, and of a tenth and less of it in the text tower.
    assert 0.1 < moved["heads.augmentation.layers.4.weight"] < 0.3
    assert moved["heads.text.projection.weight"] < 0.03
    assert moved["text.token_embedding.weight"] < 0.01
    assert moved["scalars.uniclip_log_tau_II.value"] > 0.01
    again, other = run_ranks(restore_continue, 2, stage, str(tmp_path))
    assert [continued, second[0]] == [again[0], other[0]]
    assert all(torch.equal(again[1][name], tensor) for name, tensor in averaged.items())
    check_evaluated_and_exported(tmp_path, weights, averaged)


def check_evaluated_and_exported(run: Path, weights: dict[str, Tensor], averaged: dict[str, Tensor]) -> None:
    """Both sets of weights of the run's checkpoint, as evaluation reads them and as open_clip reads their exports."""
    tree = {"name": run.name, "runs_dir": str(run.parent), "data": {"train": "shards"}, "objective": {"terms": TERMS}}
    tree["train"] = {"steps": 4, "global_batch_size": B}
    tree["optim"] = {"warmup_steps": 0}
    cfg = from_tree({**tree, "model": {"inline": INLINE}})
    (run / "config.yaml").write_text(dump(dataclasses.replace(cfg, model=ModelConfig(**MODEL))))
    (image,), tokens, *_ = tiny.batch(5)
    seen = []
    for state, choose in ((weights, False), (averaged, True)):
        trained = new_model(seed=5).eval()
        trained.load_state_dict(state)
        evaluated = load(run, torch.device("cpu"), averaged=choose).subject.model
        report = export(run, run.parent / f"{run.name}-{choose}", averaged=choose)
        assert report["averaged"] == choose
        theirs = open_clip.create_model(f"local-dir:{run.parent / f'{run.name}-{choose}'}").eval()
        with torch.no_grad():
            ours = torch.cat([trained.encode_image(image), trained.encode_text(tokens)])
            assert torch.equal(torch.cat([evaluated.encode_image(image), evaluated.encode_text(tokens)]), ours)
            exported = torch.cat([theirs.encode_image(image, normalize=True), theirs.encode_text(tokens, normalize=True)])
        torch.testing.assert_close(exported, ours, rtol=0, atol=1e-5)
        seen.append(ours)
    assert (seen[0] - seen[1]).abs().max() > 1e-3


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
