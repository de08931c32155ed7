"""Pixels and tokens to features: any open_clip architecture, with open_clip's features, and options that change nothing."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch

from pipeline.config import ModelConfig, ObjectiveConfig
from pipeline.errors import ConfigError
from pipeline.models import clip, names, towers
from tests import tiny


def test_features_are_unit_rows_in_fp32_and_the_scale_is_bounded() -> None:
    features = tiny.model()(*tiny.batch(5))
    for rows in features.embeddings.values():
        assert rows.shape == (5, 16) and rows.dtype == torch.float32
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))
    scale = features.scalars["scale"]
    assert scale.shape == () and scale.item() == pytest.approx(1 / 0.07)
    assert features.group_b.tolist() == [0, 1, 2, 3, 4]


def test_a_zero_embedding_stays_finite() -> None:
    model = tiny.model()
    with torch.no_grad():
        model.visual.proj.zero_()
    features = model(*tiny.batch(3))
    features.embeddings["image"].sum().backward()
    assert not features.embeddings["image"].any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_no_parameter_is_0_dimensional() -> None:
    """DeepSpeed broadcasts parameters as bytes and cannot view a 0-dim one so."""
    assert all(p.ndim > 0 for p in tiny.model().parameters())


@pytest.mark.parametrize("custom_text", [False, True])
def test_equals_open_clip_given_the_same_weights(custom_text: bool) -> None:
    torch.manual_seed(0)
    theirs = (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**tiny.INLINE).eval()
    ours = tiny.model(seed=1).eval()
    ours.load_state_dict(names.from_open_clip({k: v for k, v in theirs.state_dict().items() if k != "attn_mask"}))
    (image_BCHW,), tokens_BL, *_ = tiny.batch(4)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_image(image_BCHW), theirs.encode_image(image_BCHW, normalize=True))
        torch.testing.assert_close(ours.encode_text(tokens_BL), theirs.encode_text(tokens_BL, normalize=True))
    assert names.to_open_clip(ours.state_dict(), fused=not custom_text).keys() == theirs.state_dict().keys() - {"attn_mask"}


def gradients(**changes: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = clip.build(ModelConfig(inline=tiny.INLINE, **changes), ObjectiveConfig())
    features = model(*tiny.batch(4))
    (features.embeddings["image"] * features.embeddings["text"]).sum().backward()
    # Compiled modules keep their names: compilation is in place.
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_changes_no_gradient() -> None:
    plain, recomputed = gradients(), gradients(gradient_checkpointing=True)
    assert plain.keys() == recomputed.keys()
    for name in plain:
        torch.testing.assert_close(recomputed[name], plain[name], rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_compilation_changes_no_gradient() -> None:
    plain, compiled = gradients(), gradients(compile=True)
    assert plain.keys() == compiled.keys()
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], rtol=1e-4, atol=1e-6)


def test_patch_dropout_drops_while_training_only() -> None:
    torch.manual_seed(0)
    model = clip.build(ModelConfig(inline=tiny.INLINE, patch_dropout=0.5), ObjectiveConfig())
    (image_BCHW,), *_ = tiny.batch(4)
    model.train()
    assert not torch.equal(model.encode_image(image_BCHW), model.encode_image(image_BCHW))
    model.eval()
    assert torch.equal(model.encode_image(image_BCHW), model.encode_image(image_BCHW))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ModelConfig(architecture="ViT-B-33"), "did you mean one of ViT-B-32"),
        (ModelConfig(inline={"embed_dim": 4}), "missing text_cfg, vision_cfg"),
        (ModelConfig(inline={**tiny.INLINE, "colour": 1}), "unknown colour; known: "),
        (ModelConfig(inline={**tiny.INLINE, "text_cfg": {"widht": 3}}), "open_clip cannot build this model: .*widht"),
    ],
)
def test_architectures_that_cannot_be_built_are_explained(model: ModelConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        clip.build(model, ObjectiveConfig())


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "ViT-B-16-SigLIP", "MobileCLIP-S1", "EVA02-B-16"])
def test_named_architectures_build(name: str) -> None:
    with torch.device("meta"):
        model = clip.build(ModelConfig(architecture=name), ObjectiveConfig())
    assert model.image_size >= 224 and model.context_length >= 64
    assert all(p.ndim > 0 for n, p in model.named_parameters() if n.startswith("logit_scale"))


def test_the_towers_own_pretrained_weights_are_never_fetched() -> None:
    config = towers.architecture(ModelConfig(architecture="ViT-B-16-SigLIP"))
    assert not config["vision_cfg"].get("timm_model_pretrained")
