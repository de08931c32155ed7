"""The weighted sum: what is switched off is not there, mistakes are explained, degenerate batches have defined losses."""

from __future__ import annotations

import math
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
from pipeline.losses.objective import Losses, gradient_norms
from pipeline.losses.terms import TERMS
from pipeline.schedule import weight_at
from tests import tiny
from tests.distributed import RanksFailed, run_ranks

PRESETS = sorted(Path("configs/objectives").glob("*.yaml"))


def features(size: int = 8, group: Tensor | None = None, dtype: torch.dtype = torch.float32, **scalars: float) -> Features:
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randn(size, 6, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]
    embeddings = {name: F.normalize(r, dim=1).requires_grad_() for name, r in zip(("image", "text"), rows, strict=True)}
    numbers = {"scale": 10.0, "siglip_bias": -10.0, "uniclip_log_tau_IT": math.log(0.07), **scalars}
    return Features(
        embeddings,
        {k: torch.tensor(v, dtype=dtype) for k, v in numbers.items()},
        torch.arange(size) if group is None else group,
    )


def losses(terms: tiny.Terms, given: Features, **at: Any) -> Losses:
    return Objective(ObjectiveConfig(terms=terms), seed=0, total_steps=10)(
        given, step=at.get("step", 0), epoch=at.get("epoch", 0)
    )


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
        ({}, "objective.terms is empty; name at least one of: alignment, brownian_bridge, clip"),
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


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"simclr": {}}, "objective.terms.simclr: needs image_2; this model makes: image, text"),
        ({"uniclip": {}}, "objective.terms.uniclip: image_image: own needs image_2; use tie or drop"),
    ],
)
def test_a_term_without_the_views_it_needs_says_so(terms: tiny.Terms, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Objective(ObjectiveConfig(terms=terms), seed=0, total_steps=1).check(("image", "text"))


SINGLE_VIEW: tiny.Terms = {
    name: ({"image_image": "tie", "text_text": "tie"} if name == "uniclip" else {})
    for name in sorted(TERMS)
    if set(TERMS[name].needs) <= {"image", "text"}
}


@pytest.mark.parametrize("name", SINGLE_VIEW)
@pytest.mark.parametrize(("size", "groups"), [(1, [0]), (4, [7, 7, 7, 7]), (3, [0, 1, 0])])
def test_degenerate_batches_have_finite_losses_and_gradients(name: str, size: int, groups: list[int]) -> None:
    given = features(size, torch.tensor(groups))
    losses({name: SINGLE_VIEW[name]}, given).total.backward()
    assert all(t.grad is None or t.grad.isfinite().all() for t in given.embeddings.values())


@pytest.mark.parametrize("name", SINGLE_VIEW)
def test_coincident_opposite_and_zero_rows_are_finite(name: str) -> None:
    given = features(4)
    image = torch.stack([torch.eye(6)[0], torch.eye(6)[0], -torch.eye(6)[0], torch.zeros(6)]).requires_grad_()
    text = torch.eye(6)[0].repeat(4, 1).requires_grad_()
    total = losses({name: SINGLE_VIEW[name]}, given._replace(embeddings={"image": image, "text": text})).total
    total.backward()
    assert total.isfinite() and image.grad is not None and image.grad.isfinite().all()


@pytest.mark.parametrize("name", SINGLE_VIEW)
def test_a_nan_is_never_hidden(name: str) -> None:
    """The training loop stops on a loss that is not finite; a term that swallowed a NaN would let it through."""
    given = features(4)
    image = given.embeddings["image"].detach().clone()
    image[1] = float("nan")
    total = losses({name: SINGLE_VIEW[name]}, given._replace(embeddings={**given.embeddings, "image": image})).total
    assert total.isnan()


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


def unequal(world: World) -> None:
    losses({"clip": {}}, features(3 + world.rank))


def test_unequal_batches_stop_every_rank_with_the_sizes() -> None:
    with pytest.raises(RanksFailed, match=r"(?s)rank 0.*between 3 and 4 samples.*rank 1.*between 3 and 4 samples"):
        run_ranks(unequal, 2)


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


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_build(path: Path) -> None:
    tree = strict.read_yaml(path)
    cfg = strict.build(config.ObjectiveConfig, tree["objective"], "objective")
    assert Objective(cfg, seed=0, total_steps=1).scalars() is not None


def test_there_is_a_preset_per_paper_and_their_combination() -> None:
    assert {path.stem for path in PRESETS} == {
        "clip",
        "siglip",
        "cua",
        "cuaxu",
        "latent_structures",
        "m2_mix",
        "m3_mix",
        "uniclip",
        "all",
    }
