"""Weights from elsewhere: every layout, parts of models, other image sizes, blends; and what does not fit is named."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.config import ModelConfig, ObjectiveConfig
from pipeline.config.model import HeadsConfig, ProjectorConfig, TowerConfig
from pipeline.errors import ConfigError
from pipeline.models import clip, names, weights
from tests import tiny


def build(path: Path, **changes: Any) -> clip.ClipModel:
    return tiny.model(seed=9, init_weights=str(path), **changes)


def same(model: clip.ClipModel, source: clip.ClipModel, but: tuple[str, ...] = ()) -> bool:
    """Whether all of ``source``'s tensors are in ``model``; those whose names contain one of ``but`` must differ."""
    found = {model.moved_names.get(name, name): tensor for name, tensor in model.state_dict().items()}
    return all(torch.equal(found[name], t) != any(part in name for part in but) for name, t in source.state_dict().items())


def write(path: Path, state: dict[str, Tensor]) -> Path:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def openai_layout(state: dict[str, Tensor]) -> dict[str, Any]:
    """As OpenAI's files hold it: fused names, half precision, numbers among the weights."""
    plain = names.to_open_clip(state, fused=True)
    halves = {name: t.half() if t.ndim else t for name, t in plain.items()}
    return halves | {"input_resolution": torch.tensor(16), "context_length": torch.tensor(8), "vocab_size": torch.tensor(64)}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_open_clip_files(tmp_path: Path, kind: str, fused: bool) -> None:
    source = tiny.model(seed=3)
    path = write(tmp_path / f"w.{kind}", names.to_open_clip(source.state_dict(), fused=fused))
    assert same(build(path), source)


def test_other_layouts(tmp_path: Path) -> None:
    source = tiny.model(seed=3)
    state = source.state_dict()
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": t for name, t in state.items()}}, tmp_path / "wrapped.pt")
    assert same(build(tmp_path / "wrapped.pt"), source)
    rounded = copy.deepcopy(source)
    rounded.load_state_dict({name: t if name.startswith("logit") else t.half().float() for name, t in state.items()})
    assert same(build(write(tmp_path / "openai.pt", openai_layout(state))), rounded)


def test_a_model_with_heads_starts_from_a_plain_file_and_from_its_own(tmp_path: Path) -> None:
    source = tiny.model(seed=3)
    heads = HeadsConfig(text_blocks=1, independent=ProjectorConfig())
    model = build(write(tmp_path / "plain.safetensors", source.state_dict()), heads=heads)
    assert same(model, source)
    again = tiny.model(seed=5, heads=heads, init_weights=str(write(tmp_path / "own.safetensors", model.state_dict())))
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    with pytest.raises(ConfigError, match=r"(?s)heads\.text.*a run with heads exports plain weights"):
        build(tmp_path / "own.safetensors")


def test_fresh_projections_of_another_width(tmp_path: Path) -> None:
    """The protocol of the contrastive gap: the towers are kept, both projections start anew, at a chosen width, bias-free."""
    path = write(tmp_path / "w.safetensors", tiny.model(seed=3).state_dict())
    model = build(path, fresh_projections=True, embed_dim=6)
    assert same(build(path, fresh_projections=True), tiny.model(seed=3), but=("visual.proj", "text.text_projection"))
    assert model.encode_image(tiny.batch(2).image_VbCHW[0]).shape == (2, 6)
    with pytest.raises(ConfigError, match=r"(?s)2 tensors.*text.text_projection: expected \(32, 6\), found \(32, 16\)"):
        build(path, embed_dim=6)


def test_another_image_size_interpolates_position_embeddings(tmp_path: Path) -> None:
    source = tiny.model(seed=3)
    path = write(tmp_path / "w.safetensors", source.state_dict())
    inline = {**tiny.INLINE, "vision_cfg": {**tiny.INLINE["vision_cfg"], "image_size": 32}}
    model = build(path, inline=inline)
    assert model.visual.positional_embedding.shape == (17, 32)
    assert torch.equal(model.visual.positional_embedding[0], source.visual.positional_embedding[0])


