"""Weights that come from elsewhere: reading files of several layouts, and putting them into a model or a part of one.

    state = read(Path("ViT-B-32.safetensors"))                  # tensors by our names
    load(clip, Path("open_clip_model.safetensors"))             # every tensor of the towers, all names and shapes matching
    load(clip, path, fresh_projections=True)                    # all but the projections (contrastive-gap protocol)
    load(clip, Path("clip-vit-base-patch32"))                   # a folder, of open_clip's layout or Hugging Face's
    load_tower(clip, "visual", Path("efficientnet_lite0.safetensors"))
    blend([theirs, ours], [0.5, 0.5])                           # WiSE-FT, model soups

Files are ``.safetensors``, or ``.pt`` / ``.pth`` / ``.bin`` state dicts that torch reads with ``weights_only=True``: no file
can run code here. Layouts: our own, open_clip's two, OpenAI's state dict, and Hugging Face's ``CLIPModel`` and dual encoder.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip.model import resize_pos_embed
from open_clip.timm_model import TimmModel
from open_clip.transformer import QuickGELU
from torch import Tensor

from pipeline.errors import CheckpointError, ConfigError
from pipeline.models import folders
from pipeline.models.hf_names import from_hugging_face, is_hugging_face
from pipeline.models.model import ClipModel
from pipeline.models.names import from_open_clip, is_projection

PICKLES = (".pt", ".pth", ".bin")
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # numbers that OpenAI keeps among the weights

_logger = logging.getLogger("unisphere")


def read_file(path: Path, setting: str) -> dict[str, Tensor]:
    """Tensors by the file's own names, floating ones in fp32; ``setting`` is named in errors.

    Args:
        path: a file, or a folder as ``folders.weight_files`` knows them.

    Raises:
        ConfigError: a missing file, another type, or a file that holds something other than named tensors.
    """
    if path.is_dir():
        try:
            files = folders.weight_files(path)
        except CheckpointError as error:
            raise ConfigError(f"{setting} = {path}: {error}") from error
        return {name: tensor for file in files for name, tensor in read_file(file, setting).items()}
    if path.suffix not in (".safetensors", *PICKLES):
        raise ConfigError(f"{setting} = {path}: expected .safetensors, or a state dict in {', '.join(PICKLES)}")
    if not path.is_file():
        raise ConfigError(f"{setting} = {path} does not exist")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state: Any = load_file(path)
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a damaged or hostile pickle leads to
            raise ConfigError(f"{setting} = {path} cannot be read as plain tensors: {error}") from error
        state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ConfigError(f"{setting} = {path} holds no state dict (names and tensors)")
    names = {name: name.removeprefix("module.") for name in state}
    return {
        names[name]: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
        if names[name] not in _NOT_WEIGHTS and names[name].split(".")[-1] not in ("attn_mask", "position_ids")
    }


def read(path: Path, setting: str = "weights") -> dict[str, Tensor]:
    """A CLIP model's tensors by our names.

    Raises:
        ConfigError: the file cannot be used; see ``read_file``.
    """
    state = read_file(path, setting)
    return from_hugging_face(state) if is_hugging_face(state) else from_open_clip(state)


def load(clip: ClipModel, path: Path, *, fresh_projections: bool = False, setting: str = "model.init_weights") -> None:
    """Load a file or folder of this project, open_clip, OpenAI, or Hugging Face into ``clip``; all names and shapes match.

    Heads and numbers that losses learn keep their start unless the file has them. Position embeddings of another image size
    are interpolated, and the log says so.

    Args:
        clip: changed in place.
        path: the file, or a folder; of a folder that says which activation its weights belong to, that is compared too.
        fresh_projections: leave the file's projections out.
        setting: what asked for the file, for errors.

    Raises:
        ConfigError: the file cannot be read, or tensors do not fit; they are named.
    """
    if path.is_dir():
        _check_activation(clip, path, setting)
    plain = clip.moved_names
    ours = {plain.get(name, name): name for name in clip.state_dict()}
    found = {plain.get(name, name): tensor for name, tensor in read(path, setting).items()}
    if fresh_projections:
        found = {name: tensor for name, tensor in found.items() if not is_projection(name)}
    found = {name: tensor for name, tensor in found.items() if not name.startswith("scalars.") or name in ours}
    _resize_positions(clip, found)
    state = clip.state_dict()
    expected = {
        name: state[mine]
        for name, mine in ours.items()
        if name in found or not (name.startswith(("scalars.", "heads.")) or (fresh_projections and is_projection(name)))
    }
    wrong = mismatches(expected, found)
    if wrong:
        listed = "\n  ".join(wrong[:8])
        hint = "\na run with heads exports plain weights: unisphere export" if any("heads." in line for line in wrong) else ""
        raise ConfigError(f"{setting} = {path} does not fit the model ({len(wrong)} tensors):\n  {listed}{hint}")
    clip.load_state_dict({ours[name]: tensor for name, tensor in found.items()}, strict=False)  # compared above


def load_tower(clip: ClipModel, prefix: str, path: Path) -> None:
    """Load one tower's weights: a whole CLIP file, of which that tower is taken, or a timm or Hugging Face model's own names.

    The projection is left out, and so is a classifier that the file may have; both are named in the log.

    Raises:
        ConfigError: the file cannot be read, or tensors do not fit; they are named.
    """
    setting = f"model.{'image' if prefix == 'visual' else 'text'}_tower.init_weights"
    raw, tower = read_file(path, setting), getattr(clip, prefix)
    if any(name.startswith("visual.") for name in raw) or is_hugging_face(raw):
        known = from_hugging_face(raw) if is_hugging_face(raw) else from_open_clip(raw)
        found = {name.removeprefix(f"{prefix}."): t for name, t in known.items() if name.startswith(f"{prefix}.")}
    else:
        inner = "trunk." if isinstance(tower, TimmModel) else "transformer." if hasattr(tower, "pooler") else ""
        found = {inner + name.removeprefix(inner): tensor for name, tensor in raw.items()}
    expected = {
        name: tensor
        for name, tensor in tower.state_dict().items()
        if not is_projection(f"{prefix}.{name}") and "pooler." not in name and not name.endswith("num_batches_tracked")
    }
    extra = sorted(found.keys() - tower.state_dict().keys() | {name for name in found if is_projection(f"{prefix}.{name}")})
    found = {name: tensor for name, tensor in found.items() if name not in extra}
    wrong = mismatches(expected, {name: tensor for name, tensor in found.items() if name in expected})
    if wrong:
        listed = "\n  ".join(wrong[:8])
        raise ConfigError(f"{setting} = {path} does not fit the {prefix} tower ({len(wrong)} tensors):\n  {listed}")
    tower.load_state_dict(found, strict=False)  # compared above
    if extra:
        _logger.info(
            "%s: %d tensors not used: %s", path, len(extra), ", ".join(extra[:8]) + (", ..." if len(extra) > 8 else "")
        )


def mismatches(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """One line per tensor that is missing, superfluous, or of another shape."""
    return [
        f"{name}: expected {tuple(expected[name].shape) if name in expected else 'nothing'}, "
        f"found {tuple(found[name].shape) if name in found else 'nothing'}"
        for name in sorted(expected.keys() | found.keys())
        if name not in expected or name not in found or expected[name].shape != found[name].shape
    ]


def blend(states: Sequence[Mapping[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of several models' tensors, summed in float64.

    Two models and shares (1 - a, a) are WiSE-FT (Wortsman et al. 2022); equal shares of several runs a model soup. The
    temperature's parameter is a logarithm, so that its mean is a geometric one.

    Raises:
        ConfigError: shares that do not sum to 1, or models of different tensors.
    """
    if len(states) != len(shares) or abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"shares {list(shares)} of {len(states)} models must be as many, and sum to 1")
    for number, state in enumerate(states[1:], start=2):
        if wrong := mismatches(states[0], state):
            raise ConfigError(f"model {number} of the blend has other tensors ({len(wrong)}):\n  " + "\n  ".join(wrong[:8]))
    return {
        name: torch.stack([share * state[name].double() for state, share in zip(states, shares, strict=True)])
        .sum(dim=0)
        .to(first.dtype)
        for name, first in states[0].items()
    }


