"""UniCLIP's heads and the others: plain CLIP at the start, identity augmentations change nothing, and no head is dead."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from pipeline.config import ModelConfig, ObjectiveConfig
from pipeline.config.model import AugmentationConfig, HeadsConfig, ProjectorConfig
from pipeline.errors import ConfigError
from pipeline.features import Inputs
from pipeline.models import clip
from tests import tiny

MLP, AFFINE = AugmentationConfig(encoder_width=8), AugmentationConfig(form="affine", encoder_width=8)
SIDE = ProjectorConfig(layers=2, hidden_width=24)
AVERAGE: dict[str, Any] = {**tiny.INLINE, "vision_cfg": {**tiny.INLINE["vision_cfg"], "pool_type": "avg"}}
RESNET: dict[str, Any] = {**tiny.INLINE, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}}
TIMM: dict[str, Any] = {
    **tiny.INLINE,
    "vision_cfg": {"timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear", "image_size": 32},
}
MP_NCE: tiny.Terms = {"uniclip": {}, "clip": {}}


@pytest.mark.parametrize(
    ("inline", "heads"),
    [
        (tiny.INLINE, HeadsConfig(augmentation=MLP, text_blocks=2, independent=SIDE, projector=SIDE)),
        (tiny.INLINE, HeadsConfig(independent=SIDE)),
        (AVERAGE, HeadsConfig(augmentation=AFFINE)),
        (RESNET, HeadsConfig(augmentation=AFFINE, independent=SIDE)),
        (TIMM, HeadsConfig(augmentation=AFFINE, projector=SIDE)),
    ],
)
def test_training_starts_as_plain_clip_bit_for_bit(inline: dict[str, Any], heads: HeadsConfig) -> None:
    plain, headed = tiny.model(inline=inline).eval(), tiny.model(inline=inline, heads=heads).eval()
    inputs = tiny.batch(4, num_views=2)
    if headed.image_size == 32:
        inputs = inputs._replace(image_VbCHW=inputs.image_VbCHW.repeat(1, 1, 1, 2, 2))
    ours, theirs = headed(*inputs), plain(*inputs)
    for name in ("image", "image_2", "text"):
        assert torch.equal(ours.embeddings[name], theirs.embeddings[name]), name


def test_every_domain_is_there_and_is_announced() -> None:
    heads = HeadsConfig(MLP, 1, SIDE, ProjectorConfig(out_dim=12, placement="embedding"))
    features = tiny.model(heads=heads)(*tiny.batch(4, num_views=2))
    announced = clip.domains(2, ModelConfig(inline=tiny.INLINE, heads=heads))
    assert set(features.embeddings) == set(announced)
    assert set(announced) >= {"independent_image", "independent_image_2", "independent_text", "projected_image_2"}
    for name, rows in features.embeddings.items():
        assert rows.shape == (4, 12 if name.startswith("projected") else 16)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))
    assert clip.domains(1) == ("image", "text")


@pytest.mark.parametrize("augmentation", [MLP, AFFINE])
def test_identity_augmentations_reproduce_the_plain_multi_positive_model(augmentation: AugmentationConfig) -> None:
    """With what f_A learned in place, and all views left as they are, the loss and its gradients are those without f_A."""
    aware = tiny.with_heads(terms=MP_NCE, augmentation=augmentation).double()
    tiny.randomise(aware)
    plain = copy.deepcopy(aware)
    assert plain.heads is not None
    plain.heads.augmentation = None
    inputs = tiny.batch(6, num_views=2)
    inputs = Inputs(inputs.image_VbCHW.double(), inputs.tokens_bL, inputs.group_b, torch.zeros_like(inputs.view_params_VbK))
    losses = {}
    for name, model in (("aware", aware), ("plain", plain)):
        features = model(*inputs)
        losses[name] = tiny.objective(MP_NCE)(features, step=0).total
        losses[name].backward()
    torch.testing.assert_close(losses["aware"], losses["plain"], rtol=1e-6, atol=1e-6)
    theirs = dict(plain.named_parameters())
    for name, parameter in aware.named_parameters():
        if name in theirs and theirs[name].grad is not None:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("augmentation", [MLP, AFFINE])
def test_the_head_tells_augmentations_apart_and_the_tower_does_not(augmentation: AugmentationConfig) -> None:
    model = tiny.with_heads(augmentation=augmentation).eval()
    tiny.randomise(model)
    inputs = tiny.batch(4, num_views=2)
    image, params = inputs.image_VbCHW[0], inputs.view_params_VbK[0]
    seen = []
    model.visual.register_forward_hook(lambda module, given, feature: seen.append(feature))
    as_it_is, augmented = model.encode_image(image), model.encode_image(image, params)
    torch.testing.assert_close(model.encode_image(image, torch.zeros_like(params)), as_it_is, rtol=1e-5, atol=1e-5)
    assert (augmented - as_it_is).abs().max() > 0.01
    assert torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("augmentation", [MLP, AFFINE])
def test_views_together_or_one_by_one(augmentation: AugmentationConfig) -> None:
    together = tiny.with_heads(augmentation=augmentation, independent=SIDE)
    apart = tiny.model(heads=HeadsConfig(augmentation=augmentation, independent=SIDE), views_together=False)
    tiny.randomise(together)
    tiny.randomise(apart)
    ours, theirs = together(*tiny.batch(4, num_views=3)), apart(*tiny.batch(4, num_views=3))
    assert list(ours.embeddings) == list(theirs.embeddings)
    for name in ours.embeddings:
        torch.testing.assert_close(ours.embeddings[name], theirs.embeddings[name], msg=name)


ALL = HeadsConfig(MLP, 1, SIDE, None)


def dead_parameters(model: clip.ClipModel, terms: tiny.Terms) -> list[str]:
    """Parameters that a loss does not move in three steps of gradient descent: no gradient, or one of 0 throughout."""
    moved: set[str] = set()
    for step in range(3):  # what feeds a layer that is zero at the start learns from the second step on
        tiny.objective(terms)(model(*tiny.batch(6, seed=step, num_views=2)), step=step).total.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                assert parameter.grad.isfinite().all(), name
                moved |= {name} if parameter.grad.any() else set()
                parameter.data -= 0.1 * parameter.grad
                parameter.grad = None
    return sorted({name for name, parameter in model.named_parameters() if parameter.requires_grad} - moved)


@pytest.mark.parametrize(
    ("heads", "terms"),
    [
        (HeadsConfig(), {"clip": {}}),
        (HeadsConfig(augmentation=MLP, text_blocks=1), {"clip": {}, "uniclip": {}}),
        (HeadsConfig(augmentation=AFFINE), {"clip": {}, "uniclip": {}}),
        (HeadsConfig(independent=SIDE), {"clip": {}, "separation": {}}),
    ],
)
def test_no_head_is_dead(heads: HeadsConfig, terms: tiny.Terms) -> None:
    assert dead_parameters(tiny.model(terms=terms, heads=heads), terms) == []


def test_a_dead_head_is_found() -> None:
    dead = dead_parameters(tiny.with_heads(independent=ProjectorConfig()), {"clip": {}})
    assert dead == [
        f"heads.independent_{modality}.layers.{name}"
        for modality in ("image", "text")
        for name in ("0.bias", "0.weight", "1.weight")
    ]


@pytest.mark.parametrize(
    ("inline", "heads", "num_view_params", "message"),
    [
        (AVERAGE, HeadsConfig(augmentation=MLP), 5, "VisionTransformer with pool_type avg; use form: affine"),
        (TIMM, HeadsConfig(augmentation=MLP), 5, "this one is a TimmModel.*; use form: affine"),
        (tiny.INLINE, HeadsConfig(augmentation=MLP), 0, "the data describes no augmentation"),
        (tiny.INLINE, HeadsConfig(augmentation=AugmentationConfig(block_width=129)), 5, "block_width = 129: at most 128"),
    ],
)
def test_heads_that_do_not_fit_are_explained(
    inline: dict[str, Any], heads: HeadsConfig, num_view_params: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        clip.build(ModelConfig(inline=inline, heads=heads), ObjectiveConfig(), num_view_params=num_view_params)
