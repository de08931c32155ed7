"""What every term of the specification promises: right gradients, finite limits, no order, and no repulsion between twins.

``CASES`` names every loss once, as a function of one ``Batch``; a test holds it equal to what the package exports.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.losses import reference as r

KINDS = ("image", "text", "image_a", "text_a", "image_i", "text_i", "image_ia", "text_ia")
"""Embeddings of a sample: plain, augmented (a), from the independent head (i), both."""


class Batch(NamedTuple):
    """Everything that any term reads: rows by kind [8, B, d], scalars [8], ids and draws [B]."""

    rows_8Bd: Tensor
    scalars_8: Tensor
    group_B: Tensor
    lam_B: Tensor
    partner_B: Tensor

    def __getattr__(self, kind: str) -> Tensor:
        if kind not in KINDS:
            raise AttributeError(kind)
        return self.rows_8Bd[KINDS.index(kind)]

    @property
    def scale(self) -> Tensor:
        return self.scalars_8[0]

    @property
    def mix(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.lam_B, self.partner_B, self.scale, self.group_B

    @property
    def views(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Two image views and one text; II has its own temperature, TT is tied."""
        return torch.stack([self.image, self.image_a]), self.text[None], self.scalars_8[2:5], self.scalars_8[5:8], self.group_B

    @property
    def all_views(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, str, str]:
        """Two views of either modality, every domain with parameters of its own."""
        image_VBd, _, *rest = self.views
        return image_VBd, torch.stack([self.text, self.text_a]), *rest, "own", "own"  # type: ignore[return-value]


def random_batch(count: int, width: int, group: list[int] | None = None, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        F.normalize(torch.randn(8, count, width, dtype=torch.float64, generator=generator), dim=2),
        torch.tensor([4.0, -1.0, -1.0, -1.2, -1.4, 0.1, 0.2, 0.3], dtype=torch.float64),
        torch.tensor(group) if group else torch.arange(count),
        torch.rand(count, dtype=torch.float64, generator=generator),
        (torch.arange(count) + 2) % count,
    )


Term = Callable[[Batch], Tensor]

REPELLING: dict[str, Term] = {
    "info_nce": lambda b: r.info_nce(b.image, b.text, b.scale, b.group_B, 0.1),
    "siglip": lambda b: r.siglip(b.image, b.text, b.scale, b.scalars_8[1], b.group_B),
    "uniformity": lambda b: r.uniformity(b.image, b.group_B),
    "cross_uniformity": lambda b: r.cross_uniformity(b.image, b.text, b.group_B, t=1.5),
    "in_modal_info_nce": lambda b: r.in_modal_info_nce(b.image, b.image_a, b.scale, b.group_B),
    "independent_contrast": lambda b: r.independent_contrast(b.image_i, b.image_ia, b.text_i, b.text_ia, b.scale, b.group_B),
    "independent_uniformity": lambda b: r.independent_uniformity(b.image_i, b.text_i, b.group_B),
    "m2_mix": lambda b: r.m2_mix(b.image, b.text, b.lam_B, b.scale, b.group_B),
    "v_mix": lambda b: r.v_mix(b.image, b.text, *b.mix),
    "l_mix": lambda b: r.l_mix(b.image, b.text, *b.mix),
    "vl_mix": lambda b: r.vl_mix(b.image, b.text, *b.mix),
    "mp_nce": lambda b: r.mp_nce(*b.views, weight_3=(2.0, 1.0, 1.0)),
    "mp_nce, all own": lambda b: r.mp_nce(*b.all_views),  # type: ignore[arg-type]
    "mp_nce, text-text dropped": lambda b: r.mp_nce(*b.views, text_text="drop"),
    "mil_nce": lambda b: r.mil_nce(*b.views),
    "supcon": lambda b: r.supcon(*b.views),
    "simclr": lambda b: r.simclr(b.image, b.image_a, b.scale, b.group_B),
}
"""Terms with negatives, which read the groups."""

OTHERS: dict[str, Term] = {
    "alignment": lambda b: r.alignment(b.image, b.text),
    "orthogonality": lambda b: r.orthogonality(b.image, b.image_i, b.text, b.text_i),
    "brownian_bridge": lambda b: r.brownian_bridge(b.image, b.text, b.image_a),
    "cross_consistency": lambda b: r.cross_consistency(b.image, b.text),
    "intra_consistency": lambda b: r.intra_consistency(b.image, b.text),
    "cross_consistency_gram": lambda b: r.cross_consistency_gram(b.image, b.text),
    "intra_consistency_gram": lambda b: r.intra_consistency_gram(b.image, b.text),
    "geometric_consistency": lambda b: r.geometric_consistency(b.image, b.text),
    "augmented_consistency": lambda b: r.augmented_consistency(b.image, b.image_a, b.text, b.text_a),
    "cyclip": lambda b: r.cyclip(b.image, b.text),
}
"""Terms of positives, or of geometry, alone."""

CASES = REPELLING | OTHERS
TWINS = [0, 0, 1, 2, 3, 4]


def test_the_cases_are_all_the_terms() -> None:
    elsewhere = {"II", "IT", "TT", "DomainRule", "REFERENCE_BATCH", "captioning"}
    elsewhere |= {"slerp", "slerp_weights", "draw_lambda", "random_derangement", "derangement_block"}
    assert {name.split(",")[0] for name in CASES} | elsewhere == set(r.__all__)


