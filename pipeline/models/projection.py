"""Taking the last step of a tower, from its feature to its embedding, out of the tower and into a head.

    moved = take_projection(visual, "visual", None)
    moved.projection(visual(pixels))           # what visual(pixels) returned before, bit for bit
    moved.names                                # {"projection.weight": "visual.proj"}: for files of weights

A module's parameters must be used in its own ``forward`` (ZeRO stage 3 gathers them there), so they move as a whole.

Shapes: b samples, D feature width, d embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import Tensor, nn

from pipeline.errors import ConfigError


class MatrixProjection(nn.Module):
    """``x @ weight`` without a bias, in open_clip's orientation [D, d]."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x_bD: Tensor) -> Tensor:
        """[b, D] to [b, d]."""
        return x_bD @ self.weight


@dataclass(frozen=True)
class MovedProjection:
    """What was taken out of a tower."""

    norm: nn.Module
    projection: nn.Module
    width: int
    """D, of what the tower returns now."""
    names: dict[str, str]
    """Name of each tensor inside ``norm`` and ``projection`` -> its name before, with the tower's prefix."""


def class_token_norm(tower: Any, setting: str, advice: str) -> str:
    """The name of the norm before the tower's projection, if residual MLP blocks can stand in front of it.

    They can where the feature is one token of plain transformer layers: then a block before the norm is the same function as
    one more layer without attention, and the model exports as an ordinary, deeper one.

    Raises:
        ConfigError: another kind of tower; ``setting`` and ``advice`` say what to change.
    """
    layers = getattr(getattr(tower, "transformer", None), "resblocks", [None])
    plain = all(type(layer) is ResidualAttentionBlock for layer in layers)
    if plain and isinstance(tower, VisionTransformer) and tower.pool_type == "tok" and tower.attn_pool is None:
        return "ln_post"
    if plain and isinstance(tower, TextTransformer) and (tower.pool_type != "none" or tower.cls_emb is not None):
        return "ln_final"
    pooling = f" with pool_type {tower.pool_type}" if hasattr(tower, "pool_type") else ""
    raise ConfigError(
        f"{setting}: needs a tower of plain transformer layers whose feature is one token, to be exportable; this one is a "
        f"{type(tower).__name__}{pooling}; {advice}"
    )


def take_projection(tower: Any, prefix: str, norm: str | None, embed_dim: int) -> MovedProjection:
    """Remove the projection (and the named norm before it) from ``tower``, which then returns its feature.

    A tower whose projection cannot be told apart (ModifiedResNet ends in attention pooling, some timm models in their own
    classifier) keeps it: its feature is its embedding.

    Args:
        tower: an open_clip tower; changed in place.
        prefix: ``visual`` or ``text``, for the names.
        norm: attribute of the norm to take along; see ``class_token_norm``.
        embed_dim: d, the width of what the tower returned before.
    """
    names: dict[str, str] = {}
    taken: nn.Module = nn.Identity()
    if norm is not None:
        taken = getattr(tower, norm)
        setattr(tower, norm, nn.Identity())
        names = {f"norm.{name}": f"{prefix}.{norm}.{name}" for name, _ in taken.named_parameters()}
    owner, attribute = _place(tower)
    found = None if owner is None else getattr(owner, attribute)
    if isinstance(found, nn.Parameter):
        setattr(owner, attribute, None)
        names["projection.weight"] = f"{prefix}.{attribute}"
        return MovedProjection(taken, MatrixProjection(found), found.shape[0], names)
    if isinstance(found, nn.Linear):
        setattr(owner, attribute, None if isinstance(tower, TextTransformer) else nn.Identity())
        path = f"{prefix}.head.{attribute}" if isinstance(tower, TimmModel) else f"{prefix}.{attribute}"
        names |= {f"projection.{name}": f"{path}.{name}" for name, _ in found.named_parameters()}
        return MovedProjection(taken, found, found.in_features, names)
    return MovedProjection(taken, nn.Identity(), embed_dim, names)


def _place(tower: Any) -> tuple[Any, str]:
    """The module and attribute that hold a tower's projection; (None, "") where there is none."""
    if isinstance(tower, VisionTransformer):
        return tower, "proj"
    if isinstance(tower, TextTransformer):
        return tower, "text_projection"
    if isinstance(tower, HFTextEncoder):
        return tower, "proj"
    if isinstance(tower, TimmModel) and hasattr(tower.head, "proj"):
        return tower.head, "proj"
    return None, ""
