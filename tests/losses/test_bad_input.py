"""What no loss is made for: a clear error on every rank, or the defined limit; never a NaN by surprise, never one hidden."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import ObjectiveConfig
from pipeline.dist import World
from pipeline.errors import ConfigError
from pipeline.losses import Objective, gather
from tests import tiny
from tests.distributed import RanksFailed, run_ranks
from tests.losses.small import SINGLE_VIEW, VIEWS, features, losses


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"simclr": {}}, "objective.terms.simclr: needs image_2; this model makes: image, text"),
        ({"uniclip": {}}, "objective.terms.uniclip: image_image: own needs image_2; use tie or drop"),
    ],
)
def test_a_term_without_the_views_it_needs_says_so(terms: tiny.Terms, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Objective(ObjectiveConfig(terms=terms), seed=0, total_steps=1).check(("image", "text"))


@pytest.mark.parametrize("name", SINGLE_VIEW)
@pytest.mark.parametrize(("size", "groups"), [(1, [0]), (4, [7, 7, 7, 7]), (3, [0, 1, 0])])
def test_degenerate_batches_have_finite_losses_and_gradients(name: str, size: int, groups: list[int]) -> None:
    given = features(size, torch.tensor(groups))
    losses({name: SINGLE_VIEW[name]}, given).total.backward()
    assert all(t.grad is None or t.grad.isfinite().all() for t in given.embeddings.values())


@pytest.mark.parametrize("name", SINGLE_VIEW)
def test_coincident_opposite_and_zero_rows_are_finite(name: str) -> None:
    given = features(4)
    image = torch.stack([torch.eye(6)[0], torch.eye(6)[0], -torch.eye(6)[0], torch.zeros(6)]).requires_grad_()
    text = torch.eye(6)[0].repeat(4, 1).requires_grad_()
    total = losses({name: SINGLE_VIEW[name]}, given._replace(embeddings={"image": image, "text": text})).total
    total.backward()
    assert total.isfinite() and image.grad is not None and image.grad.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", SINGLE_VIEW)
def test_what_is_not_finite_is_never_hidden(name: str, bad: float) -> None:
    """The training loop stops on a loss that is not finite; a term that swallowed a NaN would let it through."""
    given = features(4)
    image = given.embeddings["image"].detach().clone()
    image[1] = bad
    total = losses({name: SINGLE_VIEW[name]}, given._replace(embeddings={**given.embeddings, "image": image})).total
    assert not total.isfinite()


DEGENERATE: dict[str, tuple[list[int], Tensor]] = {
    "one sample a rank": ([0, 1], torch.eye(6)[:2]),
    "one group": ([7] * 8, F.normalize(torch.arange(48.0).view(8, 6).sin(), dim=1)),
    "a zero vector": (list(range(4)), torch.cat([torch.zeros(1, 6), torch.eye(6)[:3]])),
    "coincident and opposite": (list(range(4)), torch.eye(6)[:1] * torch.tensor([[1.0], [1.0], [-1.0], [1.0]])),
}
"""Group ids and images of batches at the edge of what a loss is made for."""


def on_two_ranks(world: World) -> dict[str, tuple[bool, bool]]:
    """For each term and batch: are loss and gradients finite; is a NaN of the last rank's hidden from the mean loss."""
    found = {}
    for name, settings in SINGLE_VIEW.items():
        for title, (groups, image) in DEGENERATE.items():
            b = len(groups) // world.size
            part = slice(world.rank * b, (world.rank + 1) * b)
            given = features(b, torch.tensor(groups)[part])
            rows = {**given.embeddings, "image": image[part].clone().requires_grad_()}
            total = losses({name: settings}, given._replace(embeddings=rows)).total
            total.backward()
            fine = [t.grad is None or bool(t.grad.isfinite().all()) for t in rows.values()]
            rows = {**rows, "image": image[part] * (float("nan") if world.rank == 1 else 1.0)}
            spoilt = losses({name: settings}, given._replace(embeddings=rows)).total
            mean = gather.reduce_sum(spoilt.detach())
            hidden = bool(mean.isfinite()) and title != "one group"  # where nobody is a negative, there is nothing to see
            found[f"{name}, {title}"] = (bool(total.isfinite()) and all(fine), hidden)
    return found


def test_degenerate_batches_on_two_ranks_are_finite_and_a_nan_is_seen_by_both() -> None:
    for rank, found in enumerate(run_ranks(on_two_ranks, 2)):
        assert len(found) == len(SINGLE_VIEW) * len(DEGENERATE)
        assert {title for title, (finite, _) in found.items() if not finite} == set(), f"rank {rank}"
        assert {title for title, (_, hidden) in found.items() if hidden} == set(), f"rank {rank}"


def without_views(world: World) -> None:
    Objective(ObjectiveConfig(terms={"separation": {}}), seed=0, total_steps=1).check(VIEWS)


def test_missing_heads_stop_every_rank() -> None:
    lack = "separation: needs independent_image, independent_text, independent_image_2; this model makes: image, text"
    with pytest.raises(RanksFailed, match=rf"(?s)rank 0.*{lack}.*rank 1.*{lack}"):
        run_ranks(without_views, 2)


def unequal(world: World) -> None:
    losses({"clip": {}}, features(3 + world.rank))


def test_unequal_batches_stop_every_rank_with_the_sizes() -> None:
    with pytest.raises(RanksFailed, match=r"(?s)rank 0.*between 3 and 4 samples.*rank 1.*between 3 and 4 samples"):
        run_ranks(unequal, 2)


def test_negatives_as_far_away_as_can_be_still_count() -> None:
    """At scale 100 their exponentials are below fp32's smallest number. All candidates are alike: log of their count."""
    image = torch.eye(6)[:1].repeat(4, 1)
    given = features(4, scale=100.0)._replace(embeddings={"image": image, "text": -image})
    assert losses({"clip": {}}, given).total.item() == pytest.approx(1.3862944, abs=1e-5)
