"""Folders of models that others made: read where they fit, refused with a reason where not, and never trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import CheckpointError, ConfigError
from pipeline.models import clip, folders, hf_config, hf_names, names
from tests import tiny
from tests.models.test_weights import Canary, same

QUICK = tiny.INLINE | {"quick_gelu": True}


def hf_folder(path: Path, inline: dict[str, Any] | None = None, **config: Any) -> clip.ClipModel:
    """A CLIPModel's folder as Hugging Face writes it, and the model of ours that is in it."""
    inline = inline or tiny.INLINE
    source = tiny.model(seed=3, inline=inline)
    path.mkdir()
    (path / "config.json").write_text(json.dumps(hf_config.clip_config(inline, 1.0) | config))
    (path / "vocab.json").write_text(json.dumps({"a": 0}))
    save_file(hf_names.to_hugging_face(source.state_dict(), 16), path / "model.safetensors")
    return source


def open_clip_folder(path: Path, **config: Any) -> None:
    path.mkdir()
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": tiny.INLINE} | config))
    save_file(names.to_open_clip(tiny.model(seed=3).state_dict(), fused=True), path / "open_clip_model.safetensors")


def test_a_hugging_face_folder_starts_a_run(tmp_path: Path) -> None:
    source = hf_folder(tmp_path / "clip")
    assert same(tiny.model(seed=9, init_weights=str(tmp_path / "clip")), source)
    assert same(tiny.model(seed=9, init_weights=str(tmp_path / "clip" / "model.safetensors")), source)
    one = tiny.model(seed=9, text_tower=clip_tower(tmp_path / "clip"))
    assert torch.equal(one.text.token_embedding.weight, source.text.token_embedding.weight)
    assert not torch.equal(one.visual.conv1.weight, source.visual.conv1.weight)
    found = folders.read(tmp_path / "clip")
    assert found.architecture["text_cfg"]["hf_tokenizer_name"] == str(tmp_path / "clip")  # another vocabulary than CLIP's
    assert found.mean == (0.48145466, 0.4578275, 0.40821073)


def clip_tower(path: Path) -> Any:
    from pipeline.config.model import TowerConfig

    return TowerConfig(init_weights=str(path))


def test_weights_in_shards_and_as_a_state_dict(tmp_path: Path) -> None:
    source = hf_folder(tmp_path / "clip")
    state = hf_names.to_hugging_face(source.state_dict(), 16)
    (tmp_path / "clip" / "model.safetensors").unlink()
    parts = {"model-00001-of-00002.safetensors": sorted(state)[:20], "model-00002-of-00002.safetensors": sorted(state)[20:]}
    for name, keys in parts.items():
        save_file({key: state[key] for key in keys}, tmp_path / "clip" / name)
    index = tmp_path / "clip" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: name for name, keys in parts.items() for key in keys}}))
    assert same(tiny.model(seed=9, init_weights=str(tmp_path / "clip")), source)
    assert len(folders.read(tmp_path / "clip").weights) == 2
    for outside in ("../secret.safetensors", "gone.safetensors", str(tmp_path / "x.safetensors")):
        index.write_text(json.dumps({"weight_map": {"a": outside}}))
        with pytest.raises(ConfigError, match="names 1 of 1 files that are not beside it"):
            tiny.model(init_weights=str(tmp_path / "clip"))
    index.unlink()
    torch.save(state, tmp_path / "clip" / "pytorch_model.bin")
    assert same(tiny.model(seed=9, init_weights=str(tmp_path / "clip")), source)


def test_another_activation_is_refused_though_every_tensor_fits(tmp_path: Path) -> None:
    hf_folder(tmp_path / "clip", QUICK)
    with pytest.raises(ConfigError, match="trained with quick_gelu, the model of this run has gelu; choose .* with quick_gelu"):
        tiny.model(init_weights=str(tmp_path / "clip"))
    assert tiny.model(inline=QUICK, init_weights=str(tmp_path / "clip")).image_size == 16
    open_clip_folder(tmp_path / "open_clip")
    with pytest.raises(ConfigError, match="trained with gelu, the model of this run has quick_gelu"):
        tiny.model(inline=QUICK, init_weights=str(tmp_path / "open_clip"))


def test_a_folder_without_weights_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.init_weights = .* holds no weights; looked for open_clip_model.safetensors"):
        tiny.model(init_weights=str(tmp_path))
    with pytest.raises(CheckpointError, match="holds neither open_clip_config.json nor a config.json"):
        folders.read(tmp_path)


