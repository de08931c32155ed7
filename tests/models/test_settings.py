"""Settings of the model that cannot work are refused before anything is built, with what to change."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline import config
from pipeline.errors import ConfigError
from tests import tiny

RUN: dict[str, Any] = {
    "name": "x",
    "data": {"train": "shards"},
    "train": {"steps": 1, "global_batch_size": 2},
    "optim": {"warmup_steps": 0},
}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"inline": tiny.INLINE, "architecture": "RN50"}, "exactly one of architecture, inline"),
        (
            {"text_tower": {"unlocked_groups": 2}},
            r"text_tower.unlocked_groups = 2: nothing is locked; set model.text_tower.locked",
        ),
        ({"image_tower": {"layer_decay": 1.5}}, r"model.image_tower.layer_decay = 1.5: must be within"),
        ({"image_tower": {"lr_scale": 0}}, r"model.image_tower.lr_scale = 0.0: must be positive"),
        ({"heads": {"augmentation": {"blocks": 0}}}, "blocks, layers and widths must be at least 1, got AugmentationConfig"),
        ({"heads": {"independent": {"layers": 0}}}, "layers and widths of a head must be at least 1"),
        ({"heads": {"text_blocks": -1}}, "model.heads.text_blocks = -1: must be at least 0"),
        ({"heads": {"augmentation": {"form": "affin"}}}, r"must be one of mlp, affine \(did you mean 'affine'\?\)"),
        ({"heads": {"independant": {}}}, "did you mean 'independent'"),
        ({"second_tower": "image", "heads": {"text_blocks": 1}}, "is a control with plain projections"),
    ],
)
def test_settings_that_cannot_work(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.from_tree({**RUN, "model": {"inline": tiny.INLINE, **model}})


def test_an_empty_group_asks_for_a_head_with_its_defaults_and_none_for_no_head() -> None:
    model = config.from_tree({**RUN, "model": {"inline": tiny.INLINE, "heads": {"augmentation": {}, "projector": None}}}).model
    assert model.heads.augmentation is not None and model.heads.augmentation.form == "mlp"
    assert model.heads.projector is None
