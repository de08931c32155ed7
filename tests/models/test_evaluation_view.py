"""Evaluation shows pictures as they are: nothing was done to a square one, and what is cut off others is not told, anywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import ModelConfig
from pipeline.config.model import AugmentationConfig
from pipeline.data.augment import eval_view
from pipeline.data.views import VIEW_PARAMS, ViewParams, vector
from pipeline.models import clip
from pipeline.models.fold import fold
from pipeline.models.towers import architecture
from tests import tiny


def evaluation_vector(width: int, height: int) -> torch.Tensor:
    """[1, K]: cutting the centre out at the shorter side, said in the numbers that training views are described by."""
    side, left, upper = min(width, height), (width - min(width, height)) // 2, (height - min(width, height)) // 2
    return torch.from_numpy(vector(ViewParams((width, height), (left, upper, left + side, upper + side))))[None]


def test_nothing_is_done_to_a_square_picture() -> None:
    assert not evaluation_vector(640, 640).any()


def test_what_is_cut_off_depends_on_the_picture_so_that_no_constant_can_say_it() -> None:
    said = {
        name: round(number, 4)
        for name, number in zip(VIEW_PARAMS, evaluation_vector(600, 400)[0].tolist(), strict=True)
        if number
    }
    assert said == {"crop": 1.0, "left": 0.1667, "width": -0.3333}
    upright = {name for name, number in zip(VIEW_PARAMS, evaluation_vector(400, 600)[0].tolist(), strict=True) if number}
    assert upright == {"crop", "top", "height"}
    assert not torch.equal(evaluation_vector(600, 400), evaluation_vector(800, 400))


@pytest.mark.parametrize("form", ["mlp", "affine"])
def test_evaluation_and_the_folded_model_agree_on_every_shape_and_the_crop_can_still_be_told(form: str) -> None:
    heads = AugmentationConfig(form=form, encoder_width=8)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = tiny.with_heads(augmentation=heads).eval()
    assert model.heads is not None
    tiny.randomise(model.heads)
    found = fold(model, architecture(ModelConfig(inline=tiny.INLINE)))
    plain: clip.ClipModel = tiny.model(seed=5, inline=found.config).eval()
    plain.load_state_dict(found.state)
    for width, height in ((40, 40), (60, 40), (40, 60)):
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = torch.from_numpy(eval_view(Image.fromarray(pixels), model.image_size))[None].float() / 255
        with torch.no_grad():
            shown = model.encode_image(image)
            torch.testing.assert_close(plain.encode_image(image), shown, rtol=0, atol=1e-5)
            told = model.encode_image(image, evaluation_vector(width, height)[:, : tiny.VIEW_PARAMS])
        square = width == height
        assert ((told - shown).abs().max().item() < 1e-5) == square