def _check_activation(clip: ClipModel, folder: Path, setting: str) -> None:
    """Refuse weights of another activation: no tensor's name or shape would show it."""
    try:
        described = folders.read_architecture(folder)
    except CheckpointError:  # a dual encoder, say: nothing to compare with, and its tensors are checked all the same
        return
    if described is None:
        return
    quick = bool(described.get("quick_gelu"))
    for tower in (clip.visual, clip.text):
        layer = next(iter(getattr(getattr(tower, "transformer", None), "resblocks", [])), None)
        if layer is not None and isinstance(getattr(layer.mlp, "gelu", None), QuickGELU) != quick:
            has, lacks = ("quick_gelu", "gelu") if quick else ("gelu", "quick_gelu")
            raise ConfigError(
                f"{setting} = {folder}: its weights were trained with {has}, the model of this run has {lacks}; choose an "
                f"architecture {'with' if quick else 'without'} quick_gelu (open_clip's names say -quickgelu)"
            )


def _resize_positions(clip: ClipModel, found: dict[str, Tensor]) -> None:
    name = "visual.positional_embedding"
    before = found.get(name)
    if (
        before is not None
        and before.ndim == 2
        and before.shape[1:] == getattr(clip.visual, name.split(".")[1], before).shape[1:]
    ):
        resize_pos_embed(found, clip)
        if found[name].shape != before.shape:
            _logger.info("position embeddings interpolated from %d to %d tokens", len(before), len(found[name]))
