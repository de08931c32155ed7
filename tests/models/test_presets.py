"""Every configuration that ships trains on real images and captions: a falling loss, finite gradients, no dead parameter.

Towers are tiny here, and what a run would start from is left out; views, heads, and losses are the configuration's own.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.__main__ import main as shards
from pipeline import config
from pipeline.config import ModelConfig, RunConfig
from pipeline.config.model import TowerConfig
from pipeline.data import tokenizer
from pipeline.data.augment import normalise
from pipeline.data.loader import train_batches
from pipeline.data.views import VIEW_PARAMS
from pipeline.engine.parameters import parameter_groups
from pipeline.features import Features, Inputs
from pipeline.losses import Objective
from pipeline.models import clip, towers
from tests import tiny

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT: dict[str, Any] = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32}
RESNET: dict[str, Any] = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
STEPS, B = 12, 16


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the bundled emoji."""
    folder = tmp_path_factory.mktemp("emoji") / "shards"
    assert shards(["build", "recipe:emoji", str(folder)]) == 0
    return folder / "train"


def tiny_model(model: ModelConfig) -> ModelConfig:
    """The same kind of model, small and from random weights."""
    given = (model.inline or towers.architecture(model))["vision_cfg"]
    vision = RESNET if isinstance(given.get("layers"), list) else {**VIT, "pool_type": given.get("pool_type", "tok")}
    if "timm_model_name" in given:
        vision = {"image_size": 32, "timm_pool": "avg", "timm_proj": "linear", "timm_model_name": given["timm_model_name"]}
    towers_changed = {
        name: dataclasses.replace(getattr(model, name), init_weights=None) for name in ("image_tower", "text_tower")
    }
    inline = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT}
    return dataclasses.replace(model, architecture=None, inline=inline, init_weights=None, **towers_changed)


def parts(cfg: RunConfig) -> tuple[Objective, clip.ClipModel]:
    torch.manual_seed(0)
    objective = Objective(cfg.objective, seed=cfg.seed, total_steps=STEPS)
    objective.check(clip.domains(len(cfg.augment.views), cfg.model))
    model = clip.build(tiny_model(cfg.model), cfg.objective, objective.scalars(), num_view_params=len(VIEW_PARAMS))
    return objective, model.train()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_preset_trains(path: Path, emoji: Path) -> None:
    cfg = config.load(path, [f"data.train={emoji}", "data.workers_per_rank=0"])
    objective, model = parts(cfg)
    batches = train_batches(
        cfg.data,
        cfg.augment,
        image_size=model.image_size,
        tokenizer=tokenizer.build(towers.architecture(tiny_model(cfg.model))),
        world_rank=0,
        world_size=1,
        global_batch_size=B,
        seed=0,
        start_step=0,
        total_steps=2,
    )
    optimizer = torch.optim.AdamW(parameter_groups(model, cfg.optim), lr=2e-3)
    losses, moved = [], set()
    for step, batch in zip(range(STEPS), itertools.cycle(list(batches)), strict=False):
        pixels = normalise(batch.image_VBCHW, cfg.model.image_mean, cfg.model.image_std)
        features = model(*Inputs(pixels, batch.tokens_BL, batch.group_B, batch.view_params_VBK))
        loss = objective(features, step=step, epoch=0).total
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                assert parameter.grad.isfinite().all(), name
                moved |= {name} if parameter.grad.any() else set()
        optimizer.step()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses))
    assert sum(losses[-2:]) < sum(losses[:2]), losses
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == moved


def test_there_are_presets_for_every_paper() -> None:
    names = {path.stem for path in CONFIGS}
    papers = {"uniclip", "cuaxu_finetune", "m3mix_finetune"}
    papers |= {f"latent_structures_{part}" for part in ("separation", "bridge", "consistency")}
    assert {f"{paper}_emoji" for paper in papers} | papers - {"uniclip"} <= names
    assert {"uniclip_yfcc15m_vitb32", "two_encoders_emoji", "clip_emoji"} <= names


def test_locks_and_factors_survive_being_made_tiny() -> None:
    given = ModelConfig(architecture="RN50", image_tower=TowerConfig(init_weights="x", locked=True))
    assert tiny_model(given).image_tower == TowerConfig(locked=True)


@pytest.mark.parametrize(("weight", "parts"), [(1.0, True), (0.7, True), (0.3, False), (0.0, False)])
def test_from_narrow_cones_cross_uniformity_over_one_half_drives_the_modalities_apart(weight: float, parts: bool) -> None:
    """Why the small CUAXU preset ramps it: docs/uniclip.md derives the threshold."""
    image, text = (
        (
            torch.nn.functional.one_hot(torch.tensor(axis), 32) + 1e-3 * torch.randn(16, 32, generator=torch.manual_seed(axis))
        ).float()
        for axis in (0, 1)
    )
    nearer = torch.zeros((), requires_grad=True)
    moved = torch.nn.functional.normalize(text + nearer * image, dim=1)
    features = Features(
        {"image": torch.nn.functional.normalize(image, dim=1), "text": moved}, {"scale": torch.tensor(100.0)}, torch.arange(16)
    )
    terms = {"uniformity": {}, "alignment": {}, "cross_uniformity": {"weight": weight}}
    (slope,) = torch.autograd.grad(tiny.objective(terms)(features, step=0).total, nearer)
    assert slope.item() == pytest.approx(4 * weight - 2, abs=0.02) and (slope.item() > 0) == parts
