"""Folders of models as open_clip and Hugging Face write them: the weights in them, and the architecture they belong to.

    folder = read(Path("exports/emoji"))           # or a CLIPModel's folder, or a snapshot of a hub repository
    folder.architecture                            # open_clip's configuration: {"embed_dim": 512, "vision_cfg": ..., ...}
    folder.weights                                 # (Path("exports/emoji/open_clip_model.safetensors"),)
    weight_files(Path("clip-vit-base-patch32"))    # the weights alone, for model.init_weights

Nothing in such a folder is trusted. JSON is read up to a size; a name in it leads neither out of the folder nor, where it is a
place in a hub, into the network; weights are safetensors, or plain tensors; and a configuration that describes more numbers
than the weights' files have bytes is refused before any memory is taken for it. No file here can run code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError, ConfigError
from pipeline.models import hf_config
from pipeline.models.text_tower_files import TEXT_TOWER

CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"
HF_CONFIG_FILE, HF_WEIGHTS_FILE, HF_PREPROCESS_FILE = "config.json", "model.safetensors", "preprocessor_config.json"
_INDEX = "model.safetensors.index.json"
_WEIGHTS = (WEIGHTS_FILE, HF_WEIGHTS_FILE, _INDEX, "open_clip_pytorch_model.bin", "pytorch_model.bin")
_MAX_JSON_BYTES = 4 * 2**20
_MAX_VOCABULARY_BYTES = 64 * 2**20
_MAX_NUMBER = 2**22
_MAX_NUMBERS = {"layers": 1000, "context_length": 16_384, "image_size": 2048, "attn_pooler_queries": 16_384}
_BICUBIC = 3
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ModelFolder:
    """A model that somebody wrote."""

    architecture: dict[str, Any]
    """open_clip's configuration; names of tokenizers and towers that the folder holds point into it."""
    weights: tuple[Path, ...]
    """One file, or the shards of one."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def is_model_folder(path: Path) -> bool:
    """Whether ``path`` is a folder that ``read`` is for: open_clip's layout, or that of a Hugging Face model."""
    if (path / CONFIG_FILE).is_file():
        return True
    # A run and a checkpoint hold their own config.yaml or state.json beside model.safetensors, never a config.json.
    return (path / HF_CONFIG_FILE).is_file()


def read(folder: Path) -> ModelFolder:
    """What ``folder`` holds, checked as far as can be without building it.

    Raises:
        CheckpointError: a file is missing or cannot be used, the architecture is none of open_clip's, images would have to be
            prepared in another way than here, or the configuration describes more than the weights hold.
    """
    architecture = read_architecture(folder)
    if architecture is None:
        raise CheckpointError(f"{folder} holds neither {CONFIG_FILE} nor a {HF_CONFIG_FILE}")
    weights = weight_files(folder)
    _stay_inside(folder, architecture)
    _check_size(folder, architecture, sum(path.stat().st_size for path in weights))
    mean, std = _preprocessing(folder, architecture["vision_cfg"].get("image_size", 224))
    return ModelFolder(architecture, tuple(weights), mean, std)


def read_architecture(folder: Path) -> dict[str, Any] | None:
    """The open_clip configuration that a folder's JSON describes; None where it describes none.

    Raises:
        CheckpointError: there is one, and it cannot be used.
    """
    if (folder / CONFIG_FILE).is_file():
        found = _read_json(folder / CONFIG_FILE).get("model_cfg")
        if not isinstance(found, dict) or not all(isinstance(found.get(key), dict) for key in ("vision_cfg", "text_cfg")):
            raise CheckpointError(f"{folder / CONFIG_FILE} cannot be used: no model_cfg with vision_cfg and text_cfg")
        return found
    path = folder / HF_CONFIG_FILE
    if not path.is_file():
        return None
    try:
        return hf_config.open_clip_config(_read_json(path))
    except ConfigError as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error