def test_a_folder_runs_no_code(tmp_path: Path) -> None:
    hf_folder(tmp_path / "clip", auto_map={"AutoModel": "evil.Evil"})
    (tmp_path / "clip" / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    assert folders.read(tmp_path / "clip").architecture["embed_dim"] == 16  # code beside a model is not looked at
    (tmp_path / "clip" / "model.safetensors").unlink()
    torch.save({"vision_model.x": Canary(str(tmp_path / "executed"))}, tmp_path / "clip" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be read as plain tensors"):
        tiny.model(init_weights=str(tmp_path / "clip"))
    assert not (tmp_path / "executed").exists()


def with_text(**text: Any) -> dict[str, Any]:
    return {"model_cfg": tiny.INLINE | {"text_cfg": tiny.INLINE["text_cfg"] | text}}


def with_image(**image: Any) -> dict[str, Any]:
    return {"model_cfg": tiny.INLINE | {"vision_cfg": tiny.INLINE["vision_cfg"] | image}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (with_text(vocab_size=4_000_000, width=4096), r"describes at least 16,\d+,\d+,\d+ numbers, but its weights have"),
        (with_image(width=20_000), "describes at least"),
        (with_image(layers=[3, 4, 6, 3], width=100_000), "describes at least"),
        (with_image(layers=10**9), "layers = 1000000000 in its configuration; at most 1000 is taken"),
        (with_text(context_length=10**6), "context_length = 1000000 .*at most 16384"),
        (with_image(image_size=10**9), "image_size = 1000000000 .*at most 2048"),
        (with_image(layers="12"), "cannot be used: "),
        (with_image(patch_size=0), "cannot be used: "),
        (with_image(image_size=2000, patch_size=1), "describes at least"),
        ({"model_cfg": tiny.INLINE | {"embed_dim": 4_000_000}}, "describes at least"),
        ({"model_cfg": tiny.INLINE | {"multimodal_cfg": {"width": 50_000}}}, "describes at least"),
        (with_image(timm_model_name="hf-hub:someone/model"), "is a place and not a name that timm knows"),
        ({"model_cfg": {"embed_dim": 16}}, "no model_cfg with vision_cfg and text_cfg"),
        ({"preprocess_cfg": {"mean": [0.5]}}, r"mean = \[0.5\]; expected three numbers"),
        ({"preprocess_cfg": {"interpolation": "nearest"}}, "interpolation = 'nearest'; only 'bicubic' is supported"),
    ],
)
def test_configurations_that_ask_for_too_much_or_make_no_sense(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    open_clip_folder(tmp_path / "x", **config)
    with pytest.raises(CheckpointError, match=message):
        folders.read(tmp_path / "x")


def test_a_text_tower_in_the_folder_is_bounded_too_and_brings_no_code(tmp_path: Path) -> None:
    tower = {"hf_model_name": "text_tower", "hf_tokenizer_name": "."}
    open_clip_folder(tmp_path / "x", model_cfg=tiny.INLINE | {"text_cfg": tower})
    (tmp_path / "x" / "text_tower").mkdir()
    described = tmp_path / "x" / "text_tower" / "config.json"
    described.write_text(json.dumps({"hidden_size": 8, "vocab_size": 50}))
    assert folders.read(tmp_path / "x").architecture["text_cfg"]["hf_model_name"] == str(tmp_path / "x" / "text_tower")
    described.write_text(json.dumps({"hidden_size": 4096, "vocab_size": 10**9}))
    with pytest.raises(CheckpointError, match="describes at least 4,096"):
        folders.read(tmp_path / "x")
    described.write_text(json.dumps({"auto_map": {"AutoModel": "evil.Evil"}}))
    with pytest.raises(CheckpointError, match=r"text_tower/config.json names code of its own \(auto_map\)"):
        folders.read(tmp_path / "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{" * 100_000, "cannot be used: (RecursionError|JSONDecodeError)"),
        ("[" * 200_000 + "]" * 200_000, "cannot be used: "),
        ("[1]", "expected an object, found list"),
        ("{" + " " * 5_000_000 + "}", "bytes; at most 4194304 are read"),
    ],
)
def test_json_is_read_up_to_a_limit(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        folders.read(tmp_path)


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        ({"size": {"shortest_edge": 32}}, "size = {'shortest_edge': 32}; only 16 is supported"),
        ({"do_center_crop": False}, "do_center_crop = False; only True is supported"),
        ({"resample": 2}, "resample = 2; only 3 is supported"),
    ],
)
def test_images_prepared_in_another_way_are_refused(tmp_path: Path, preprocess: dict[str, Any], message: str) -> None:
    hf_folder(tmp_path / "clip")
    plain = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}, "resample": 3, "image_mean": [0.5] * 3}
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(plain))
    assert folders.read(tmp_path / "clip").mean == (0.5, 0.5, 0.5)
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(plain | preprocess))
    with pytest.raises(CheckpointError, match=message):
        folders.read(tmp_path / "clip")
