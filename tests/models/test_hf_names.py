"""Hugging Face's CLIPModel, written out by hand from its names, computes what ours does; configurations go there and back."""

from __future__ import annotations

import copy
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models import hf_config, hf_names
from tests import tiny

Config = dict[str, Any]
END = 63


def inline(image: Config | None = None, text: Config | None = None, **model: Any) -> Config:
    """``tiny.INLINE`` with two layers per tower, and changes."""
    found = copy.deepcopy(tiny.INLINE) | model
    found["vision_cfg"] |= {"layers": 2, **(image or {})}
    found["text_cfg"] |= {"layers": 2, **(text or {})}
    return found


ACTS = {
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class TheirModel:
    """The forward pass of a ``CLIPModel``, from its config.json and its tensors."""

    def __init__(self, config: Config, state: dict[str, Tensor]) -> None:
        self.config, self.state, self.used = config, state, set[str]()

    def get(self, name: str) -> Tensor:
        self.used.add(name)
        return self.state[name]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.get(f"{name}.weight"), self.get(f"{name}.bias"))

    def norm(self, x: Tensor, name: str, part: Config) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.get(f"{name}.weight"), self.get(f"{name}.bias"), part["layer_norm_eps"])

    def layers(self, x: Tensor, tower: str, part: Config, causal: bool) -> Tensor:
        for number in range(part["num_hidden_layers"]):
            name = f"{tower}.encoder.layers.{number}"
            h = self.norm(x, f"{name}.layer_norm1", part)
            q, k, v = (
                self.linear(h, f"{name}.self_attn.{which}_proj")
                .unflatten(-1, (part["num_attention_heads"], -1))
                .transpose(1, 2)
                for which in "qkv"
            )
            h = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
            x = x + self.linear(h, f"{name}.self_attn.out_proj")
            h = self.linear(self.norm(x, f"{name}.layer_norm2", part), f"{name}.mlp.fc1")
            x = x + self.linear(ACTS[part["hidden_act"]](h), f"{name}.mlp.fc2")
        return x

    def image(self, pixels: Tensor) -> Tensor:
        part = self.config["vision_config"]
        patches = F.conv2d(pixels, self.get("vision_model.embeddings.patch_embedding.weight"), stride=part["patch_size"])
        first = self.get("vision_model.embeddings.class_embedding").expand(len(pixels), 1, -1)
        x = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
        x = x + self.get("vision_model.embeddings.position_embedding.weight")
        x = self.layers(self.norm(x, "vision_model.pre_layrnorm", part), "vision_model", part, causal=False)
        x = self.norm(x[:, 0], "vision_model.post_layernorm", part)
        return F.normalize(F.linear(x, self.get("visual_projection.weight")), dim=1)

    def text(self, ids: Tensor) -> Tensor:
        part = self.config["text_config"]
        x = F.embedding(ids, self.get("text_model.embeddings.token_embedding.weight"))
        x = x + self.get("text_model.embeddings.position_embedding.weight")[: ids.shape[1]]
        x = self.norm(self.layers(x, "text_model", part, causal=True), "text_model.final_layer_norm", part)
        end = ids.argmax(1) if part["eos_token_id"] == 2 else (ids == part["eos_token_id"]).int().argmax(1)
        return F.normalize(F.linear(x[torch.arange(len(x)), end], self.get("text_projection.weight")), dim=1)


