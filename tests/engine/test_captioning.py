"""Captioning through micro-batches: what a model makes besides embeddings reaches the loss whole, its gradient the weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import ObjectiveConfig
from pipeline.engine.micro_batches import MicroBatches
from pipeline.features import Features, Inputs
from pipeline.losses import Objective, reference
from pipeline.losses.objective import gradient_norms
from tests import tiny

B, L, VOCABULARY = 12, 8, 64


class Captioner:
    """An engine of one weight matrix: an embedding per token, which is the token's prediction of the next one as well."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(2)
        self.weight = torch.randn(VOCABULARY, VOCABULARY, generator=generator).requires_grad_()

    def forward(self, inputs: Inputs) -> Features:
        logits_bLC = self.weight[inputs.tokens_bL]
        unit_bd = F.normalize(logits_bLC.mean(dim=1), dim=1)
        extras = {"caption_logits": logits_bLC, "caption_labels": labels(inputs.tokens_bL)}
        return Features({"image": unit_bd, "text": unit_bd.flip(1)}, {"scale": torch.tensor(5.0)}, inputs.group_b, extras)

    def draw_from(self, seed: int, place: int, count: int, samples: int) -> None:
        """It draws nothing."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()


def labels(tokens_bL: Tensor) -> Tensor:
    """The next token of each position; captions of different lengths, the rest is padding."""
    length_b1 = 2 + tokens_bL[:, :1] % (L - 2)
    return tokens_bL.roll(-1, dims=1).masked_fill(torch.arange(L) >= length_b1, -100)


def one_step(count: int) -> tuple[float, Tensor]:
    engine = Captioner()
    micro = MicroBatches(engine, count)  # type: ignore[arg-type]
    features = micro.forward(tiny.batch(B), seed=1)
    losses = Objective(ObjectiveConfig(terms={"clip": {}, "captioning": {"weight": 2.0}}), seed=0, total_steps=1)(
        features, step=0
    )
    assert gradient_norms(losses, features)["captioning"] > 0
    micro.backward(losses.total)
    assert engine.weight.grad is not None
    return losses.terms["captioning"].item(), engine.weight.grad


@pytest.mark.parametrize("count", [1, 2, 3])
def test_micro_batches_caption_as_the_whole_batch_does(count: int) -> None:
    engine = Captioner()
    features = engine.forward(tiny.batch(B))
    caption = reference.captioning(features.extras["caption_logits"], features.extras["caption_labels"], -100)
    image, text = features.embeddings.values()
    contrast = reference.info_nce(image, text, features.scalars["scale"], features.group_b)
    (contrast + 2.0 * caption).backward()
    loss, grad = one_step(count)
    assert engine.weight.grad is not None
    assert loss == pytest.approx(caption.item(), abs=1e-6)
    torch.testing.assert_close(grad, engine.weight.grad, rtol=1e-5, atol=1e-7)


def test_a_model_without_captions_is_told_so() -> None:
    from pipeline.errors import ConfigError

    objective = Objective(ObjectiveConfig(terms={"captioning": {}}), seed=0, total_steps=1)
    with pytest.raises(ConfigError, match="captioning: needs caption_logits, caption_labels; this model makes: image, text"):
        objective.check(("image", "text"))
    objective.check(("image", "text", "caption_logits", "caption_labels"))
