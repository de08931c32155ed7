"""The model card of an export: how to load it, how it was trained, what it reached, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig
from pipeline.config.data import data_sources

Results = Sequence[tuple[str, str, str]]

_FIGURES = (
    ("zero-shot top-1", ("zero_shot", "accuracy@1")),
    ("zero-shot top-5", ("zero_shot", "accuracy@5")),
    ("text-to-image recall@5", ("retrieval", "text_to_image", "recall@5")),
    ("image-to-text recall@5", ("retrieval", "image_to_text", "recall@5")),
)


def results(run_dir: Path, report: Mapping[str, Any]) -> Results:
    """(set, measure, value) of what the run's ``eval.jsonl`` says about exactly these weights, the latest line of each set.

    Mixed weights were never evaluated as such and have none.
    """
    path = run_dir / "eval.jsonl"
    if not path.is_file() or report["mixed_with"]:
        return []
    lines: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found = json.loads(line)
        except ValueError:  # a line that was cut off when a machine died
            continue
        averaged = isinstance(found, dict) and found.get("weights") == "averaged"
        if isinstance(found, dict) and found.get("step") == report["step"] and averaged == report["averaged"]:
            lines[str(found.get("set"))] = found
    return [row for name, found in sorted(lines.items()) for row in _figures(name, found)]


def _figures(name: str, found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for measure, path in _FIGURES:
        value: Any = found
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, (int, float)):
            yield name, measure, f"{100 * value:.1f} %"


def text(cfg: RunConfig, report: Mapping[str, Any], found: Results) -> str:
    """The card, in Markdown with the front matter that hubs read."""
    tags = ["clip", *(["onnx"] if report["onnx"] else [])]
    parts = [
        "\n".join(["---", "library_name: open_clip", "pipeline_tag: zero-shot-image-classification", "tags:"])
        + "".join(f"\n- {tag}" for tag in tags)
        + "\n---",
        f"# {cfg.name}",
        f"A CLIP model with {report['parameters']:,} parameters, trained for {report['step']} steps by the run `{cfg.name}`\n"
        f"on {_data(cfg)} with {cfg.train.global_batch_size} pairs per step.",
        "## Use",
        _use(cfg, report),
        "## Training",
        _table(_training(cfg, report)),
        *(["## Results", _results(found)] if found else []),
        "## Provenance",
        _table(_provenance(report)),
    ]
    return "\n\n".join(parts) + "\n"


def _data(cfg: RunConfig) -> str:
    return "`" + "`, `".join(source.path for source in data_sources(cfg.data)) + "`"


def _use(cfg: RunConfig, report: Mapping[str, Any]) -> str:
    from pipeline.models import text_tower_files

    mean, std = (tuple(round(x, 8) for x in values) for values in (cfg.model.image_mean, cfg.model.image_std))
    place = f"hf-hub:{report['hub']}" if report["hub"] else "local-dir:PATH"
    register = f'open_clip.add_model_config("PATH/{report["architecture_file"]}")\n' if report["architecture_file"] else ""
    blocks = [
        f"Put the folder's own path for PATH{text_tower_files.advice(report['text_tower'])}:",
        _code(
            "import open_clip\n\n"
            f'model, _, preprocess = open_clip.create_model_and_transforms("{place}")\n'
            f'tokenizer = open_clip.get_tokenizer("{place}")'
        ),
        "or, by the name of the architecture:",
        _code(
            f"{register}model, _, preprocess = open_clip.create_model_and_transforms(\n"
            f'    "{report["architecture"]}", pretrained="PATH/open_clip_model.safetensors", image_mean={mean}, '
            f"image_std={std}\n)"
        ),
    ]
    place = report["hub"] or "PATH"
    if report["hugging_face"]:
        blocks += [
            "With transformers:",
            _code(
                f"from transformers import {report['hugging_face']['summary']}, AutoProcessor\n\n"
                f'model = {report["hugging_face"]["summary"]}.from_pretrained("{place}")\n'
                f'processor = AutoProcessor.from_pretrained("{place}")'
            ),
        ]
    if report["onnx"]:
        blocks += [
            "With onnxruntime; `onnx.json` says how to prepare pixels and tokens:",
            _code(
                "import onnxruntime\n\n"
                'image = onnxruntime.InferenceSession("PATH/image.onnx")\n'
                'embeddings = image.run(None, {"pixel_values": pixels})[0]  # unit rows\n'
                'text = onnxruntime.InferenceSession("PATH/text.onnx")\n'
                'embeddings = text.run(None, {"input_ids": ids})[0]'
            ),
        ]
    return "\n\n".join(blocks)


def _training(cfg: RunConfig, report: Mapping[str, Any]) -> list[tuple[str, str]]:
    optim = cfg.optim
    return [
        (
            "pairs seen",
            f"{report['step'] * cfg.train.global_batch_size:,} ({report['step']} steps of {cfg.train.global_batch_size})",
        ),
        ("loss", ", ".join(f"`{name}`" for name in cfg.objective.terms)),
        (
            "optimizer",
            f"AdamW, lr {optim.lr:g} after {optim.warmup_steps} steps, then cosine to {optim.min_lr:g} over {cfg.train.steps}, "
            f"betas ({optim.beta1:g}, {optim.beta2:g}), weight decay {optim.weight_decay:g}",
        ),
        ("started from", f"`{cfg.model.init_weights}`" if cfg.model.init_weights else "random weights"),
        ("weights", _which_weights(report)),
        ("logit scale", f"{report['logit_scale']:g}"),
    ]


def _which_weights(report: Mapping[str, Any]) -> str:
    if report["mixed_with"]:
        return (
            "; ".join(f"{share:g} of `{Path(path).name}`" for path, share in report["mixed_with"].items())
            + "; the rest its own"
        )
    return "their moving average" if report["averaged"] else "as trained"


def _provenance(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    dropped = ", ".join(f"`{name}`" for name in report["dropped_tensors"]) or "nothing"
    rows = [
        ("run, step", f"`{report['run']}`, {report['step']} (`{report['checkpoint']}`)"),
        ("checkpoint sha256", f"`{report['checkpoint_sha256']}`"),
        ("weights sha256", f"`{report['weights_sha256']}`"),
        ("dropped from the checkpoint", dropped),
        ("heads folded into the towers", "; ".join(report["folded"]) or "none"),
        ("largest feature difference to the trained model", f"{report['max_feature_difference']:.1e}"),
    ]
    for key, reader in (("hugging_face", "transformers"), ("onnx", "onnxruntime")):
        if report[key]:
            off = report[key]["max_feature_difference"]
            rows.append((f"the same with {reader}", "not checked" if off is None else f"{off:.1e}"))
    return rows


def _results(found: Results) -> str:
    return "\n".join(["| set | measure | value |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in found)])


def _table(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _code(lines: str) -> str:
    return f"```python\n{lines}\n```"
