from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline.checkpoint import file_sha256
from pipeline.config import RunConfig
from pipeline.data.augment import eval_view, normalise
from pipeline.errors import CheckpointError, ConfigError, ExportError
from pipeline.export import export, main, open_clip_folder
from pipeline.models import clip
from pipeline.models.clip import ClipModel
from pipeline.models.names import to_open_clip
from pipeline.trained import load_trained
from tests import tiny
from tests.eval.helpers import SIZE
from tests.eval.trained import TINY, variant, write_run

TEXTS = ["a red dog", "sea", "two houses on the moon and another one", ""]


def assert_same_features(theirs: Any, trained: ClipModel, tokenizer: Any) -> None:
    image = torch.randn(3, 3, trained.image_size, trained.image_size, generator=torch.Generator().manual_seed(1))
    tokens = tokenizer(TEXTS)
    theirs.eval()
    with torch.no_grad():
        assert torch.allclose(theirs.encode_image(image, normalize=True), trained.encode_image(image), atol=1e-5, rtol=0)
        assert torch.allclose(theirs.encode_text(tokens, normalize=True), trained.encode_text(tokens), atol=1e-5, rtol=0)
        assert theirs.logit_scale.exp().item() == pytest.approx(trained.logit_scale().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("inline", "their_class"),
    [
        (variant(custom_text=True), "CustomTextCLIP"),
        (variant(custom_text=False), "CLIP"),
        (variant(custom_text=False, pool_type="last", no_causal_mask=True), "CLIP"),
        (variant(custom_text=False, embed_cls=True, pad_id=0), "CustomTextCLIP"),
    ],
)
def test_open_clip_computes_the_same_features_by_both_routes(tmp_path: Path, inline: dict[str, Any], their_class: str) -> None:
    cfg, trained = write_run(tmp_path / "runs", {"inline": inline, "patch_dropout": 0.5}, name=f"run-{tmp_path.name}")
    out = tmp_path / "export"
    report = export(cfg.run_dir, out)

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
    assert type(model).__name__ == their_class
    assert tokenizer(TEXTS).shape == (4, 12)
    assert_same_features(model, trained, tokenizer)

    open_clip.add_model_config(out / report["architecture_file"])
    by_name, _, _ = open_clip.create_model_and_transforms(
        report["architecture"], pretrained=str(out / "open_clip_model.safetensors")
    )
    assert type(by_name).__name__ == their_class
    assert_same_features(by_name, trained, open_clip.get_tokenizer(report["architecture"]))

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    ours = normalise(torch.from_numpy(eval_view(picture, SIZE))[None], cfg.model.image_mean, cfg.model.image_std)
    assert torch.allclose(preprocess(picture), ours[0], atol=1e-5)


def test_a_named_architecture_loads_under_its_name(tmp_path: Path) -> None:
    (tmp_path / "ViT-tiny-test.json").write_text(json.dumps(variant(custom_text=False)))
    open_clip.add_model_config(tmp_path / "ViT-tiny-test.json")
    cfg, trained = write_run(tmp_path / "runs", {"architecture": "ViT-tiny-test"})
    report = export(cfg.run_dir, tmp_path / "export")
    assert report["architecture"] == "ViT-tiny-test"
    assert report["architecture_file"] is None
    weights = tmp_path / "export" / "open_clip_model.safetensors"
    model, _, _ = open_clip.create_model_and_transforms("ViT-tiny-test", pretrained=str(weights))
    assert type(model).__name__ == "CLIP"
    assert_same_features(model, trained, open_clip.get_tokenizer("ViT-tiny-test"))


