"""The recipes of views and captions: the plain case stays flat, further views are recipes, errors name the place."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pipeline import config
from pipeline.config import RunConfig, ViewConfig
from pipeline.errors import ConfigError
from tests.test_config import YAML, tree, write


def built(**augment: Any) -> RunConfig:
    return config.from_tree(tree(augment=augment))


def test_one_view_is_flat_and_further_views_start_from_the_defaults():
    assert len(built().augment.views) == 1
    augment = built(crop_scale=[0.5, 1.0], hue=0.1, more_views=[{"blur_probability": 0.5}, {}]).augment
    assert [view.crop_scale for view in augment.views] == [(0.5, 1.0), (0.9, 1.0), (0.9, 1.0)]
    assert [view.hue for view in augment.views] == [0.1, 0.0, 0.0]
    assert augment.views[1] == ViewConfig(blur_probability=0.5)


def test_views_round_trip_and_can_be_overridden(tmp_path):
    cfg = config.load(
        write(tmp_path, YAML),
        ["augment.more_views=[{hue: 0.1, blur_sigma: [0.1, 2]}]", "augment.text.templates=['a photo of {}.']"],
    )
    assert cfg.augment.views[1].blur_sigma == (0.1, 2.0)
    assert cfg.augment.text.templates == ("a photo of {}.",)
    assert config.load(write(tmp_path, config.dump(cfg))) == cfg


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"flip_probability": 1.5}, "augment.flip_probability = 1.5: must be within [0, 1]"),
        ({"blur_sigma": [0.0, 2.0]}, "augment.blur_sigma = (0.0, 2.0): need 0 < low <= high <= 10"),
        ({"crop_ratio": [2.0, 1.0]}, "augment.crop_ratio = (2.0, 1.0): need 0 < low <= high"),
        ({"more_views": [{}, {"hue": 0.6}]}, "augment.more_views[1].hue = 0.6: must be within [0, 0.5]"),
        ({"more_views": [{"crop_scale": [0, 2]}]}, "augment.more_views[0].crop_scale = (0.0, 2.0): need 0 < low <= high <= 1"),
        (
            {"more_views": [{"solarize_probability": 1}]},
            "unknown key 'solarize_probability'; did you mean 'solarise_probability'?",
        ),
        ({"jitter_order": "shuffled"}, "augment.jitter_order = 'shuffled': must be one of fixed, random"),
        ({"interpolation": "area"}, "augment.interpolation = 'area': must be one of bicubic, bilinear"),
        ({"text": {"delete": 2.0}}, "augment.text.delete = 2.0: must be within [0, 1]"),
        ({"text": {"templates": ["no place"]}}, "augment.text.templates: 'no place' must hold {} once, where the caption goes"),
        ({"text": {"template_probability": 0.5}}, "template_probability = 0.5: give augment.text.templates, or 0"),
    ],
)
def test_wrong_recipes_are_refused_and_named(augment, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        built(**augment)
