"""Heads on the towers' features: UniCLIP's f_A, g_I and g_T, independent features, SimCLR's projector.

    features:    x = tower(pixels)                  [b, D]   the tower sees pixels only, never an augmentation
    f_A          e = AugmentationEncoder(a)         [b, E]   a [b, K] says what was done to the view
    g_I, g_T     z = ConditionedProjection(x, e)    [b, d]   residual blocks, then the tower's own norm and projection
    others       u = Projector(x)                   [b, d']  beside the projection

Every residual block is zero at the start, so that training starts as plain CLIP, bit for bit. An augmentation that did
nothing (a = 0) has the embedding e = 0 at all times, since f_A is taken relative to its value there: evaluation, which
augments nothing, passes no e at all and never runs f_A. That also makes the heads exportable: without e a ``mlp`` block is a
transformer layer without attention, and an ``affine`` block is nothing (``fold.py``). (Lee et al. 2022, "UniCLIP".)

Shapes: b images, K numbers per view, E width of the augmentation's embedding, D feature width, d embedding width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.model import AugmentationConfig, HeadsConfig, ProjectorConfig
from pipeline.errors import ConfigError
from pipeline.models.projection import MovedProjection, class_token_norm, take_projection


class AugmentationEncoder(nn.Module):
    """f_A: what was done to a view -> its embedding; nothing at all -> 0."""

    def __init__(self, num_params: int, width: int, num_layers: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for place in range(num_layers):  # the last one's bias would cancel in the difference below
            layers += [nn.GELU()] if place else []
            layers.append(nn.Linear(width if place else num_params, width, bias=place < num_layers - 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, params_bK: Tensor) -> Tensor:
        """[b, K] to [b, E], relative to the embedding of the view that was left as it is."""
        embedded: Tensor = self.layers(torch.cat([params_bK, torch.zeros_like(params_bK[:1])]))
        return embedded[:-1] - embedded[-1:]


class MlpBlock(nn.Module):
    """``x + e's shift``, then ``x + MLP(norm(x))``: a transformer layer's second half. Zero at the start."""

    def __init__(self, layer: Any, hidden_width: int | None, condition_width: int | None) -> None:
        """``layer`` is one of the tower's own transformer layers: norm, activation, and default width are its kind."""
        super().__init__()
        width, most = layer.mlp.c_fc.in_features, layer.mlp.c_fc.out_features
        hidden_width = hidden_width or most
        if hidden_width > most:
            raise ConfigError(
                f"model.heads.augmentation.block_width = {hidden_width}: at most {most}, the width of the tower's own MLPs, so "
                f"that a block can be exported as one of its layers"
            )
        self.shift = None if condition_width is None else _zero(nn.Linear(condition_width, width, bias=False))
        self.norm = type(layer.ln_2)(width, eps=layer.ln_2.eps)
        self.c_fc, self.act = nn.Linear(width, hidden_width), copy.deepcopy(layer.mlp.gelu)
        self.c_proj = _zero(nn.Linear(hidden_width, width))

    def forward(self, x_bD: Tensor, e_bE: Tensor | None) -> Tensor:
        """[b, D] to [b, D]."""
        if self.shift is not None and e_bE is not None:
            x_bD = x_bD + self.shift(e_bE)
        residual_bD: Tensor = self.c_proj(self.act(self.c_fc(self.norm(x_bD))))
        return x_bD + residual_bD


