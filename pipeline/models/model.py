"""``ClipModel``: pixels and tokens in, ``Features`` out.

    features = model(*inputs)                            # unit rows in fp32, bounded scale
    model.encode_image(image_BCHW)                       # [B, d], for evaluation: of images as they are

Shapes: V views of B samples of this rank, C = 3 channels, H = W = ``image_size`` pixels, K numbers that say what was done to a
view, L = ``context_length`` tokens, W = words of the vocabulary, d = embed_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.features import Features, Scalar, view_name
from pipeline.models.draws import PatchDropout
from pipeline.models.heads import Heads
from pipeline.models.scale import BoundedScalar, LogitScale
from pipeline.models.text import encode
from pipeline.models.towers import Towers

CAPTIONING = ("caption_logits", "caption_labels")
IGNORED_LABEL = -100


class ClipModel(nn.Module):
    """Two open_clip towers, heads on them, the temperature, and further numbers that losses learn.

    Parameters are named ``visual.*``, ``text.*``, ``heads.*``, ``text_decoder.*``, ``logit_scale.log_scale``,
    ``scalars.NAME.value``. With heads, the towers return features and the projections are ``heads.image.projection.*`` and
    ``heads.text.projection.*`` (``moved_names`` says what they were called in the towers).
    """

    def __init__(
        self,
        towers: Towers,
        logit_scale: LogitScale,
        scalars: Mapping[str, Scalar] | None = None,
        heads: Heads | None = None,
        *,
        views_together: bool = True,
    ) -> None:
        super().__init__()
        self.visual, self.text, self.text_decoder = towers.visual, towers.text, towers.text_decoder
        self.second_image_tower = towers.second_image_tower
        self.logit_scale, self.heads, self._views_together = logit_scale, heads, views_together
        self.scalars = nn.ModuleDict({name: BoundedScalar(scalar) for name, scalar in (scalars or {}).items()})
        self.lr_scales: dict[str, float] = {}
        """Factors on the learning rate, by parameter name; those of 1 are left out."""
        self._patch_dropouts = tuple(module for module in self.modules() if isinstance(module, PatchDropout))
        self.locked_modules: list[nn.Module] = []
        """Parts of locked towers, which stay in evaluation mode."""

    @property
    def moved_names(self) -> dict[str, str]:
        """Our name of each tensor that a head took from a tower -> its name there, ``visual.proj`` for example."""
        return {} if self.heads is None else self.heads.moved_names

    @property
    def image_size(self) -> int:
        """Height and width in pixels that the image tower expects."""
        size: Any = self.visual.image_size
        return int(size[0] if isinstance(size, (tuple, list)) else size)

    @property
    def context_length(self) -> int:
        """Tokens per caption that the text tower expects; a second image tower takes none, and passes over any number."""
        length: Any = 1 if self.second_image_tower else self.text.context_length
        return int(length)

    def train(self, mode: bool = True) -> ClipModel:
        """Switch dropout and batch norms to training, but for those of locked towers."""
        super().train(mode)
        for module in self.locked_modules:
            module.training = False
        return self

    def draw_from(self, seed: int, first: int, count: int) -> None:
        """Draw the next forward pass's patch dropout for samples ``first`` to ``first + count - 1`` of the step of ``seed``."""
        for module in self._patch_dropouts:
            module.draw_from(seed, first, count)

    def encode_image(self, image_BCHW: Tensor, params_BK: Tensor | None = None) -> Tensor:
        """Normalised pixels [B, 3, H, W] to unit rows [B, d] in fp32.

        Args:
            image_BCHW: the images.
            params_BK: what was done to each; None is nothing, which is what evaluation shows.
        """
        return self._images(image_BCHW, params_BK)[0]["image"]

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        """Token ids int64 [B, L] to unit rows [B, d] in fp32."""
        return self._texts(tokens_BL)[0]["text"]

    def forward(
        self, image_VBCHW: Tensor, tokens_BL: Tensor, group_B: Tensor, view_params_VBK: Tensor, length_B: Tensor | None = None
    ) -> Features:
        """One step's embeddings; each view and each text goes through its tower once. See ``Inputs`` and ``Features``."""
        num_views = len(image_VBCHW)
        if self._views_together:
            found, tokens = self._images(image_VBCHW.flatten(0, 1), view_params_VBK.flatten(0, 1))
            views = [{name: rows.chunk(num_views)[view] for name, rows in found.items()} for view in range(num_views)]
            image_tokens = None if tokens is None else tokens.chunk(num_views)[0]
        else:
            passes = [self._images(*view) for view in zip(image_VBCHW, view_params_VBK, strict=True)]
            views, image_tokens = [found for found, _ in passes], passes[0][1]
        embeddings = {
            name.replace("image", view_name(view)): rows_Bd
            for view, found in enumerate(views)
            for name, rows_Bd in found.items()
        }
        texts, text_tokens = self._texts(image_VBCHW[0] if self.second_image_tower else tokens_BL, length_B)
        scalars = {name: scalar() for name, scalar in self.scalars.items()}
        features = Features({**embeddings, **texts}, {"scale": self.logit_scale(), **scalars}, group_B)
        if self.text_decoder is None or image_tokens is None or text_tokens is None:
            return features
        # Each position predicts the token after it. (Yu et al. 2022, "CoCa".)
        logits_BLW = self.text_decoder(image_tokens, text_tokens[:, :-1]).float()
        label_BL = tokens_BL[:, 1:].masked_fill(tokens_BL[:, 1:] == self.text.pad_id, IGNORED_LABEL)
        return features._replace(extras=dict(zip(CAPTIONING, (logits_BLW, label_BL), strict=True)))

    def _images(self, image_BCHW: Tensor, params_BK: Tensor | None) -> tuple[dict[str, Tensor], Tensor | None]:
        """Unit rows by domain of view 0, and the tower's tokens where it returns them (captioning models)."""
        feature, tokens = _split(self.visual(image_BCHW.to(self._dtype)))
        found = {"image": feature} if self.heads is None else self.heads.of_images(feature, params_BK)
        return {name: _unit_rows(rows) for name, rows in found.items()}, tokens

    def _texts(self, tokens_BL: Tensor, length_B: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor | None]:
        inputs = tokens_BL.to(self._dtype) if self.second_image_tower else tokens_BL
        feature, tokens = _split(encode(self.text, inputs, length_B))
        found = {"text": feature} if self.heads is None else self.heads.of_texts(feature)
        return {name: _unit_rows(rows) for name, rows in found.items()}, tokens

    @property
    def _dtype(self) -> torch.dtype:
        """What the towers compute in: DeepSpeed may have cast them to bf16 or fp16."""
        dtype: torch.dtype = next(self.visual.parameters()).dtype
        return dtype


def _split(output: Any) -> tuple[Tensor, Tensor | None]:
    """What a tower returned: its feature, and its tokens if it was built to return them too."""
    return output if isinstance(output, tuple) else (output, None)


def _unit_rows(embeddings_Bd: Tensor) -> Tensor:
    # fp32 before the division: a bf16 norm would put cosines off by 1e-2. The eps keeps a zero vector finite.
    return F.normalize(embeddings_Bd.float(), dim=-1, eps=1e-6)
