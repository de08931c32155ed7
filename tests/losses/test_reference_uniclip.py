"""UniCLIP's sets and losses: against loops over pairs, against CLIP, and what each domain rule does to its parameters."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.losses import reference
from pipeline.losses.reference import II, IT, TT

B, D = 4, 5
GROUP = torch.tensor([0, 1, 1, 2])
LOSSES = {"mp_nce": reference.mp_nce, "mil_nce": reference.mil_nce, "supcon": reference.supcon}


def random_units(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, dtype=torch.float64, generator=generator), dim=-1)


def scalars() -> tuple[Tensor, Tensor]:
    log_tau = torch.tensor([0.2, 0.3, 0.4], dtype=torch.float64).log()
    return log_tau.requires_grad_(), torch.tensor([0.1, 0.7, -0.2], dtype=torch.float64).requires_grad_()


def by_loops(image: Tensor, text: Tensor, name: str, rules: tuple[str, str], weight: tuple[float, float, float]) -> float:
    """The definitions, one pair at a time, in plain floats."""
    tau, offset = {II: 0.2, IT: 0.3, TT: 0.4}, {II: 0.1, IT: 0.0, TT: -0.2}
    rows = [(domain, sample, stack[view, sample]) for domain, stack in ((0, image), (1, text))
            for view in range(len(stack)) for sample in range(B)]  # fmt: skip
    anchors = []
    for a, (kind, sample, row) in enumerate(rows):
        positives, negatives = [], []
        for c, (other_kind, other_sample, other) in enumerate(rows):
            pair = kind + other_kind
            rule = {II: rules[0], IT: "own", TT: rules[1]}[pair]
            if a == c or rule == "drop":
                continue
            source = pair if rule == "own" else IT
            score = math.exp((float(row @ other) - offset[source]) / tau[source])
            if sample == other_sample:
                positives.append((score, weight[pair]))
            elif GROUP[sample] != GROUP[other_sample]:
                negatives.append(score)
        if name == "mp_nce":
            terms = [-w * math.log(s / (s + sum(negatives))) for s, w in positives]
            anchors.append(sum(terms) / len(terms))
        elif name == "mil_nce":
            total = sum(s for s, _ in positives)
            anchors.append(-math.log(total / (total + sum(negatives))))
        else:
            total = sum(s for s, _ in positives) + sum(negatives)
            anchors.append(sum(-math.log(s / total) for s, _ in positives) / len(positives))
    return sum(anchors) / len(anchors)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("views", "texts", "rules"),
    [(2, 1, ("own", "tie")), (3, 1, ("own", "drop")), (1, 1, ("tie", "tie")), (2, 2, ("own", "own")), (2, 2, ("drop", "own"))],
)
def test_equals_the_definition_pair_by_pair(name: str, views: int, texts: int, rules: tuple[Any, Any]) -> None:
    image, text = random_units(0, views, B, D), random_units(1, texts, B, D)
    weight = (2.0, 1.0, 0.5) if name == "mp_nce" else (1.0, 1.0, 1.0)
    extra = {"weight_3": weight} if name == "mp_nce" else {}
    ours = LOSSES[name](image, text, *scalars(), GROUP, *rules, **extra)
    assert abs(ours.item() - by_loops(image, text, name, rules, weight)) < 1e-12


@pytest.mark.parametrize("name", LOSSES)
def test_one_view_without_in_modal_pairs_is_clip(name: str) -> None:
    image, text = random_units(2, 1, B, D), random_units(3, 1, B, D)
    ours = LOSSES[name](image, text, *scalars(), GROUP, "drop", "drop")
    scale = torch.tensor(1 / 0.3, dtype=torch.float64)
    torch.testing.assert_close(ours, reference.info_nce(image[0], text[0], scale, GROUP))


@pytest.mark.parametrize("rule", ["tie", "drop"])
def test_parameters_that_are_not_used_get_no_gradient(rule: Any) -> None:
    log_tau, offset = scalars()
    loss = reference.mp_nce(random_units(4, 2, B, D), random_units(5, 1, B, D), log_tau, offset, GROUP, text_text=rule)
    tau_grad, offset_grad = torch.autograd.grad(loss, (log_tau, offset))
    assert tau_grad[TT] == 0 and offset_grad[TT] == 0
    assert offset_grad[IT] == 0
    assert tau_grad[II] != 0 and tau_grad[IT] != 0 and offset_grad[II] != 0


def test_a_tied_domain_reads_the_cross_modal_temperature() -> None:
    image, text = random_units(6, 2, B, D), random_units(7, 1, B, D)
    log_tau, offset = scalars()
    tied = reference.mp_nce(image, text, log_tau, offset, GROUP, text_text="tie")
    poisoned = log_tau.detach().clone().index_fill(0, torch.tensor(TT), math.nan)
    torch.testing.assert_close(reference.mp_nce(image, text, poisoned, offset, GROUP, text_text="tie"), tied)


@pytest.mark.parametrize("name", LOSSES)
def test_a_domain_without_positives_has_no_parameters_of_its_own(name: str) -> None:
    image, text = random_units(8, 2, B, D), random_units(9, 1, B, D)
    with pytest.raises(ValueError, match="text_text is 'own', but with 1 texts per image .* use 'tie' or 'drop'"):
        LOSSES[name](image, text, *scalars(), GROUP, "own", "own")
    with pytest.raises(ValueError, match="image_image is 'own', but with 1 image views"):
        LOSSES[name](image[:1], text, *scalars(), GROUP)
    with pytest.raises(ValueError, match="text_text is 'tied'; it must be one of own, tie, drop"):
        LOSSES[name](image, text, *scalars(), GROUP, "own", "tied")


def test_mp_nce_attracts_every_positive_and_supcon_repels_the_easy_one() -> None:
    """Two positives of the anchor, one nearly coincident: the derivative along each positive's own cosine.

    Directions in which only one cosine changes exist because the rows are linearly independent.
    """
    image, text = random_units(10, 2, 2, 16), random_units(11, 1, 2, 16)
    image[1, 0] = F.normalize(image[0, 0] + 0.05 * image[1, 0], dim=0)
    rows = torch.cat([image, text]).flatten(0, 1)
    slope = {}
    for name in ("mp_nce", "supcon"):
        leaf = image.clone().requires_grad_()
        LOSSES[name](leaf, text, *scalars(), torch.arange(2)).backward()
        assert leaf.grad is not None
        for positive, row in (("easy", 2), ("hard", 4)):
            only = torch.linalg.pinv(rows) @ F.one_hot(torch.tensor(row), 6).double()
            slope[name, positive] = float(leaf.grad[0, 0] @ only)
    assert slope["mp_nce", "easy"] < 0 and slope["mp_nce", "hard"] < 0
    assert slope["supcon", "easy"] > 0 and slope["supcon", "hard"] < 0


def test_supcon_is_bounded_below_by_the_log_of_its_positives() -> None:
    rows = torch.eye(2, dtype=torch.float64)
    sharp = torch.full((3,), 0.01, dtype=torch.float64).log()
    zeros = torch.zeros(3, dtype=torch.float64)
    aligned = (rows.expand(3, -1, -1), rows[None], sharp, zeros, torch.arange(2))
    assert abs(reference.supcon(*aligned).item() - math.log(3)) < 1e-9
    assert reference.mp_nce(*aligned).item() < 1e-9
