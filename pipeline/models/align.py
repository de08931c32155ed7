"""Two image towers that start in the same cone: the control experiment of the contrastive gap (Fahim et al. 2024).

Two towers with different random weights map the same images into two narrow cones in different places. An orthogonal map of
the second tower's output, found by Procrustes on a sample of images, lays its cone over the first one's. Training with the
contrastive loss alone then shows whether a gap opens although inputs are identical and nothing was apart at the start.

    rotation_dd = procrustes(second_Nd, first_Nd)      # orthogonal; second_Nd @ rotation_dd is nearest to first_Nd
    align(clip, images)                                # multiplied into the second tower's projection

Shapes: N images, d embedding width.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models.model import ClipModel


def procrustes(from_Nd: Tensor, to_Nd: Tensor) -> Tensor:
    """The orthogonal matrix [d, d] that brings ``from_Nd @ matrix`` nearest to ``to_Nd`` in the sum of squares, in float64."""
    u_dd, _, v_dd = torch.linalg.svd(from_Nd.double().T @ to_Nd.double())
    rotation_dd: Tensor = u_dd @ v_dd
    return rotation_dd


def align(clip: ClipModel, images: Iterable[Tensor]) -> tuple[float, float]:
    """Turn the second image tower's embeddings onto the first one's.

    Args:
        clip: a model with two image towers; the second one's projection is changed.
        images: batches of normalised pixels [B, 3, H, W].

    Returns:
        The distance of the two towers' mean embeddings (unit rows) before and after.

    Raises:
        ConfigError: not two image towers, or towers whose projection is not a matrix.
    """
    if not clip.second_image_tower or not isinstance(clip.text, VisionTransformer):
        raise ConfigError("aligning needs model.second_tower = image and a VisionTransformer; here the second tower is another")
    first, second = [], []
    clip.eval()
    with torch.no_grad():
        for image_BCHW in images:
            first.append(clip.encode_image(image_BCHW))
            second.append(clip.encode_text(image_BCHW))
        first_Nd, second_Nd = torch.cat(first).double(), torch.cat(second).double()
        rotation_dd = procrustes(second_Nd, first_Nd)
        projection = clip.text.proj
        projection.copy_(projection.double() @ rotation_dd)
        gap_d = first_Nd.mean(dim=0)
        before, after = gap_d - second_Nd.mean(dim=0), gap_d - (second_Nd @ rotation_dd).mean(dim=0)
    return float(before.norm()), float(after.norm())