def test_the_folder_holds_plain_files_and_says_where_it_comes_from(tmp_path: Path) -> None:
    extra = {"heads.unused": torch.zeros(2), "logit_scale.log_scale": torch.tensor([9.0])}
    cfg, _ = write_run(tmp_path / "runs", {"inline": variant(custom_text=False)}, extra=extra)
    folder = cfg.run_dir / "checkpoints" / "step-00000040"
    out = tmp_path / "export"
    report = export(folder, out)
    assert report == json.loads((out / "export.json").read_text())
    assert report["run"] == "tiny"
    assert report["step"] == 40
    assert report["checkpoint_sha256"] == file_sha256(folder / "model.safetensors")
    assert report["weights_sha256"] == file_sha256(out / "open_clip_model.safetensors")
    assert report["dropped_tensors"] == ["heads.unused"]
    assert report["logit_scale_was_out_of_bounds"]
    assert report["logit_scale"] == pytest.approx(100, rel=1e-5)
    assert report["max_feature_difference"] <= 1e-5

    weights = load_file(out / "open_clip_model.safetensors")
    pickled = torch.load(out / "open_clip_model.pt", weights_only=True)
    assert weights.keys() == pickled.keys()
    assert all(torch.equal(weights[name], pickled[name]) for name in weights)
    assert weights["logit_scale"].ndim == 0
    assert weights["logit_scale"].exp() <= 100
    assert "token_embedding.weight" in weights
    assert not any(name.startswith(("text.", "heads.")) for name in weights)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert report["parameters"] == sum(tensor.numel() for tensor in weights.values())

    card = (out / "README.md").read_text()
    for part in ("local-dir:PATH", 'add_model_config("PATH/tiny.json")', report["weights_sha256"], "`heads.unused`"):
        assert part in card
    config = json.loads((out / "open_clip_config.json").read_text())
    assert config["model_cfg"] == variant(custom_text=False)
    assert config["preprocess_cfg"]["interpolation"] == "bicubic"


def test_the_name_of_a_run_hides_no_architecture(tmp_path: Path) -> None:
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY}, name="ViT-B-32")
    assert export(cfg.run_dir, tmp_path / "export")["architecture_file"] == "ViT-B-32-trained.json"


def test_an_earlier_export_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY})
    out = tmp_path / "export"
    out.mkdir()
    export(cfg.run_dir, out)
    (out / "left_over.txt").write_text("from the earlier export")
    export(cfg.run_dir, out)
    assert not (out / "left_over.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "runs"]

    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("precious")
    with pytest.raises(ExportError, match="holds files and is not an earlier export"):
        export(cfg.run_dir, tmp_path / "home")
    with pytest.raises(ExportError, match="is a file"):
        export(cfg.run_dir, tmp_path / "home" / "thesis.tex")
    assert (tmp_path / "home" / "thesis.tex").read_text() == "precious"


def test_broken_weights_are_not_exported(tmp_path: Path) -> None:
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY}, extra={"visual.proj": torch.full((32, 16), torch.nan)})
    with pytest.raises(ExportError, match="1 tensors hold values that are not finite, the first is visual.proj"):
        export(cfg.run_dir, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY}, extra={"visual.proj": torch.zeros(32, 8)})
    with pytest.raises(CheckpointError, match="1 tensors are missing or of another shape, the first is visual.proj"):
        export(cfg.run_dir, tmp_path / "export")


def test_the_check_of_features_can_fail(tmp_path: Path) -> None:
    cfg, trained = write_run(tmp_path / "runs", {"inline": TINY})
    out = tmp_path / "export"
    export(cfg.run_dir, out)
    weights = load_file(out / "open_clip_model.safetensors")
    weights["text.text_projection"] = weights["text.text_projection"].flip(1)
    save_file(weights, out / "open_clip_model.safetensors")
    with pytest.raises(ExportError, match="open_clip computes other features from the export"):
        open_clip_folder.check_features(out, trained)


def test_places_without_a_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder; give a run"):
        export(tmp_path / "nowhere", tmp_path / "export")
    with pytest.raises(CheckpointError, match="neither a run .* nor a checkpoint"):
        export(tmp_path, tmp_path / "export")
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY})
    shutil.rmtree(cfg.run_dir / "checkpoints")
    with pytest.raises(CheckpointError, match="has no complete checkpoint yet"):
        export(cfg.run_dir, tmp_path / "export")


HEADS = {"augmentation": {"encoder_width": 8}, "text_blocks": 1, "independent": {}}


