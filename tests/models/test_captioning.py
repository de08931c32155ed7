"""Captioning models (CoCa): open_clip's logits from the same weights, padding left out, every part trained, and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.errors import ConfigError
from pipeline.export import export
from pipeline.models import clip, names
from tests import tiny
from tests.eval.trained import write_run
from tests.models.test_heads import dead_parameters

INLINE: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {
        **tiny.INLINE["vision_cfg"],
        "attentional_pool": True,
        "attn_pooler_queries": 5,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    },
    "text_cfg": {**tiny.INLINE["text_cfg"], "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
    "custom_text": True,
}
TERMS: tiny.Terms = {"clip": {}, "captioning": {}}


def test_logits_are_open_clips_and_padding_predicts_nothing() -> None:
    torch.manual_seed(0)
    theirs = open_clip.CoCa(**{key: value for key, value in INLINE.items() if key != "custom_text"}).eval()
    torch.nn.init.normal_(theirs.text_decoder.text_projection)
    ours = tiny.model(seed=1, inline=INLINE).eval()
    ours.load_state_dict(names.from_open_clip(dict(theirs.state_dict())))
    inputs = tiny.batch(3)
    inputs.tokens_bL[1, 5:] = 0
    with torch.no_grad():
        features, expected = ours(*inputs), theirs(inputs.image_VbCHW[0], inputs.tokens_bL)
    torch.testing.assert_close(features.extras["caption_logits"], expected["logits"])
    torch.testing.assert_close(features.embeddings["image"], expected["image_features"])
    torch.testing.assert_close(features.embeddings["text"], expected["text_features"])
    label_bL = features.extras["caption_labels"]
    assert label_bL[0].tolist() == inputs.tokens_bL[0, 1:].tolist()
    assert label_bL[1].tolist() == [*inputs.tokens_bL[1, 1:5].tolist(), -100, -100, -100]
    assert clip.domains(1, ModelConfig(inline=INLINE)) == ("image", "text", "caption_logits", "caption_labels")


def test_every_part_trains() -> None:
    assert dead_parameters(tiny.model(terms=TERMS, inline=INLINE), TERMS) == []


def test_the_decoder_starts_the_same_each_time() -> None:
    first, second = (tiny.model(inline=INLINE).text_decoder.text_projection for _ in range(2))
    assert torch.equal(first, second) and 0.1 < first.std() < 0.5


def test_an_export_is_open_clips_coca(tmp_path: Path) -> None:
    inline = {**INLINE, "text_cfg": {**INLINE["text_cfg"], "vocab_size": 49408}}
    inline["multimodal_cfg"] = {**INLINE["multimodal_cfg"], "vocab_size": 49408}
    cfg, trained = write_run(tmp_path / "runs", {"inline": inline})
    report = export(cfg.run_dir, tmp_path / "export")
    model = open_clip.create_model(f"local-dir:{tmp_path / 'export'}")
    assert type(model).__name__ == "CoCa" and report["dropped_tensors"] == []
    assert torch.equal(model.text_decoder.text_projection, trained.text_decoder.text_projection)


@pytest.mark.slow
def test_named_captioning_architectures_build() -> None:
    with torch.device("meta"):
        model = clip.build(ModelConfig(architecture="coca_ViT-B-32"), tiny.ObjectiveConfig())
    assert model.text_decoder is not None


def test_a_captioning_model_needs_its_text_tower() -> None:
    with pytest.raises(ConfigError, match="needs open_clip's own text tower"):
        tiny.model(inline={**INLINE, "text_cfg": {"hf_model_name": "roberta-base"}})
    with pytest.raises(ConfigError, match="a captioning model needs its text tower"):
        tiny.model(inline=INLINE, second_tower="image")