@pytest.mark.parametrize(
    ("timm_name", "key"),
    [("resnet10t", "conv1.0.weight"), ("vit_tiny_patch16_224", "patch_embed.proj.weight")],
)
def test_an_image_tower_from_a_timm_file(tmp_path: Path, timm_name: str, key: str, caplog: pytest.LogCaptureFixture) -> None:
    import timm

    inline = {**tiny.INLINE, "vision_cfg": {"timm_model_name": timm_name, "timm_pool": "", "image_size": 224}}
    source = timm.create_model(timm_name, num_classes=3)
    caplog.set_level("INFO", logger="unisphere")
    path = write(tmp_path / "w.safetensors", {name: t.contiguous() for name, t in source.state_dict().items()})
    model = tiny.model(inline=inline, image_tower=TowerConfig(init_weights=str(path)))
    assert torch.equal(model.visual.trunk.state_dict()[key], source.state_dict()[key])


def test_one_tower_of_a_whole_file(tmp_path: Path) -> None:
    source = tiny.model(seed=3)
    path = write(tmp_path / "w.pt", names.to_open_clip(source.state_dict(), fused=True))
    model = tiny.model(seed=9, text_tower=TowerConfig(init_weights=str(path)))
    assert torch.equal(model.text.token_embedding.weight, source.text.token_embedding.weight)
    assert not torch.equal(model.text.text_projection, source.text.text_projection)
    assert not torch.equal(model.visual.conv1.weight, source.visual.conv1.weight)


class Canary:
    """Unpickling this runs code: it creates a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


def test_files_that_cannot_be_used_are_explained(tmp_path: Path) -> None:
    torch.save({"x": Canary(str(tmp_path / "executed"))}, tmp_path / "code.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    (tmp_path / "w.zip").write_bytes(b"")
    for name, message in (
        ("code.pt", "cannot be read as plain tensors"),
        ("list.pt", "holds no state dict"),
        ("w.zip", r"expected .safetensors, or a state dict in .pt"),
        ("none.safetensors", "does not exist"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = names.to_open_clip(tiny.model().state_dict(), fused=True)
    del state["visual.proj"]
    state["ln_final.bias"] = torch.zeros(7)
    path = write(tmp_path / "w.safetensors", state)
    message = r"(?s)2 tensors.*text.ln_final.bias: expected \(32,\), found \(7,\).*visual.proj: .*found nothing"
    with pytest.raises(ConfigError, match=message):
        build(path)
    with pytest.raises(ConfigError, match=r"(?s)model.text_tower.init_weights.*does not fit the text tower.*ln_final.bias"):
        tiny.model(text_tower=TowerConfig(init_weights=str(path)))


def test_the_bias_of_a_siglip_file_is_the_losses_own(tmp_path: Path) -> None:
    state = names.to_open_clip(tiny.model(seed=3).state_dict(), fused=False) | {"logit_bias": torch.tensor(-7.0)}
    path = write(tmp_path / "w.safetensors", state)
    scalars = tiny.objective({"siglip": {}}).scalars()
    cfg = ModelConfig(inline=tiny.INLINE, init_weights=str(path))
    assert clip.build(cfg, ObjectiveConfig(), scalars).scalars["siglip_bias"]().item() == -7.0
    assert len(clip.build(cfg, ObjectiveConfig()).scalars) == 0


def test_a_fixed_temperature_is_the_runs_own_and_a_learned_one_starts_from_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", tiny.model().state_dict())
    for learn, expected in ((True, 1 / 0.07), (False, 1 / 0.02)):
        objective = ObjectiveConfig(init_temperature=0.02, learn_temperature=learn)
        model = clip.build(ModelConfig(inline=tiny.INLINE, init_weights=str(path)), objective)
        assert model.logit_scale().item() == pytest.approx(expected, rel=1e-5)


def test_blends() -> None:
    first, second = tiny.model(seed=1).state_dict(), tiny.model(seed=2).state_dict()
    assert all(torch.equal(t, first[name]) for name, t in weights.blend([first, second], [1.0, 0.0]).items())
    half = weights.blend([first, second], [0.5, 0.5])
    torch.testing.assert_close(half["visual.proj"], (first["visual.proj"] + second["visual.proj"]) / 2)
    with pytest.raises(ConfigError, match="sum to 1"):
        weights.blend([first, second], [0.5, 0.6])
    with pytest.raises(ConfigError, match=r"model 2 of the blend has other tensors \(1\):\n  visual.proj: .*found nothing"):
        weights.blend([first, {name: t for name, t in second.items() if name != "visual.proj"}], [0.5, 0.5])
