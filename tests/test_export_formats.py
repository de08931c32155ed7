"""Exports for others than open_clip: Hugging Face's layout, ONNX, means of checkpoints; and any ZeRO stage and world size."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline import checkpoint
from pipeline.checkpoint import TrainState
from pipeline.config import EngineConfig, OptimConfig, RunConfig, dump
from pipeline.data import tokenizer
from pipeline.dist import World
from pipeline.errors import CheckpointError, ConfigError, ExportError
from pipeline.eval.target import load
from pipeline.export import export, main, onnx_towers
from pipeline.models import clip, hf_names
from pipeline.models.folders import _has_clips_vocabulary as has_clips_vocabulary
from tests import tiny
from tests.distributed import run_ranks
from tests.eval.helpers import SIZE
from tests.eval.trained import TINY, Weights, variant, write_run
from tests.models.test_captioning import INLINE as CAPTIONING

CPU = torch.device("cpu")
TEXTS = ["a red dog", "it's 20 sea-birds!", "", "Ünïcode  and    spaces", "a very long text " * 20]
HF_FILES = (
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)


def images() -> Tensor:
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def test_a_hugging_face_export_comes_back_through_its_files_alone(tmp_path: Path) -> None:
    cfg, trained = write_run(tmp_path / "runs", {"inline": variant(custom_text=False), "image_mean": [0.5, 0.4, 0.3]})
    report = export(cfg.run_dir, tmp_path / "out", hugging_face=True)
    assert report["hugging_face"]["summary"] == "CLIPModel"
    (tmp_path / "theirs").mkdir()
    for name in HF_FILES:
        shutil.copy(tmp_path / "out" / name, tmp_path / "theirs")
    state = load_file(tmp_path / "theirs" / "model.safetensors")
    assert hf_names.from_hugging_face(state).keys() == trained.state_dict().keys()
    assert state["logit_scale"].ndim == 0

    subject = load(tmp_path / "theirs", CPU).subject
    assert (subject.image_mean, subject.image_std) == ((0.5, 0.4, 0.3), cfg.model.image_std)
    tokens_BL = subject.tokenizer(TEXTS)
    assert torch.equal(tokens_BL, tokenizer.build(TINY)(TEXTS))  # read without transformers: the vocabulary is CLIP's
    with torch.no_grad():
        torch.testing.assert_close(subject.model.encode_image(images()), trained.encode_image(images()), rtol=0, atol=1e-6)
        torch.testing.assert_close(subject.model.encode_text(tokens_BL), trained.encode_text(tokens_BL), rtol=0, atol=1e-6)
    assert subject.scale == pytest.approx(trained.logit_scale().item(), rel=1e-6)
    again = tiny_start(tmp_path / "theirs")
    assert torch.equal(again.visual.proj, trained.visual.proj)

    card = (tmp_path / "out" / "README.md").read_text()
    assert "from transformers import CLIPModel, AutoProcessor" in card
    model, _, _ = open_clip.create_model_and_transforms(
        f"local-dir:{tmp_path / 'out'}"
    )  # config.json beside it disturbs nothing
    assert type(model).__name__ == "CLIP"


def tiny_start(folder: Path) -> clip.ClipModel:
    """A new model that starts from a folder of weights."""
    from pipeline.config import ModelConfig, ObjectiveConfig

    return clip.build(ModelConfig(inline=TINY, init_weights=str(folder)), ObjectiveConfig())


def test_the_tokenizers_files_hold_clips_vocabulary(tmp_path: Path) -> None:
    from pipeline.export import tokenizer_files

    tokenizer_files.write(tmp_path, 12)
    words = json.loads((tmp_path / "vocab.json").read_text())
    assert sorted(words.values()) == list(range(49408))
    assert (words["<|startoftext|>"], words["<|endoftext|>"], words["dog</w>"]) == (49406, 49407, 1929)
    merges = (tmp_path / "merges.txt").read_text().splitlines()
    assert merges[:2] == ["#version: 0.2", "i n"] and len(merges) == 48895
    fast = json.loads((tmp_path / "tokenizer.json").read_text())
    assert fast["model"]["vocab"] == words and fast["model"]["merges"] == merges[1:]
    assert fast["truncation"]["max_length"] == fast["padding"]["strategy"]["Fixed"] == 12
    assert has_clips_vocabulary(tmp_path, 1)
    (tmp_path / "vocab.json").unlink()
    assert has_clips_vocabulary(tmp_path, 1)
    fast["model"]["vocab"]["dog</w>"] = 1930
    (tmp_path / "tokenizer.json").write_text(json.dumps(fast))
    assert not has_clips_vocabulary(tmp_path, 49408)


def test_what_has_no_counterpart_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, _ = write_run(tmp_path / "runs", {"inline": variant(no_causal_mask=True, pool_type="last")})
    with pytest.raises(
        ExportError, match=r"(?s)--hf: CLIPModel cannot .*no_causal_mask = True.*pool_type = 'last'.*leave --hf out"
    ):
        export(cfg.run_dir, tmp_path / "out", hugging_face=True)
    assert main([str(cfg.run_dir), str(tmp_path / "out"), "--hf"]) == ExportError.exit_code
    assert main([str(cfg.run_dir), str(tmp_path / "out"), "--hub", "nameless"]) == ConfigError.exit_code
    assert "--hub nameless: expected OWNER/NAME" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_onnx_graphs_compute_the_same_for_any_number_of_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    cfg, trained = write_run(tmp_path / "runs", {"inline": TINY, "heads": {"augmentation": {"encoder_width": 8}}})
    out = tmp_path / "out"
    assert main([str(cfg.run_dir), str(out), "--onnx", "--hf"]) == 0
    assert "also for onnxruntime: image.onnx, text.onnx (opset 18), features within" in capsys.readouterr().out
    about = json.loads((out / "onnx.json").read_text())
    tokens_BL = tokenizer.build(TINY)(TEXTS)
    for part, rows, encode in (("image", images(), trained.encode_image), ("text", tokens_BL, trained.encode_text)):
        session = onnxruntime.InferenceSession(str(out / about[part]["file"]), providers=["CPUExecutionProvider"])
        (given,), (made,) = session.get_inputs(), session.get_outputs()
        assert (given.name, given.shape) == (about[part]["input"]["name"], about[part]["input"]["shape"])
        assert (made.name, made.shape) == (about[part]["output"]["name"], about[part]["output"]["shape"])
        for count in (1, len(rows)):
            found = session.run(None, {given.name: rows[:count].numpy()})[0]
            with torch.no_grad():
                np.testing.assert_allclose(found, encode(rows[:count]).numpy(), atol=1e-5)
    example = about["text"]["tokenizer"]["example"]
    assert tokenizer.build(TINY)([example["text"]])[0].tolist() == example["input_ids"]
    assert about["image"]["preprocessing"]["mean"] == list(cfg.model.image_mean)
    assert about["logit_scale"] == pytest.approx(trained.logit_scale().item(), rel=1e-5)
    assert 0 < about["max_feature_difference"] <= 1e-4

    other = clip.build(dataclasses.replace(cfg.model), cfg.objective, num_view_params=5).eval()
    with pytest.raises(ExportError, match=r"onnxruntime computes other features from image.onnx: off by .*allowed is 1e-04"):
        onnx_towers.check_features(out, other, images(), tokens_BL)
    (out / "image.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="onnxruntime cannot run image.onnx"):
        onnx_towers.check_features(out, other, images(), tokens_BL)


OTHER_TOWERS: dict[str, dict[str, Any]] = {
    "ResNet": TINY | {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16}},
    "timm": TINY | {"vision_cfg": {"timm_model_name": "resnet10t", "timm_proj": "linear", "image_size": 64}},
    "class token": variant(embed_cls=True, pad_id=0),
    "bidirectional": variant(no_causal_mask=True, pool_type="last"),
    "captioning": CAPTIONING | {"text_cfg": CAPTIONING["text_cfg"] | {"vocab_size": 49408}},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHER_TOWERS)
def test_every_kind_of_tower_can_be_a_graph(tmp_path: Path, kind: str) -> None:
    cfg, _ = write_run(tmp_path / "runs", {"inline": OTHER_TOWERS[kind]})
    assert 0 < export(cfg.run_dir, tmp_path / "out", onnx=True)["onnx"]["max_feature_difference"] <= 1e-4


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY})
    with pytest.raises(ConfigError, match=r'--onnx needs onnxscript: pip install -c constraints.txt -e ".\[onnx\]"'):
        export(cfg.run_dir, tmp_path / "out", onnx=True)


def test_the_mean_of_a_runs_newest_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg, trained = write_run(tmp_path / "runs", {"inline": TINY})
    first = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    for step in (50, 60):
        later = {name: tensor + (step - 40) / 10 for name, tensor in first.items()}
        checkpoint.save(cfg.run_dir, Weights(later), TrainState(step, 32 * step, {}), world=World(), keep_last=3)
    assert main([str(cfg.run_dir), str(tmp_path / "mean"), "--last", "3"]) == 0
    mean = load_file(tmp_path / "mean" / "open_clip_model.safetensors")
    torch.testing.assert_close(mean["visual.proj"], first["visual.proj"] + 1)  # of 0, 1 and 2
    assert main([str(cfg.run_dir), str(tmp_path / "two"), "--last", "2"]) == 0
    torch.testing.assert_close(
        load_file(tmp_path / "two" / "open_clip_model.safetensors")["visual.proj"], first["visual.proj"] + 1.5
    )
    assert "0.5 of `step-00000050`; the rest its own" in (tmp_path / "two" / "README.md").read_text()
    capsys.readouterr()
    assert main([str(cfg.run_dir), str(tmp_path / "no"), "--last", "4"]) == CheckpointError.exit_code
    assert "has 3 complete checkpoints; keep more with checkpoint.keep_last" in capsys.readouterr().err
    assert main([str(cfg.run_dir), str(tmp_path / "no"), "--last", "0"]) == ConfigError.exit_code
    assert main([str(cfg.run_dir), str(tmp_path / "no"), "--last", "2", "--averaged"]) == ConfigError.exit_code
    assert "leave out --mix and --averaged" in capsys.readouterr().err


def test_the_card_has_the_results_of_exactly_these_weights(tmp_path: Path) -> None:
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY, "init_weights": None})
    lines = [
        {"set": "old", "step": 30, "zero_shot": {"accuracy@1": 0.9}},
        {"set": "food", "step": 40, "zero_shot": {"accuracy@1": 0.1}},
        {"set": "food", "step": 40, "zero_shot": {"accuracy@1": 0.25, "accuracy@5": 0.5}},
        {"set": "food", "step": 40, "weights": "averaged", "zero_shot": {"accuracy@1": 0.75}},
    ]
    text = "\n".join([json.dumps(line) for line in lines] + ['{"set": "cut off'])
    (cfg.run_dir / "eval.jsonl").write_text(text)
    export(cfg.run_dir, tmp_path / "out", hub="me/tiny")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| food | zero-shot top-1 | 25.0 % |\n| food | zero-shot top-5 | 50.0 % |" in card
    assert "90.0" not in card and "10.0 %" not in card and "75.0" not in card
    assert 'create_model_and_transforms("hf-hub:me/tiny")' in card
    assert "| pairs seen | 1,280 (40 steps of 32) |" in card


def train_sharded(world: World, cfg: RunConfig) -> dict[str, Tensor]:
    """Three steps at ZeRO stage 3, saved as a run saves; the weights that it ends with."""
    from pipeline.engine.engine import Engine

    torch.manual_seed(0)
    model = clip.build(cfg.model, cfg.objective)
    engine = Engine(
        model, OptimConfig(), EngineConfig(zero_stage=3, precision="fp32"), world=world, device=CPU, micro_batch_size=6
    )
    engine.train()
    for step in range(3):
        features = engine.forward(tiny.share(tiny.batch(12, seed=step), world.rank, world.size))
        engine.backward(tiny.objective()(features, step=step).total)
        engine.step(0.01)
    checkpoint.save(cfg.run_dir, engine, TrainState(3, 36, {}), world=world, keep_last=1)
    return engine.consolidated()


def test_a_run_of_two_ranks_at_stage_three_exports_in_one_process(tmp_path: Path) -> None:
    inline = TINY | {"vision_cfg": tiny.INLINE["vision_cfg"]}
    cfg, _ = write_run(tmp_path / "start", {"inline": inline})
    cfg = dataclasses.replace(cfg, runs_dir=str(tmp_path / "runs"))
    cfg.run_dir.mkdir(parents=True)
    (cfg.run_dir / "config.yaml").write_text(dump(cfg))
    weights, _ = run_ranks(train_sharded, 2, cfg)
    assert main([str(cfg.run_dir), str(tmp_path / "out"), "--hf"]) == 0
    for name, found in (("open_clip_model", load_file(tmp_path / "out" / "open_clip_model.safetensors")["visual.proj"]),):
        assert torch.equal(found, weights["visual.proj"]), name
    theirs = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(theirs["visual_projection.weight"], weights["visual.proj"].T)
    model: Any = open_clip.create_model(f"local-dir:{tmp_path / 'out'}")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.visual.state_dict(prefix="visual.").items())
