"""The weighted sum: what is switched off is not there, mistakes are explained, rounding stays within its bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import config, strict
from pipeline.config import ObjectiveConfig, WeightConfig
from pipeline.dist import World
from pipeline.errors import ConfigError
from pipeline.features import Features
from pipeline.losses import Objective, reference
from pipeline.losses.objective import gradient_norms
from pipeline.schedule import weight_at
from tests import tiny
from tests.distributed import run_ranks
from tests.losses.small import SINGLE_VIEW, VIEWS, features, losses

PRESETS = sorted(Path("configs/objectives").glob("*.yaml"))


def grads(terms: tiny.Terms) -> list[Tensor]:
    given = features()
    losses(terms, given).total.backward()
    return [t.grad for t in given.embeddings.values() if t.grad is not None]


def test_the_total_is_the_weighted_sum_of_the_terms() -> None:
    found = losses({"clip": {"weight": 2.0}, "alignment": {"weight": 0.5}}, features())
    torch.testing.assert_close(found.total, 2.0 * found.terms["clip"] + 0.5 * found.terms["alignment"])
    assert found.weights == {"clip": 2.0, "alignment": 0.5}


def test_weight_zero_is_bit_for_bit_the_run_without_the_term() -> None:
    without, zero = grads({"clip": {}}), grads({"clip": {}, "uniformity": {"weight": 0.0}, "m2_mix": {"weight": 0.0}})
    assert all(a.equal(b) for a, b in zip(without, zero, strict=True))
    assert list(losses({"clip": {}, "uniformity": {"weight": 0.0}}, features()).terms) == ["clip"]


def test_a_step_in_which_every_weight_is_zero_changes_nothing() -> None:
    given = features()
    found = losses({"clip": {"weight": 0.0}}, given)
    found.total.backward()
    assert found.total.item() == 0 and found.terms == {}
    assert all(t.grad is not None and not t.grad.any() for t in given.embeddings.values())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [2.0] * 5), ("linear", [2.0, 1.5, 1.0, 0.5, 0.0]), ("cosine", [2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5, 0.0])],
)
def test_schedules_over_a_run_of_five_steps(schedule: Any, expected: list[float]) -> None:
    cfg = WeightConfig(weight=2.0, schedule=schedule)
    assert [weight_at(step, cfg=cfg, epoch=0, total_steps=5) for step in range(5)] == pytest.approx(expected)


def test_schedule_by_epoch() -> None:
    cfg = WeightConfig(weight=2.0, schedule="inverse_epoch")
    assert [weight_at(0, cfg=cfg, epoch=epoch, total_steps=5) for epoch in range(3)] == [2.0, 1.0, 2 / 3]


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, "objective.terms is empty; name at least one of: alignment, brownian_bridge, captioning, clip"),
        ({"uniformty": {}}, "objective.terms.uniformty: unknown key 'uniformty'; did you mean 'uniformity'"),
        (
            {"clip": {"smoothing": 0.1}},
            "objective.terms.clip.smoothing: unknown key 'smoothing'; did you mean 'label_smoothing'",
        ),
        ({"clip": {"weight": "high"}}, "objective.terms.clip.weight = 'high': expected float"),
        ({"uniclip": {"form": "nce"}}, "objective.terms.uniclip.form = 'nce': must be one of mp_nce, mil_nce, supcon"),
    ],
)
def test_mistakes_in_the_configuration_are_explained(terms: tiny.Terms, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Objective(ObjectiveConfig(terms=terms), seed=0, total_steps=1)


def test_gradient_norms_are_those_of_each_weighted_term() -> None:
    given = features()
    found = losses({"clip": {"weight": 2.0}, "uniformity": {}}, given)
    norms = gradient_norms(found, given)
    for name in norms:
        (alone,) = [losses({name: {"weight": found.weights[name]}}, given)]
        parts = torch.autograd.grad(alone.total, list(given.embeddings.values()))
        assert norms[name] == pytest.approx(float(torch.stack([part.norm() for part in parts]).norm()), rel=1e-5)


def norms_on_ranks(world: World) -> dict[str, float]:
    given = features(12)
    rows = slice(world.rank * 12 // world.size, (world.rank + 1) * 12 // world.size)
    local = {name: t.detach()[rows].requires_grad_() for name, t in given.embeddings.items()}
    part = Features(local, given.scalars, given.group_b[rows])
    return gradient_norms(losses({"clip": {}, "uniformity": {}}, part), part)


def test_gradient_norms_do_not_depend_on_the_world_size() -> None:
    (alone,) = run_ranks(norms_on_ranks, 1)
    for found in run_ranks(norms_on_ranks, 3):
        assert found == pytest.approx(alone, rel=1e-5)


def trained_pairs() -> tuple[Tensor, Tensor]:
    """Pairs that lie as close as after training: at scale 100 their loss is a few hundredths."""
    generator = torch.Generator().manual_seed(1)
    image, noise = (torch.randn(256, 128, generator=generator) for _ in range(2))
    return F.normalize(image, dim=1), F.normalize(image + 3.3 * noise, dim=1)


def with_bf16_columns(world: World, scale: float) -> Tensor:
    """Gradient of the images when embeddings travel in bf16."""
    image, text = trained_pairs()
    rows = slice(world.rank * 128, (world.rank + 1) * 128)
    local = {"image": image[rows].requires_grad_(), "text": text[rows].requires_grad_()}
    given = Features(local, {"scale": torch.tensor(scale)}, torch.arange(256)[rows])
    Objective(ObjectiveConfig(gather_dtype="bf16"), seed=0, total_steps=1)(given, step=0).total.backward()
    assert local["image"].grad is not None
    return local["image"].grad / world.size


@pytest.mark.parametrize(("scale", "limit"), [(14.3, 1e-3), (50.0, 3.6e-3), (100.0, 3.6e-3)])
def test_bf16_on_the_wire_stays_within_the_error_of_bf16_inputs(scale: float, limit: float) -> None:
    """Positives are computed from unrounded features, so their large gradients carry no rounding at all."""
    found = torch.cat(run_ranks(with_bf16_columns, 2, scale))
    image, text = (rows.double() for rows in trained_pairs())
    image.requires_grad_()
    reference.info_nce(image, text, torch.tensor(scale, dtype=torch.float64), torch.arange(256)).backward()
    assert image.grad is not None and found.isfinite().all()
    assert float((found - image.grad).norm() / image.grad.norm()) < limit


@pytest.mark.parametrize(("scale", "limit"), [(14.3, 9.0e-5), (50.0, 8.5e-4), (100.0, 3.6e-3)])
def test_bf16_products_err_as_little_as_unrounded_positives_allow(scale: float, limit: float) -> None:
    """B = 2048, d = 512. Rounded positives would be off by 5.5e-3 at scale 100, positives from two sources by 1.1e-1."""
    generator = torch.Generator().manual_seed(1)
    image, noise = (torch.randn(2048, 512, generator=generator) for _ in range(2))
    pairs = F.normalize(image, dim=1), F.normalize(image + 4.3 * noise, dim=1)
    exact = [rows.double().requires_grad_() for rows in pairs]
    reference.info_nce(*exact, torch.tensor(scale, dtype=torch.float64), torch.arange(2048)).backward()
    found = [rows.clone().requires_grad_() for rows in pairs]
    given = Features(dict(zip(VIEWS, found, strict=True)), {"scale": torch.tensor(scale)}, torch.arange(2048))
    Objective(ObjectiveConfig(product_dtype="bf16"), seed=0, total_steps=1)(given, step=0).total.backward()
    truth, ours = (torch.cat([rows.grad for rows in both if rows.grad is not None]) for both in (exact, found))
    assert float((ours - truth).norm() / truth.norm()) < limit


def test_no_step_makes_the_host_wait_for_the_device() -> None:
    """On the meta device there is nothing to read: whatever asks for a number raises."""
    terms: tiny.Terms = {**SINGLE_VIEW, "simclr": {}, "in_modal": {}, "brownian_bridge": {}, "captioning": {}}
    objective = Objective(ObjectiveConfig(terms=terms, product_dtype="bf16"), seed=0, total_steps=10)
    with torch.device("meta"):
        rows = {name: torch.empty(64, 8, requires_grad=True) for name in ("image", "image_2", "text")}
        scalars = {name: torch.empty((), requires_grad=True) for name in ("scale", *objective.scalars())}
        extras = {"caption_logits": torch.empty(64, 5, 9), "caption_labels": torch.empty(64, 5, dtype=torch.int64)}
        objective(Features(rows, scalars, torch.empty(64, dtype=torch.int64), extras), step=3).total.backward()
    assert all(row.grad is not None and row.grad.is_meta for row in rows.values())


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_build(path: Path) -> None:
    tree = strict.read_yaml(path)
    cfg = strict.build(config.ObjectiveConfig, tree["objective"], "objective")
    assert Objective(cfg, seed=0, total_steps=1).scalars() is not None


def test_there_is_a_preset_per_paper_and_their_combination() -> None:
    assert {path.stem for path in PRESETS} == {
        "clip",
        "coca",
        "siglip",
        "cua",
        "cuaxu",
        "latent_structures",
        "m2_mix",
        "m3_mix",
        "uniclip",
        "all",
    }