def weight_files(folder: Path) -> list[Path]:
    """The files of weights in a folder: open_clip's, or else Hugging Face's, in one piece or in shards.

    Raises:
        CheckpointError: there is none, or the index of the shards names files that are not beside it.
    """
    for name in _WEIGHTS:
        path = folder / name
        if path.is_file():
            return _shards(path) if name == _INDEX else [path]
    raise CheckpointError(f"{folder} holds no weights; looked for {', '.join(_WEIGHTS)}")


def _shards(index: Path) -> list[Path]:
    named = _read_json(index).get("weight_map")
    if not isinstance(named, dict):
        raise CheckpointError(f"{index} cannot be used: no weight_map")
    files = sorted({str(name) for name in named.values()})
    wrong = [name for name in files if Path(name).name != name or not (index.parent / name).is_file()]
    if wrong or not files:
        raise CheckpointError(
            f"{index} names {len(wrong)} of {len(files)} files that are not beside it, the first: {wrong[:1]}"
        )
    return [index.parent / name for name in files]


def _read_json(path: Path, limit: int = _MAX_JSON_BYTES) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > limit:
            raise CheckpointError(f"{path} has {size} bytes; at most {limit} are read")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be used: {type(error).__name__}: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} cannot be used: expected an object, found {type(found).__name__}")
    return found


def _check_size(folder: Path, architecture: Mapping[str, Any], num_bytes: int) -> None:
    """Refuse a configuration that would take far more memory than the weights that come with it."""
    for name, value in _numbers(architecture):
        limit = _MAX_NUMBERS.get(name, _MAX_NUMBER)
        if abs(value) > limit:
            raise CheckpointError(f"{folder}: {name} = {value} in its configuration; at most {limit} is taken")
    try:
        least = _least_numbers(architecture)
        if architecture["text_cfg"].get("hf_model_name") == str(folder / TEXT_TOWER):
            least += _least_numbers_of_tower(_read_json(folder / TEXT_TOWER / HF_CONFIG_FILE))
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise CheckpointError(f"{folder}: its configuration cannot be used: {error}") from error
    if least > num_bytes:
        raise CheckpointError(
            f"{folder}: its configuration describes at least {least:,.0f} numbers, but its weights have {num_bytes:,} bytes"
        )


