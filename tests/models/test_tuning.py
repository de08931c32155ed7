"""Locked towers and learning rates: which parameters move, how fast, and the table that says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.config import OptimConfig
from pipeline.config.model import AugmentationConfig, HeadsConfig, TowerConfig
from pipeline.engine.parameters import describe, parameter_groups
from pipeline.models import tuning
from tests import tiny

DEEP: dict[str, Any] = {
    **tiny.INLINE,
    "vision_cfg": {**tiny.INLINE["vision_cfg"], "layers": 2},
    "text_cfg": {**tiny.INLINE["text_cfg"], "layers": 3},
}
RESNET: dict[str, Any] = {**tiny.INLINE, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}}
TIMM: dict[str, Any] = {
    **tiny.INLINE,
    "vision_cfg": {"timm_model_name": "efficientnet_lite0", "timm_pool": "avg", "image_size": 32},
}


def groups(inline: dict[str, Any], **changes: Any) -> dict[str, int]:
    return {name: group for name, (_, group) in tuning.layer_groups(tiny.model(inline=inline, **changes)).items()}


def test_layer_groups_from_the_input_to_the_projection() -> None:
    found = groups(DEEP)
    for name, group in {
        "visual.conv1.weight": 0,
        "visual.class_embedding": 0,
        "visual.ln_pre.weight": 0,
        "visual.transformer.resblocks.1.mlp.c_fc.weight": 2,
        "visual.ln_post.bias": 2,
        "visual.proj": 3,
        "text.token_embedding.weight": 0,
        "text.transformer.resblocks.0.ln_1.weight": 1,
        "text.ln_final.weight": 3,
        "text.text_projection": 4,
    }.items():
        assert found[name] == group, name
    assert set(found) == {name for name, _ in tiny.model(inline=DEEP).named_parameters()} - {"logit_scale.log_scale"}


def test_layer_groups_of_other_towers() -> None:
    found = groups(RESNET)
    assert [
        found[f"visual.{name}"] for name in ("conv1.weight", "bn3.bias", "layer1.0.bn1.weight", "layer4.0.conv1.weight")
    ] == [
        0,
        0,
        1,
        4,
    ]
    assert found["visual.attnpool.c_proj.weight"] == found["visual.attnpool.positional_embedding"] == 5
    found = groups(TIMM)
    trunk = [
        found[f"visual.trunk.{name}.weight"] for name in ("conv_stem", "blocks.0.0.conv_dw", "blocks.6.0.conv_pw", "conv_head")
    ]
    assert trunk == sorted(trunk) and trunk[0] == 0
    assert found["visual.head.proj.weight"] == max(trunk) + 1


def test_projections_that_moved_into_heads_keep_their_group() -> None:
    heads = HeadsConfig(augmentation=AugmentationConfig(encoder_width=8), text_blocks=1)
    found = groups(DEEP, heads=heads)
    assert found["heads.image.projection.weight"] == 3 and found["heads.image.norm.weight"] == 2
    assert not any("augmentation" in name or ".blocks." in name.replace("resblocks", "") for name in found)


def trainable(**changes: Any) -> set[str]:
    return {name for name, p in tiny.model(inline=DEEP, **changes).named_parameters() if p.requires_grad}


def test_locked_towers() -> None:
    everything = trainable()
    locked = trainable(image_tower=TowerConfig(locked=True))
    assert everything - locked == {name for name in everything if name.startswith("visual.")}
    but_projection = trainable(image_tower=TowerConfig(locked=True, unlocked_groups=1))
    assert but_projection - locked == {"visual.proj"}
    but_block = trainable(text_tower=TowerConfig(locked=True, unlocked_groups=2))
    assert {name for name in but_block if name.startswith("text.")} == {
        name
        for name in everything
        if name.startswith(("text.transformer.resblocks.2.", "text.ln_final", "text.text_projection"))
    }
    heads = HeadsConfig(augmentation=AugmentationConfig(encoder_width=8))
    only_heads = trainable(image_tower=TowerConfig(locked=True), text_tower=TowerConfig(locked=True), heads=heads)
    assert only_heads and all(
        name.startswith(("heads.augmentation", "heads.image.blocks", "logit_scale")) for name in only_heads
    )


@pytest.mark.parametrize("inline", [RESNET, TIMM])
def test_batch_norms_of_a_locked_tower_keep_their_statistics_and_it_drops_nothing(inline: dict[str, Any]) -> None:
    inputs = torch.randn(4, 3, 32, 32)
    for lock in (False, True):
        model = tiny.model(inline=inline, image_tower=TowerConfig(locked=lock)).train()
        before = {name: b.clone() for name, b in model.named_buffers() if "running" in name}
        model.encode_image(inputs)
        assert before
        assert all(torch.equal(b, before[name]) == lock for name, b in model.named_buffers() if name in before)
    dropping = tiny.model(patch_dropout=0.5, image_tower=TowerConfig(locked=True, unlocked_groups=2)).train()
    image = tiny.batch(4).image_VbCHW[0]
    assert torch.equal(dropping.encode_image(image), dropping.encode_image(image))
    assert dropping.training and dropping.visual.transformer.resblocks[0].training


def test_learning_rates_by_tower_and_layer_and_their_table(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="unisphere")
    model = tiny.model(
        inline=DEEP,
        image_tower=TowerConfig(lr_scale=0.5, layer_decay=0.1),
        text_tower=TowerConfig(locked=True, unlocked_groups=1, lr_scale=2.0),
    )
    found = parameter_groups(model, OptimConfig(weight_decay=0.2))
    by_tensor = {id(p): group for group in found for p in group["params"]}
    named = dict(model.named_parameters())
    for name, scale in {
        "visual.proj": 0.5,
        "visual.transformer.resblocks.1.ln_1.weight": 0.05,
        "visual.transformer.resblocks.0.attn.in_proj_weight": 0.005,
        "visual.conv1.weight": 0.0005,
        "text.text_projection": 2.0,
        "logit_scale.log_scale": 1.0,
    }.items():
        assert by_tensor[id(named[name])]["lr_scale"] == pytest.approx(scale), name
        assert by_tensor[id(named[name])]["weight_decay"] == (0.2 if named[name].ndim > 1 else 0.0), name
    assert id(named["text.token_embedding.weight"]) not in by_tensor
    assert len(by_tensor) == sum(len(group["params"]) for group in found)
    table = describe(found).splitlines()
    assert table[0].split() == ["group", "lr", "x", "decay", "tensors", "parameters"]
    assert table[1].split() == ["decay-x2", "2", "0.2", "1", "512"]
    assert table[2].split() == ["no_decay", "1", "0", "1", "1"]
    assert len(table) == 1 + len(found) == 1 + 9
    assert "parameters are locked; the others learn in these groups:\n" + "\n".join(table) in caplog.text


def test_a_plain_model_has_the_two_usual_groups(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="unisphere")
    found = parameter_groups(tiny.model(), OptimConfig())
    assert [(group["name"], group["lr_scale"]) for group in found] == [("decay", 1.0), ("no_decay", 1.0)]
    assert caplog.text == ""
