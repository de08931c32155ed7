"""A model with heads, folded: the plain model has open_clip's parts only, and the same evaluation features."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.config.model import AugmentationConfig, HeadsConfig, ProjectorConfig
from pipeline.models import clip
from pipeline.models.fold import Folded, fold
from pipeline.models.towers import architecture
from tests import tiny

SIDE = ProjectorConfig()
SCALED: dict[str, Any] = {**tiny.INLINE, "vision_cfg": {**tiny.INLINE["vision_cfg"], "ls_init_value": 0.1}, "quick_gelu": True}
AVERAGE: dict[str, Any] = {**tiny.INLINE, "vision_cfg": {**tiny.INLINE["vision_cfg"], "pool_type": "avg"}}
TIMM: dict[str, Any] = {
    **tiny.INLINE,
    "vision_cfg": {"timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear", "image_size": 16},
}


def folded(inline: dict[str, Any], heads: HeadsConfig) -> tuple[clip.ClipModel, clip.ClipModel, Folded]:
    """A model whose heads have learned something, its fold, and the fold as a model of its own."""
    model = tiny.model(inline=inline, heads=heads).eval()
    assert model.heads is not None
    tiny.randomise(model.heads)
    found = fold(model, architecture(ModelConfig(inline=inline)))
    plain = tiny.model(seed=5, inline=found.config).eval()
    plain.load_state_dict(found.state)
    return model, plain, found


@pytest.mark.parametrize(
    ("inline", "heads"),
    [
        (tiny.INLINE, HeadsConfig(AugmentationConfig(blocks=3, encoder_width=8), 2, SIDE, SIDE)),
        (tiny.INLINE, HeadsConfig(AugmentationConfig(blocks=1, block_width=20, encoder_width=8))),
        (SCALED, HeadsConfig(AugmentationConfig(encoder_width=8), 1)),
        (AVERAGE, HeadsConfig(AugmentationConfig(form="affine", encoder_width=8), 1)),
        (TIMM, HeadsConfig(AugmentationConfig(form="affine", encoder_width=8), independent=SIDE)),
    ],
)
def test_the_plain_model_has_the_same_features(inline: dict[str, Any], heads: HeadsConfig) -> None:
    model, plain, _ = folded(inline, heads)
    (image,), tokens, *_ = tiny.batch(6)
    with torch.no_grad():
        torch.testing.assert_close(plain.encode_image(image), model.encode_image(image), rtol=0, atol=2e-6)
        torch.testing.assert_close(plain.encode_text(tokens), model.encode_text(tokens), rtol=0, atol=2e-6)


def test_what_is_folded_and_what_is_dropped_is_said() -> None:
    heads = HeadsConfig(AugmentationConfig(blocks=2, encoder_width=8), 1, SIDE)
    model, plain, found = folded(tiny.INLINE, heads)
    assert found.config["vision_cfg"]["layers"] == 3 and found.config["text_cfg"]["layers"] == 2
    assert found.folded == [
        "2 residual blocks of heads.image as layers without attention",
        "the projection of heads.image",
        "1 residual blocks of heads.text as layers without attention",
        "the projection of heads.text",
    ]
    assert {name.split(".layers")[0].removesuffix(".weight") for name in found.dropped} == {
        "heads.augmentation",
        "heads.image.blocks.0.shift",
        "heads.image.blocks.1.shift",
        "heads.independent_image",
        "heads.independent_text",
    }
    kept = sum(t.numel() for name, t in model.state_dict().items() if name not in found.dropped)
    assert kept < sum(t.numel() for t in plain.state_dict().values())  # a silent attention's zeros


def test_a_model_without_heads_is_its_own_fold() -> None:
    model = tiny.model(terms={"siglip": {}})
    found = fold(model, architecture(ModelConfig(inline=tiny.INLINE)))
    assert found.config == tiny.INLINE and found.folded == [] and found.dropped == ["scalars.siglip_bias.value"]
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in found.state.items())
