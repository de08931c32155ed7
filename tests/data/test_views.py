"""Parameters of views: drawn independently of each other, within the asked-for ranges, and told to the model as numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipeline.config import ViewConfig
from pipeline.data.plan import sample_rng
from pipeline.data.views import DRAWS, JITTER, VIEW_PARAMS, ViewParams, draw_views, vector
from tests.data.test_augment import EVERYTHING, STRONG


def drawn(n: int, *recipes: ViewConfig, width: int = 200, height: int = 160) -> tuple[ViewParams, ...]:
    return draw_views(recipes, width, height, sample_rng(5, 0, str(n)))


def test_switching_one_augmentation_on_leaves_the_others_alone():
    plain = dataclasses.replace(STRONG, grayscale_probability=0.0, flip_probability=0.0, blur_probability=0.0)
    for n in range(20):
        (with_all,), (without,) = drawn(n, STRONG), drawn(n, plain)
        assert without == dataclasses.replace(with_all, grayscale=False, flip=False, blur_sigma=0.0)


def test_a_further_view_leaves_the_first_ones_alone():
    for n in range(20):
        assert drawn(n, EVERYTHING, STRONG, STRONG)[:2] == drawn(n, EVERYTHING, STRONG)
        assert len({view.box for view in drawn(n, STRONG, STRONG, STRONG)}) == 3, "each is drawn for itself"


def test_as_many_numbers_are_used_whatever_the_recipe():
    rng = sample_rng(0, 0, "a")
    draw_views([EVERYTHING, STRONG], 50, 40, rng)
    other = sample_rng(0, 0, "a")
    other.random(2 * DRAWS)
    assert rng.random() == other.random()


def test_drawn_parameters_have_the_asked_for_ranges_and_rates():
    views = [drawn(n, STRONG)[0] for n in range(3000)]
    sides = np.array([(right - left, lower - upper) for left, upper, right, lower in (view.box for view in views)])
    areas, ratios = sides.prod(1) / (200 * 160), sides[:, 0] / sides[:, 1]
    assert all(0 <= left < right <= 200 and 0 <= upper < lower <= 160 for left, upper, right, lower in (v.box for v in views))
    assert 0.075 <= areas.min() < 0.1
    assert 0.9 < areas.max() <= 1
    assert 0.73 < ratios.min() < 0.78
    assert 1.28 < ratios.max() < 1.37
    rates = np.mean([(v.flip, bool(v.jitter), v.grayscale, v.blur_sigma > 0, v.solarise is not None) for v in views], axis=0)
    assert rates.tolist() == pytest.approx([0.5, 0.8, 0.2, 0.5, 0.2], abs=0.03)
    for name in ("brightness", "contrast", "saturation"):
        values = [getattr(view, name) for view in views]
        assert 0.6 <= min(values) < 0.62
        assert 1.38 < max(values) <= 1.4
    assert -0.1 <= min(view.hue for view in views) < -0.095
    sigmas = [view.blur_sigma for view in views if view.blur_sigma]
    assert 0.1 <= min(sigmas) < 0.15
    assert 1.95 < max(sigmas) <= 2


def test_jitter_orders_are_equally_likely_and_fixed_unless_asked_for():
    orders = [view.jitter_order for n in range(2400) for view in drawn(n, STRONG) if view.jitter]
    counts = {order: orders.count(order) for order in set(orders)}
    assert len(counts) == 24
    assert max(counts.values()) < 2 * min(counts.values())
    fixed = dataclasses.replace(STRONG, jitter_order="fixed")
    assert {view.jitter_order for n in range(50) for view in drawn(n, fixed)} == {(0, 1, 2, 3)}


def test_jitter_names_what_changes_in_its_order():
    view = ViewParams((10, 10), (0, 0, 10, 10), brightness=1.2, hue=-0.1, jitter_order=(3, 1, 0, 2))
    assert view.jitter == [("hue", -0.1), ("brightness", 1.2)]
    assert [*JITTER] == ["brightness", "contrast", "saturation", "hue"]


@pytest.mark.parametrize(("width", "height"), [(400, 10), (10, 400), (1, 1), (1, 3)])
def test_crops_of_extreme_pictures_stay_inside(width, height):
    for n in range(50):
        left, upper, right, lower = drawn(n, ViewConfig(), width=width, height=height)[0].box
        assert 0 <= left < right <= width
        assert 0 <= upper < lower <= height


def test_nothing_done_is_a_vector_of_zeros():
    assert not vector(ViewParams((640, 480), (0, 0, 640, 480))).any()


def test_every_entry_of_the_vector_says_what_its_name_does():
    view = ViewParams(
        (200, 100),
        (50, 10, 150, 90),
        flip=True,
        brightness=1.25,
        contrast=0.75,
        saturation=1.5,
        hue=-0.125,
        grayscale=True,
        blur_sigma=1.5,
        solarise=0.5,
    )
    said = dict(zip(VIEW_PARAMS, vector(view).tolist(), strict=True))
    expected = {"crop": 1, "top": 0.1, "left": 0.25, "height": -0.2, "width": -0.5, "flip": 1, "jitter": 1, "brightness": 0.25}
    expected |= {"contrast": -0.25, "saturation": 0.5, "hue": -0.25, "grayscale": 1, "blur": 1, "blur_sigma": 0.75}
    assert said == pytest.approx({**expected, "solarise": 1, "solarise_threshold": 0.5}, abs=1e-7)
    assert np.abs([vector(view) for n in range(300) for view in drawn(n, EVERYTHING, STRONG)]).max() <= 1


def test_changing_one_operation_changes_its_own_entries_only():
    plain = ViewParams((200, 100), (0, 0, 200, 100))
    changes = {
        "box": ((0, 0, 100, 100), {"crop", "width"}),
        "flip": (True, {"flip"}),
        "hue": (0.1, {"jitter", "hue"}),
        "grayscale": (True, {"grayscale"}),
        "blur_sigma": (1.0, {"blur", "blur_sigma"}),
        "solarise": (0.5, {"solarise", "solarise_threshold"}),
    }
    for field, (value, expected) in changes.items():
        numbers = vector(dataclasses.replace(plain, **{field: value}))
        assert {name for name, number in zip(VIEW_PARAMS, numbers, strict=True) if number} == expected
