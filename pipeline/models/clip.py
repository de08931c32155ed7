"""``ClipModel``: pixels and tokens in, ``Features`` out.

    model = build(cfg.model, cfg.objective)
    features = model(*inputs)                            # unit rows in fp32, bounded scale
    model.encode_image(image_BCHW)                       # [B, d], for evaluation

Shapes: V views of B samples of this rank, C = 3 channels, H = W = ``image_size`` pixels, L = ``context_length`` tokens, d = embed_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import ModelConfig, ObjectiveConfig
from pipeline.errors import ConfigError
from pipeline.features import Features, Scalar, view_name
from pipeline.models.names import from_open_clip
from pipeline.models.scale import BoundedScalar, LogitScale
from pipeline.models.towers import architecture, build_towers


def domains(num_views: int) -> tuple[str, ...]:
    """The embeddings that ``ClipModel`` makes of this many image views, by the names that losses use."""
    return (*(view_name(view) for view in range(num_views)), "text")


class ClipModel(nn.Module):
    """Two open_clip towers, the temperature, and further numbers that losses learn.

    Parameters are named ``visual.*``, ``text.*``, ``logit_scale.log_scale``, ``scalars.NAME.value``.
    """

    def __init__(
        self, visual: nn.Module, text: nn.Module, logit_scale: LogitScale, scalars: Mapping[str, Scalar] | None = None
    ) -> None:
        super().__init__()
        self.visual, self.text, self.logit_scale = visual, text, logit_scale
        self.scalars = nn.ModuleDict({name: BoundedScalar(scalar) for name, scalar in (scalars or {}).items()})

    @property
    def image_size(self) -> int:
        """Height and width in pixels that the image tower expects."""
        size: Any = self.visual.image_size
        return int(size[0] if isinstance(size, (tuple, list)) else size)

    @property
    def context_length(self) -> int:
        """Tokens per caption that the text tower expects."""
        length: Any = self.text.context_length
        return int(length)

    def encode_image(self, image_BCHW: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] to unit rows [B, d] in fp32."""
        return _unit_rows(self.visual(image_BCHW.to(self._dtype)))

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        """Token ids int64 [B, L] to unit rows [B, d] in fp32."""
        return _unit_rows(self.text(tokens_BL))

    def forward(self, image_VBCHW: Tensor, tokens_BL: Tensor, group_B: Tensor, view_params_VBK: Tensor) -> Features:
        """One step's embeddings, an encoder pass per view; see ``Inputs`` and ``Features``."""
        embeddings = {view_name(view): self.encode_image(image_BCHW) for view, image_BCHW in enumerate(image_VBCHW)}
        embeddings["text"] = self.encode_text(tokens_BL)
        scalars = {name: scalar() for name, scalar in self.scalars.items()}
        return Features(embeddings, {"scale": self.logit_scale(), **scalars}, group_B)

    @property
    def _dtype(self) -> torch.dtype:
        """What the towers compute in: DeepSpeed may have cast them to bf16 or fp16."""
        return next(self.visual.parameters()).dtype


def _unit_rows(embeddings_Bd: Tensor) -> Tensor:
    # fp32 before the division: a bf16 norm would put cosines off by 1e-2. The eps keeps a zero vector finite.
    return F.normalize(embeddings_Bd.float(), dim=-1, eps=1e-6)


def build(model: ModelConfig, objective: ObjectiveConfig, scalars: Mapping[str, Scalar] | None = None) -> ClipModel:
    """The model of a run, on the CPU in fp32, with the initial weights the configuration asks for.

    Args:
        model: architecture and options.
        objective: the temperature's start and bound.
        scalars: further numbers that the run's loss learns (``Objective.scalars``); evaluation and export need none.

    Raises:
        ConfigError: the architecture is unknown, or ``model.init_weights`` does not fit it.
    """
    visual, text = build_towers(architecture(model))
    scale = LogitScale(objective.init_temperature, objective.min_temperature, objective.learn_temperature)
    clip = ClipModel(visual, text, scale, scalars)
    if model.gradient_checkpointing:
        visual.set_grad_checkpointing(True)
        text.set_grad_checkpointing(True)
    if model.init_weights is not None:
        load_weights(clip, Path(model.init_weights))
    if model.compile:
        visual.compile()
        text.compile()
    return clip


def load_weights(clip: ClipModel, path: Path) -> None:
    """Load a ``.safetensors`` file of this project or of open_clip into ``clip``, all names and shapes matching.

    Raises:
        ConfigError: another file type (a pickle could run code), a missing file, or tensors that do not fit, named.
    """
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":
        raise ConfigError(f"model.init_weights = {path}: only .safetensors files are read; pickled weights can run code")
    if not path.is_file():
        raise ConfigError(f"model.init_weights = {path} does not exist")
    loaded = from_open_clip(load_file(path))
    # A loss's own numbers are no part of a model that comes from elsewhere: they keep their start unless the file has them.
    expected = {name: t for name, t in clip.state_dict().items() if not name.startswith("scalars.") or name in loaded}
    wrong = [
        f"{name}: expected {tuple(expected[name].shape) if name in expected else 'nothing'}, "
        f"found {tuple(loaded[name].shape) if name in loaded else 'nothing'}"
        for name in sorted(expected.keys() | loaded.keys())
        if name not in expected or name not in loaded or expected[name].shape != loaded[name].shape
    ]
    if wrong:
        listed = "\n  ".join(wrong[:8])
        raise ConfigError(f"model.init_weights = {path} does not fit the model ({len(wrong)} tensors):\n  {listed}")
    clip.load_state_dict(loaded, strict=False)  # compared above