def with_heads(tmp_path: Path, terms: str) -> tuple[RunConfig, ClipModel]:
    """A run of a model whose heads have learned something, and that model."""
    model = {"inline": TINY, "heads": HEADS}
    cfg, trained = write_run(tmp_path / "start", model, terms=terms)
    assert trained.heads is not None
    tiny.randomise(trained.heads)
    learned = {"scalars.uniclip_log_tau_IT.value": torch.tensor([math.log(0.05)])} if terms == "uniclip" else {}
    cfg, _ = write_run(tmp_path / "runs", model, extra=trained.state_dict() | learned, terms=terms)
    return cfg, trained


@pytest.mark.parametrize("terms", ["uniclip", "clip"])
def test_a_model_with_heads_becomes_an_ordinary_clip_model_and_a_complete_one(tmp_path: Path, terms: str) -> None:
    cfg, trained = with_heads(tmp_path, terms)
    if terms == "uniclip":  # the temperature between images and texts is the one that was learned
        trained.logit_scale.log_scale.data.fill_(-math.log(0.05))
    out = tmp_path / "export"
    report = export(cfg.run_dir, out)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{out}")
    assert_same_features(model, trained, open_clip.get_tokenizer(f"local-dir:{out}"))
    assert report["folded"][0] == "2 residual blocks of heads.image as layers without attention"
    assert {"heads.augmentation.layers.0.weight", "heads.independent_text.layers.1.weight"} <= set(report["dropped_tensors"])
    assert "heads.augmentation.layers.0.weight" in (out / "README.md").read_text()

    _, _, complete, unused = load_trained(out / "complete")
    assert unused == []
    assert all(torch.equal(t, trained.state_dict()[name]) for name, t in complete.state_dict().items())
    image, params = torch.randn(2, 3, SIZE, SIZE), torch.randn(2, 5)
    assert torch.equal(complete.encode_image(image, params), trained.encode_image(image, params))


def test_weights_mixed_with_others(tmp_path: Path) -> None:
    """WiSE-FT: a straight line between the weights that a run started from and those that it ended at."""
    cfg, trained = write_run(tmp_path / "runs", {"inline": TINY})
    torch.manual_seed(7)
    start = clip.build(cfg.model, cfg.objective)
    save_file(to_open_clip(start.state_dict(), fused=False), tmp_path / "start.safetensors")
    report = export(cfg.run_dir, tmp_path / "out", [(tmp_path / "start.safetensors", 0.25)])
    found = load_file(tmp_path / "out" / "open_clip_model.safetensors")["visual.proj"]
    torch.testing.assert_close(found, 0.75 * trained.visual.proj.data + 0.25 * start.visual.proj.data)
    assert list(report["mixed_with"].values()) == [0.25]
    assert main([str(cfg.run_dir), str(tmp_path / "again"), "--mix", f"{cfg.run_dir}=0.5"]) == 0
    assert main([str(cfg.run_dir), str(tmp_path / "none"), "--mix", f"{cfg.run_dir}=1.5"]) == ConfigError.exit_code
    assert main([str(cfg.run_dir), str(tmp_path / "none"), "--mix", "half"]) == ConfigError.exit_code


def test_the_name_of_an_architecture_is_kept_only_for_that_architecture(tmp_path: Path) -> None:
    (tmp_path / "ViT-tiny-deep.json").write_text(json.dumps(variant(custom_text=False)))
    open_clip.add_model_config(tmp_path / "ViT-tiny-deep.json")
    for name, model in (("deeper", {"heads": {"text_blocks": 1}}), ("narrower", {"embed_dim": 8})):
        cfg, _ = write_run(tmp_path / "runs", {"architecture": "ViT-tiny-deep", **model}, name=name)
        assert export(cfg.run_dir, tmp_path / name)["architecture"] == name


def test_two_image_towers_are_none_of_open_clips_models(tmp_path: Path) -> None:
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY, "second_tower": "image"})
    with pytest.raises(ExportError, match="two image towers"):
        export(cfg.run_dir, tmp_path / "export")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY})
    assert main([str(cfg.run_dir), str(tmp_path / "export")]) == 0
    assert "exported tiny at step 40" in capsys.readouterr().out
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "export")]) == CheckpointError.exit_code
    assert capsys.readouterr().err.startswith("error: ")