VARIANTS: dict[str, Config] = {
    "plain": inline(),
    "quick": inline(quick_gelu=True, custom_text=True),
    "tanh": inline({"act_kwargs": {"approximate": "tanh"}}, {"act_kwargs": {"approximate": "tanh"}}),
    "eps": inline({"norm_kwargs": {"eps": 1e-3}, "mlp_ratio": 2.6}, {"norm_kwargs": {"eps": 1e-2}, "mlp_ratio": 1.0}),
    "eos": inline({"final_ln_after_pool": True, "patch_dropout": 0.0}, {"pool_type": "eos", "eos_id": END}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_clip_model_computes_the_same(variant: str) -> None:
    config = VARIANTS[variant]
    assert hf_config.misfits(config) == []
    ours = tiny.model(seed=3, inline=config).eval()
    tiny.randomise(ours)
    state = ours.state_dict()
    theirs = TheirModel(hf_config.clip_config(config, 1.0), hf_names.to_hugging_face(state, 16))
    ids = tiny.batch(6, seed=1).tokens_bL
    ids[torch.arange(6), torch.arange(6) + 1] = END
    pixels = tiny.batch(6, seed=2).image_VbCHW[0]
    with torch.no_grad():
        torch.testing.assert_close(theirs.image(pixels), ours.encode_image(pixels), rtol=0, atol=1e-5)
        torch.testing.assert_close(theirs.text(ids), ours.encode_text(ids), rtol=0, atol=1e-5)
    assert theirs.state.keys() - theirs.used == {"logit_scale"}
    back = hf_names.from_hugging_face(theirs.state)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_every_architecture_that_open_clip_knows_fits_or_is_refused_for_a_reason() -> None:
    fitting = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        if hf_config.misfits(config) or hf_config.has_hf_text(config):
            continue
        fitting.append(name)
        theirs = hf_config.clip_config(config, 1.0)
        assert hf_config.clip_config(hf_config.open_clip_config(theirs), 1.0) == theirs, name
    assert len(fitting) >= 33
    assert {"ViT-B-32", "ViT-B-32-quickgelu", "ViT-L-14-336", "ViT-bigG-14"} <= set(fitting)


def test_tokens_end_as_the_vocabulary_has_it() -> None:
    def end(**text: Any) -> int:
        return int(hf_config.clip_config(inline(text=text), 1.0)["text_config"]["eos_token_id"])

    assert end(vocab_size=49408) == 49407
    assert end(vocab_size=64) == 2  # the highest id, whatever it is
    assert end(vocab_size=60_000, hf_tokenizer_name="mine") == 2
    assert end(pool_type="eos", eos_id=7) == 7


DUAL: Config = {"hf_model_name": "tower", "hf_pooler_type": "cls_pooler", "hf_proj_type": "linear"}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (inline({"timm_model_name": "resnet50"}), "vision_cfg.timm_model_name = 'resnet50': has no counterpart"),
        (inline({"layers": [1, 1, 1, 1]}), "a ResNet has no counterpart"),
        (inline({"no_ln_pre": True}), "vision_cfg.no_ln_pre = True: only False"),
        (inline({"pool_type": "avg"}), "vision_cfg.pool_type = 'avg': only 'tok'"),
        (inline({"ls_init_value": 0.1}), "vision_cfg.ls_init_value = 0.1: has no counterpart"),
        (inline({"image_size": [16, 32]}), "only square images"),
        (inline({"brand_new": 1}), "vision_cfg.brand_new: has no counterpart"),
        (inline(text={"no_causal_mask": True}), "text_cfg.no_causal_mask = True: only False"),
        (inline(text={"pool_type": "last"}), "only 'argmax' and 'eos'"),
        (inline(text={"pool_type": "eos", "eos_id": 2}), "the highest id"),
        (inline(text={"embed_cls": True}), "text_cfg.embed_cls = True"),
        (inline(text={"proj_type": "none"}), "only 'linear' has a counterpart"),
        (inline(text={"norm_kwargs": {"elementwise_affine": False}}), "only eps has a counterpart"),
        (inline(text={"act_kwargs": {"inplace": True}}), "no such activation"),
        (inline(text={"tokenizer_kwargs": {"clean": "canonicalize"}}), "cleans texts in one way only"),
        (inline(multimodal_cfg={}), "multimodal_cfg: has no counterpart"),
        (tiny.INLINE | {"text_cfg": DUAL | {"hf_pooler_type": "mean_pooler"}}, "only 'cls_pooler' has a counterpart"),
        (tiny.INLINE | {"text_cfg": DUAL | {"hf_proj_type": "mlp"}}, "only a linear projection"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(config: Config, reason: str) -> None:
    found = hf_config.misfits(config)
    assert len(found) == 1
    assert reason in found[0]


def test_a_dual_encoder_keeps_its_text_towers_own_names() -> None:
    image = {name: t for name, t in tiny.model().state_dict().items() if name.startswith(("visual.", "logit_scale"))}
    text = {"text.transformer.encoder.layer.0.output.dense.weight": torch.ones(2, 3)}
    projected = image | text | {"text.proj.weight": torch.full((16, 3), 2.0)}
    theirs = hf_names.to_hugging_face(projected, 16)
    assert hf_names.is_hugging_face(theirs)
    assert torch.equal(theirs["text_model.encoder.layer.0.output.dense.weight"], torch.ones(2, 3))
    assert theirs["text_projection.weight"].shape == (16, 3)
    back = hf_names.from_hugging_face(theirs)
    assert back.keys() == projected.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in projected.items())
    # As transformers before version 5 wrote the image tower; and a tower whose feature is the embedding.
    older = {name.replace("vision_model.", "vision_model.vision_model."): tensor for name, tensor in theirs.items()}
    assert hf_names.from_hugging_face(older).keys() == projected.keys()
    assert torch.equal(hf_names.to_hugging_face(image | text, 3)["text_projection.weight"], torch.eye(3))


def test_a_tensor_without_a_place_is_refused() -> None:
    for name in ("visual.attn_pool.query", "visual.transformer.resblocks.0.ls_1.gamma", "heads.image.norm.weight"):
        with pytest.raises(ConfigError, match=f"{name} has no place in Hugging Face's CLIPModel"):
            hf_names.to_hugging_face({name: torch.zeros(1)}, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "siglip"}, "model_type = 'siglip': only 'clip'"),
        ({"vision_config": {"hidden_act": "relu"}}, "hidden_act = "),
        ({"vision_config": {"hidden_act": "gelu"}, "text_config": {"hidden_act": "quick_gelu"}}, "quick_gelu in both towers"),
        ({"vision_config": {"image_size": [224, 112]}}, r"vision_config.image_size = \[224, 112\]: expected a whole number"),
        ({"text_config": {"num_hidden_layers": 0}}, "text_config.num_hidden_layers = 0"),
        ({"text_config": {"num_attention_heads": 7}}, "must be a multiple of num_attention_heads"),
        ({"text_config": {"eos_token_id": [1, 2]}}, r"eos_token_id = \[1, 2\]: expected one token"),
    ],
)
def test_configurations_of_others_that_do_not_fit(change: Config, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hf_config.open_clip_config({"model_type": "clip", **change})


def test_a_configuration_says_only_what_differs_from_the_defaults() -> None:
    found = hf_config.open_clip_config({"model_type": "clip", "projection_dim": 512})
    known = open_clip.get_model_config("ViT-B-32-quickgelu")
    assert found["quick_gelu"] and found["embed_dim"] == known["embed_dim"]
    assert hf_config.clip_config(found, 1.0) == hf_config.clip_config(known, 1.0) | {
        "text_config": hf_config.clip_config(known, 1.0)["text_config"] | {"pad_token_id": 49407}
    }
