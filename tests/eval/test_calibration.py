"""Calibration, intervals and logistic regression: known values, and what an independent judge says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.dist import World
from pipeline.eval import calibration, logistic
from pipeline.eval.intervals import interval
from tests.distributed import run_ranks

ALONE = World()


def test_ece_of_a_worked_example() -> None:
    confidence = torch.tensor([0.95, 0.95, 0.95, 0.95, 0.55, 0.55], dtype=torch.float64)
    right = torch.tensor([1, 1, 1, 0, 0, 1], dtype=torch.float64)
    # (4/6) |3/4 - 0.95| + (2/6) |1/2 - 0.55|
    assert calibration.ece(confidence, right) == pytest.approx(4 / 6 * 0.2 + 2 / 6 * 0.05)
    assert [entry["count"] for entry in calibration.bins(confidence, right)] == [2, 4]


def test_the_edges_belong_to_the_lower_bin() -> None:
    (entry,) = calibration.bins(torch.tensor([1 / 15, 0.01], dtype=torch.float64), torch.tensor([1.0, 0.0]).double())
    assert (entry["from"], entry["count"]) == (0, 2)
    (last,) = calibration.bins(torch.tensor([1.0], dtype=torch.float64), torch.tensor([1.0]).double())
    assert last["from"] == pytest.approx(14 / 15)


def noisy_classes(n: int = 4000, classes: int = 6, scale: float = 20.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows whose labels are drawn from softmax(scale * cosine): at that scale, confidence is right by construction."""
    generator = torch.Generator().manual_seed(0)
    class_Cd = F.normalize(torch.randn(classes, 8, generator=generator, dtype=torch.float64), dim=1)
    image_Nd = F.normalize(torch.randn(n, 8, generator=generator, dtype=torch.float64), dim=1)
    label_N = torch.multinomial((scale * image_Nd @ class_Cd.T).softmax(dim=1), 1, generator=generator).squeeze(1)
    return image_Nd, class_Cd, label_N


def test_the_scale_that_made_the_labels_is_found_and_is_calibrated() -> None:
    found = calibration.measure(*noisy_classes(scale=4.0), 40.0, ALONE)
    assert found["fitted_scale"] == pytest.approx(4.0, rel=0.1)
    assert found["ece"] > 0.2, "ten times too sure"
    assert found["ece_fitted"] < 0.05
    assert found["nll_fitted"] < found["nll_judged"]
    assert sum(entry["count"] for entry in found["bins"]) == 4000


def test_certain_and_right_is_zero_everywhere() -> None:
    rows = torch.eye(6, dtype=torch.float64)
    found = calibration.measure(rows, rows, torch.arange(6), 100.0, ALONE)
    assert (found["ece"], found["nll"]) == (0.0, 0.0)


def in_a_world(world: World) -> dict[str, object]:
    return calibration.measure(*noisy_classes(n=301), 12.0, world)


def test_the_number_of_ranks_changes_nothing() -> None:
    alone = calibration.measure(*noisy_classes(n=301), 12.0, ALONE)
    assert run_ranks(in_a_world, 2) == [alone, alone]


def test_an_interval_covers_what_it_should() -> None:
    """Of 200 sets drawn at a rate of 0.3, about 95 % have an interval that holds 0.3."""
    rng = np.random.default_rng(0)
    held = sum(low <= 0.3 <= high for low, high in (interval(rng.random(300) < 0.3, rounds=400) for _ in range(200)))
    assert 180 <= held <= 199


def test_captions_of_one_image_are_no_independent_draws() -> None:
    hits = np.repeat([5, 0], 50)  # each image: all five captions found, or none
    together = interval(hits, np.full(100, 5))
    apart = interval(np.repeat([1, 0], 250))
    assert together[1] - together[0] > 2 * (apart[1] - apart[0])
    assert interval([1, 1, 1]) == [1.0, 1.0]


def test_logistic_regression_is_at_its_minimum() -> None:
    """The gradient of the stated objective is zero there, and a known one-dimensional case comes out."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 5, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 3, (80,), generator=generator)
    weights = logistic.fit(x, label, 3, regularisation=0.7)
    slope, intercept = (part.clone().requires_grad_() for part in weights)
    loss = 0.5 * slope.square().sum() + 0.7 * F.cross_entropy(x @ slope + intercept, label, reduction="sum")
    for gradient in torch.autograd.grad(loss, [slope, intercept]):
        assert float(gradient.abs().max()) < 1e-5
    balanced = logistic.fit(torch.zeros(10, 2), torch.tensor([0] * 8 + [1] * 2), 2, 1.0)
    assert float(balanced.intercept_C[0] - balanced.intercept_C[1]) == pytest.approx(math.log(4), abs=1e-5)
    assert logistic.predict(balanced, torch.zeros(3, 2)).tolist() == [0, 0, 0]