class AffineBlock(nn.Module):
    """``x + up(s(e) * down(x)) + c(e)``: for each augmentation another affine map of the feature. Nothing where e = 0."""

    def __init__(self, width: int, rank: int, condition_width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
        self.modulation = _zero(nn.Linear(condition_width, rank + width, bias=False))

    def forward(self, x_bD: Tensor, e_bE: Tensor | None) -> Tensor:
        """[b, D] to [b, D]."""
        if e_bE is None:
            return x_bD
        scale_br, shift_bD = self.modulation(e_bE).split([self.down.out_features, x_bD.shape[1]], dim=1)
        moved_bD: Tensor = x_bD + self.up(scale_br * self.down(x_bD)) + shift_bD
        return moved_bD


class ConditionedProjection(nn.Module):
    """g_I or g_T: residual blocks, then the norm (where it was taken from the tower) and the projection of the tower."""

    def __init__(self, blocks: Sequence[nn.Module], moved: MovedProjection) -> None:
        super().__init__()
        self.blocks, self.norm, self.projection = nn.ModuleList(blocks), moved.norm, moved.projection

    def forward(self, x_bD: Tensor, e_bE: Tensor | None = None) -> Tensor:
        """[b, D] to [b, d], not normalised."""
        for block in self.blocks:
            x_bD = block(x_bD, e_bE)
        z_bd: Tensor = self.projection(self.norm(x_bD))
        return z_bd


class Projector(nn.Module):
    """Layer norm, then linear layers with GELU between them. No batch norm: embeddings would depend on the number of ranks."""

    def __init__(self, cfg: ProjectorConfig, feature_width: int, embed_dim: int) -> None:
        super().__init__()
        self.on_embedding = cfg.placement == "embedding"
        first, last = (embed_dim if self.on_embedding else feature_width), cfg.out_dim or embed_dim
        widths = [first, *[cfg.hidden_width] * (cfg.layers - 1), last]
        layers: list[nn.Module] = [nn.LayerNorm(first)]
        for place, (width_in, width_out) in enumerate(zip(widths, widths[1:], strict=False)):
            layers += ([nn.GELU()] if place else []) + [nn.Linear(width_in, width_out, bias=False)]
        self.layers = nn.Sequential(*layers)

    def forward(self, feature_bD: Tensor, embedding_bd: Tensor) -> Tensor:
        """[b, d'], not normalised, of the feature or of the embedding, as configured."""
        u: Tensor = self.layers(embedding_bd if self.on_embedding else feature_bD)
        return u


class Heads(nn.Module):
    """All heads of a model. Takes the towers' projections over: the towers then return features."""

    def __init__(self, cfg: HeadsConfig, visual: nn.Module, text: nn.Module, embed_dim: int, num_view_params: int) -> None:
        """Build the heads, and take the projections out of ``visual`` and ``text``.

        Raises:
            ConfigError: a head does not fit its tower, or there is no augmentation to be aware of.
        """
        super().__init__()
        augmentation = cfg.augmentation
        if augmentation is not None and num_view_params == 0:
            raise ConfigError("model.heads.augmentation: the data describes no augmentation (0 numbers per view)")
        mlp = augmentation is not None and augmentation.form == "mlp"
        image_norm = class_token_norm(visual, "model.heads.augmentation.form = mlp", "use form: affine") if mlp else None
        text_norm = class_token_norm(text, "model.heads.text_blocks", "use text_blocks: 0") if cfg.text_blocks else None
        image = take_projection(visual, "visual", image_norm, embed_dim)
        words = take_projection(text, "text", text_norm, embed_dim)
        self.moved_names = {
            **{f"heads.image.{ours}": theirs for ours, theirs in image.names.items()},
            **{f"heads.text.{ours}": theirs for ours, theirs in words.names.items()},
        }
        """Our names of tensors that came from the towers -> the names that they had there."""
        self.augmentation: AugmentationEncoder | None = None
        image_blocks: list[nn.Module] = []
        if augmentation is not None:
            width = augmentation.encoder_width
            self.augmentation = AugmentationEncoder(num_view_params, width, augmentation.encoder_layers)
            image_blocks = [_image_block(augmentation, visual, image.width) for _ in range(augmentation.blocks)]
        self.image = ConditionedProjection(image_blocks, image)
        text_blocks = [MlpBlock(_last_layer(text), None, None) for _ in range(cfg.text_blocks)]
        self.text = ConditionedProjection(text_blocks, words)
        independent, projector = cfg.independent, cfg.projector
        self.independent_image = None if independent is None else Projector(independent, image.width, embed_dim)
        self.independent_text = None if independent is None else Projector(independent, words.width, embed_dim)
        self.projected_image = None if projector is None else Projector(projector, image.width, embed_dim)

    def of_images(self, feature_bD: Tensor, params_bK: Tensor | None) -> dict[str, Tensor]:
        """Embeddings of images, not normalised: ``image``, and ``independent_image``, ``projected_image`` where configured.

        Args:
            feature_bD: what the image tower returned.
            params_bK: what was done to each image; None is nothing, as in evaluation.
        """
        e_bE: Tensor | None = None
        if self.augmentation is not None and params_bK is not None:
            e_bE = self.augmentation(params_bK.to(feature_bD.dtype))
        found = {"image": self.image(feature_bD, e_bE)}
        for name in ("independent_image", "projected_image"):
            head = getattr(self, name)
            if head is not None:
                found[name] = head(feature_bD, found["image"])
        return found

    def of_texts(self, feature_bD: Tensor) -> dict[str, Tensor]:
        """Embeddings of texts, not normalised: ``text``, and ``independent_text`` where configured."""
        found = {"text": self.text(feature_bD)}
        if self.independent_text is not None:
            found["independent_text"] = self.independent_text(feature_bD, found["text"])
        return found


def _image_block(cfg: AugmentationConfig, visual: nn.Module, width: int) -> nn.Module:
    if cfg.form == "affine":
        return AffineBlock(width, cfg.block_width or width, cfg.encoder_width)
    return MlpBlock(_last_layer(visual), cfg.block_width, cfg.encoder_width)


def _last_layer(tower: Any) -> Any:
    return tower.transformer.resblocks[-1]


def _zero(layer: nn.Linear) -> nn.Linear:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
