"""ONNX's part of an export: each tower as one graph from its input to unit embeddings, and a JSON file that says how to use it.

    OUT/image.onnx    pixel_values  float32 [batch, 3, H, W]  ->  image_embeddings  float32 [batch, d], unit rows
    OUT/text.onnx     input_ids     int64   [batch, L]        ->  text_embeddings   float32 [batch, d], unit rows
    OUT/onnx.json     opset, preprocessing, tokenizer and context, logit scale, how far the graphs are from the trained model

    session = onnxruntime.InferenceSession("OUT/text.onnx")
    session.run(None, {"input_ids": ids})[0]

The number of rows is free; everything else is fixed. Weights of more than ``MAX_INLINE_BYTES`` go into a file beside the
graph (image.onnx.data), since one ONNX file holds at most 2 GiB.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import RunConfig
from pipeline.errors import ConfigError, ExportError
from pipeline.export import tokenizer_files
from pipeline.export.open_clip_folder import TEXTS, sample_images

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.clip import ClipModel

DESCRIPTION = "onnx.json"
OPSET = 18
"""Old enough for runtimes of 2023, new enough for everything that the towers use."""
TOLERANCE = 1e-4
"""Largest difference of a feature (unit rows) between onnxruntime and the trained model."""
MAX_INLINE_BYTES = 1_500_000_000


def check_packages() -> None:
    """Refuse before anything is written if the packages that make graphs are missing.

    Raises:
        ConfigError: with how to install them.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f'--onnx needs {" and ".join(missing)}: pip install -c constraints.txt -e ".[onnx]"')


def write(folder: Path, cfg: RunConfig, model_cfg: Mapping[str, Any], theirs: Any, trained: ClipModel) -> dict[str, Any]:
    """Write both graphs and their description, checked where onnxruntime is installed; returns what the report says.

    Args:
        folder: holds open_clip's part already.
        cfg: the run's.
        model_cfg: the architecture as exported.
        theirs: open_clip's model of that folder, whose towers are traced.
        trained: the trained model.

    Raises:
        ExportError: a tower cannot be written as a graph, or onnxruntime computes other features from it.
    """
    from pipeline.data import tokenizer
    from pipeline.models.folders import read

    tokens_BL = tokenizer.build(read(folder).architecture)(TEXTS)
    image_BCHW = sample_images(trained)
    _write_graph(folder / "image.onnx", theirs, "encode_image", image_BCHW, ("pixel_values", "image_embeddings"))
    _write_graph(folder / "text.onnx", theirs, "encode_text", tokens_BL, ("input_ids", "text_embeddings"))
    if not model_cfg["text_cfg"].get("hf_tokenizer_name") and not (folder / "tokenizer.json").is_file():
        tokenizer_files.write(folder, trained.context_length)
    difference = None
    if importlib.util.find_spec("onnxruntime") is not None:
        difference = check_features(folder, trained, image_BCHW, tokens_BL)
    description = _describe(cfg, model_cfg, trained, tokens_BL, difference)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return {"summary": f"image.onnx, text.onnx (opset {OPSET})", "max_feature_difference": difference}


def _write_graph(path: Path, model: Any, method: str, example: Tensor, names: tuple[str, str]) -> None:
    import torch
    from torch import nn

    class Tower(nn.Module):
        """One half of the model as a module of its own, which is what can be traced."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, rows: Tensor) -> Tensor:
            embedded: Tensor = getattr(self.model, method)(rows, normalize=True)
            return embedded

    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                Tower().eval(),
                (example,),
                str(path),
                dynamo=True,
                opset_version=OPSET,
                input_names=[names[0]],
                output_names=[names[1]],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=num_bytes > MAX_INLINE_BYTES,
                verbose=False,
            )
    except Exception as error:  # whatever the tracer meets in a tower; its errors share no base class
        raise ExportError(
            f"--onnx: the tower of {path.name} ({type(getattr(model, 'visual', model)).__name__} model) cannot be written as a "
            f"graph: {type(error).__name__}: {error}"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what tracer and optimizer have to say about their own parts; what they fail at is raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def check_features(folder: Path, trained: ClipModel, image_BCHW: Tensor, tokens_BL: Tensor) -> float:
    """The largest difference of onnxruntime's features from the trained model's, of one row and of several.

    Raises:
        ExportError: more than ``TOLERANCE``, or onnxruntime cannot load a graph.
    """
    import onnxruntime
    import torch

    difference = 0.0
    for name, rows, encode in (("image.onnx", image_BCHW, trained.encode_image), ("text.onnx", tokens_BL, trained.encode_text)):
        try:
            session = onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
            with torch.no_grad():
                ours = encode(rows)
            for count in (1, len(rows)):
                found = session.run(None, {session.get_inputs()[0].name: rows[:count].numpy()})[0]
                difference = max(difference, float((torch.from_numpy(found) - ours[:count]).abs().max()))
        except Exception as error:  # onnxruntime's own share no base class
            raise ExportError(f"onnxruntime cannot run {name}: {type(error).__name__}: {error}") from error
        if not difference <= TOLERANCE:
            raise ExportError(
                f"onnxruntime computes other features from {name}: off by {difference:.2e}, allowed is {TOLERANCE:.0e}"
            )
    return difference


def _describe(
    cfg: RunConfig, model_cfg: Mapping[str, Any], trained: ClipModel, tokens_BL: Tensor, difference: float | None
) -> dict[str, Any]:
    size = trained.image_size
    own = model_cfg["text_cfg"].get("hf_tokenizer_name")
    return {
        "opset": OPSET,
        "image": {
            "file": "image.onnx",
            "input": {"name": "pixel_values", "type": "float32", "shape": ["batch", 3, size, size]},
            "output": {"name": "image_embeddings", "type": "float32", "shape": ["batch", model_cfg["embed_dim"]]},
            "preprocessing": {
                "color": "RGB",
                "resize": {"shortest_edge": size, "interpolation": "bicubic, antialiased"},
                "center_crop": [size, size],
                "rescale": 1 / 255,
                "mean": list(cfg.model.image_mean),
                "std": list(cfg.model.image_std),
            },
        },
        "text": {
            "file": "text.onnx",
            "input": {"name": "input_ids", "type": "int64", "shape": ["batch", tokens_BL.shape[1]]},
            "output": {"name": "text_embeddings", "type": "float32", "shape": ["batch", model_cfg["embed_dim"]]},
            "tokenizer": {
                "file": "tokenizer.json",
                "kind": "the model's own" if own else "CLIP's byte pairs; start 49406, end 49407, then zeros",
                "context_length": tokens_BL.shape[1],
                "example": {"text": TEXTS[0], "input_ids": tokens_BL[0].tolist()},
            },
        },
        "normalised": True,
        "logit_scale": round(trained.logit_scale().detach().item(), 6),
        "max_feature_difference": difference,
    }