def _least_numbers(architecture: Mapping[str, Any]) -> float:
    """How many numbers the towers hold at least: their layers' matrices, projections, and embeddings of words and positions."""
    image, text, embed_dim = architecture["vision_cfg"], architecture["text_cfg"], architecture.get("embed_dim", 0)
    layers, width = image.get("layers", 12), image.get("width", 768)
    least = 0.0
    if isinstance(layers, (list, tuple)):  # a ResNet
        least += sum(layers) * width**2
    elif not image.get("timm_model_name"):
        least += layers * width**2 * (4 + 2 * image.get("mlp_ratio", 4.0)) + width * embed_dim
        least += width * (hf_config.side(image.get("image_size", 224)) // hf_config.side(image.get("patch_size", 16))) ** 2
    if not text.get("hf_model_name"):
        width, words = text.get("width", 512), text.get("vocab_size", 49408)
        least += text.get("layers", 12) * width**2 * (4 + 2 * text.get("mlp_ratio", 4.0))
        least += width * (words + text.get("context_length", 77) + embed_dim)
    decoder = architecture.get("multimodal_cfg")
    if decoder:
        width = decoder.get("width", 512)
        least += (
            decoder.get("layers", 12) * width**2 * (8 + 4 * decoder.get("mlp_ratio", 4.0))
        )  # a layer looks at words and image
    return float(least)


def _least_numbers_of_tower(config: Mapping[str, Any]) -> float:
    """The same of a Hugging Face text tower, by the names that most of them share."""
    width, layers = config.get("hidden_size", 0), config.get("num_hidden_layers", 0)
    matrices = 4 * width + 2 * config.get("intermediate_size", 0)
    return float(width * (config.get("vocab_size", 0) + config.get("max_position_embeddings", 0)) + layers * width * matrices)


def _numbers(tree: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a configuration with the key it stands under."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _numbers(value, str(key))
    elif isinstance(tree, list):
        for value in tree:
            yield from _numbers(value, name)
    elif isinstance(tree, (int, float)):
        yield name, tree


def _stay_inside(folder: Path, architecture: dict[str, Any]) -> None:
    """Point the names of towers and tokenizers to what the folder holds, and refuse those that would fetch something."""
    timm_name = str(architecture["vision_cfg"].get("timm_model_name") or "")
    if ":" in timm_name or "/" in timm_name:
        raise CheckpointError(f"{folder}: timm_model_name = {timm_name!r} is a place and not a name that timm knows")
    for described in (folder / TEXT_TOWER / HF_CONFIG_FILE, folder / "tokenizer_config.json"):
        if described.is_file() and _read_json(described).get("auto_map"):
            raise CheckpointError(f"{described} names code of its own (auto_map), which is not run here")
    text = architecture["text_cfg"]
    if text.get("hf_model_name") == TEXT_TOWER:
        text["hf_model_name"] = str(folder / TEXT_TOWER)
    if (folder / CONFIG_FILE).is_file():
        named = bool(text.get("hf_tokenizer_name")) and (folder / "tokenizer_config.json").is_file()
    else:
        named = not _has_clips_vocabulary(folder, text.get("vocab_size", 49408))
    if named:
        text["hf_tokenizer_name"] = str(folder)


def _has_clips_vocabulary(folder: Path, vocab_size: int) -> bool:
    """Whether a Hugging Face folder's tokenizer is CLIP's own, so that the one built in here serves."""
    from open_clip.tokenizer import SimpleTokenizer

    for name, inner in (("vocab.json", ()), ("tokenizer.json", ("model", "vocab"))):
        if (folder / name).is_file():
            found: Any = _read_json(folder / name, _MAX_VOCABULARY_BYTES)
            for key in inner:
                found = found.get(key) if isinstance(found, dict) else None
            clip = SimpleTokenizer()
            ends = (hf_config.START_TOKEN, hf_config.END_TOKEN)  # written otherwise there
            ours = {word: number for word, number in clip.encoder.items() if number not in ends}
            theirs = {word: number for word, number in found.items() if number not in ends} if isinstance(found, dict) else {}
            return ours == theirs
    return vocab_size == hf_config.END_TOKEN + 1


def _preprocessing(folder: Path, image_size: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation; everything else must be as evaluation here does it."""
    if (folder / CONFIG_FILE).is_file():
        path = folder / CONFIG_FILE
        found = _read_json(path).get("preprocess_cfg") or {}
        wanted: dict[str, tuple[Any, ...]] = {"interpolation": ("bicubic",), "resize_mode": ("shortest",)}
        mean, std = found.get("mean", _CLIP_MEAN), found.get("std", _CLIP_STD)
    else:
        path = folder / HF_PREPROCESS_FILE
        found = _read_json(path) if path.is_file() else {}
        wanted = {"resample": (_BICUBIC,), **dict.fromkeys(("do_resize", "do_center_crop", "do_normalize"), (True,))}
        wanted["size"] = (image_size, {"shortest_edge": image_size})
        wanted["crop_size"] = (image_size, {"height": image_size, "width": image_size})
        mean, std = found.get("image_mean", _CLIP_MEAN), found.get("image_std", _CLIP_STD)
    for key, allowed in wanted.items():
        if found.get(key, allowed[0]) not in allowed:
            raise CheckpointError(f"{path}: {key} = {found[key]!r}; only {allowed[0]!r} is supported")
    for name, values in (("mean", mean), ("std", std)):
        if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(isinstance(x, (int, float)) for x in values):
            raise CheckpointError(f"{path}: {name} = {values!r}; expected three numbers")
    return (float(mean[0]), float(mean[1]), float(mean[2])), (float(std[0]), float(std[1]), float(std[2]))