@pytest.mark.parametrize("name", CASES)
def test_gradient_by_finite_differences(name: str) -> None:
    batch = random_batch(4, 3, [0, 0, 1, 2])
    raw, scalars = batch.rows_8Bd.clone().requires_grad_(), batch.scalars_8.clone().requires_grad_()

    def loss(raw: Tensor, scalars: Tensor) -> Tensor:
        return CASES[name](batch._replace(rows_8Bd=F.normalize(raw, dim=2), scalars_8=scalars))

    assert torch.autograd.gradcheck(loss, (raw, scalars))


def value_and_gradients(term: Term, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    rows, scalars = batch.rows_8Bd.clone().requires_grad_(), batch.scalars_8.clone().requires_grad_()
    loss = term(batch._replace(rows_8Bd=rows, scalars_8=scalars))
    rows_grad, scalars_grad = torch.autograd.grad(loss, (rows, scalars), allow_unused=True, materialize_grads=True)
    return loss.detach(), rows_grad, scalars_grad


def opposite(batch: Batch) -> Batch:
    return batch._replace(rows_8Bd=batch.rows_8Bd[:1] * torch.tensor([1, -1] * 4, dtype=torch.float64)[:, None, None])


DEGENERATE: dict[str, Batch] = {
    "all rows coincide": random_batch(5, 4)._replace(rows_8Bd=random_batch(1, 4).rows_8Bd[:1].expand(8, 5, 4)),
    "modalities opposite": opposite(random_batch(5, 4)),
    "a sample twice, unknown": (twice := random_batch(6, 4))._replace(rows_8Bd=twice.rows_8Bd[:, [0, 0, 0, 1, 1, 2]]),
    "one group": random_batch(5, 4, [3] * 5),
    "one group, coincident": random_batch(5, 4, [3] * 5)._replace(rows_8Bd=random_batch(1, 4).rows_8Bd[:1].expand(8, 5, 4)),
    "batch of one": random_batch(1, 4),
    "two samples": random_batch(2, 4),
    "lambda at its ends": random_batch(4, 4)._replace(lam_B=torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)),
    "very sharp": (sharp := random_batch(5, 4))._replace(scalars_8=sharp.scalars_8 * torch.tensor([250.0] + [4.0] * 7)),
}


@pytest.mark.parametrize("name", CASES)
def test_finite_where_things_degenerate(name: str) -> None:
    for scenario, batch in DEGENERATE.items():
        for part in value_and_gradients(CASES[name], batch):
            assert part.isfinite().all(), scenario


@pytest.mark.parametrize("name", [name for name in REPELLING if name != "siglip"])
@pytest.mark.parametrize("scenario", ["one group", "batch of one"])
def test_nobody_to_repel_is_zero(name: str, scenario: str) -> None:
    value, rows_grad, scalars_grad = value_and_gradients(REPELLING[name], DEGENERATE[scenario])
    assert value.item() == 0
    assert not rows_grad.any() and not scalars_grad.any()


@pytest.mark.parametrize("name", CASES)
def test_the_order_of_the_samples_does_not_matter(name: str) -> None:
    batch = random_batch(6, 4, TWINS)
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    place = torch.empty_like(order).scatter_(0, order, torch.arange(6))  # where sample i went
    shuffled = Batch(
        batch.rows_8Bd[:, order], batch.scalars_8, batch.group_B[order], batch.lam_B[order], place[batch.partner_B[order]]
    )
    torch.testing.assert_close(CASES[name](shuffled), CASES[name](batch), rtol=1e-10, atol=1e-12)


def slopes_towards_the_twin(term: Term, group: list[int]) -> Tensor:
    """How the loss changes with the cosines between sample 0 and the embeddings of sample 1, and with these alone [8].

    All embeddings are linearly independent, so there is a direction orthogonal to all but those of sample 1; each kind of
    embedding of sample 0 is moved along it.
    """
    # Partners 2 and 3: neither is the other's, nor does one's partner mix the other in.
    batch = random_batch(6, 64, group)._replace(partner_B=torch.tensor([2, 3, 0, 1, 5, 4]))
    of_sample_1 = (torch.arange(6) == 1).double().repeat(8)
    direction = torch.linalg.pinv(batch.rows_8Bd.flatten(0, 1)) @ of_sample_1
    _, rows_grad, _ = value_and_gradients(term, batch)
    return rows_grad[:, 0] @ direction


@pytest.mark.parametrize("name", REPELLING)
def test_a_twin_is_not_repelled(name: str) -> None:
    assert slopes_towards_the_twin(REPELLING[name], TWINS).abs().max() < 1e-12
    assert slopes_towards_the_twin(REPELLING[name], [0, 1, 2, 3, 4, 5]).max() > 1e-6, "a stranger is, or this shows nothing"


@pytest.mark.parametrize("name", OTHERS)
def test_terms_without_negatives_do_not_repel_anybody(name: str) -> None:
    """Coincident pairs are their minimum, however near the pairs are to one another."""
    batch = random_batch(6, 4)
    coincident = batch._replace(rows_8Bd=batch.rows_8Bd[:1].expand(8, 6, 4))
    expected = 2.0 if name == "orthogonality" else 0.0
    assert abs(CASES[name](coincident).item() - expected) < 1e-9


@pytest.mark.parametrize("name", CASES)
def test_any_dtype(name: str) -> None:
    batch = random_batch(6, 4, TWINS)
    exact = CASES[name](batch).item()
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.5)):
        loss = CASES[name](batch._replace(rows_8Bd=batch.rows_8Bd.to(dtype), scalars_8=batch.scalars_8.to(dtype)))
        assert loss.dtype == dtype
        assert abs(loss.item() - exact) < tolerance * max(1.0, abs(exact))
