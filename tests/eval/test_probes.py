"""Probes on embeddings whose answer is known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline.dist import World
from pipeline.errors import DataError
from pipeline.eval import probes
from tests.distributed import run_ranks

ALONE = World()


def clusters(count: int, seed: int, spread: float = 0.15, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows around the axes of as many classes."""
    generator = torch.Generator().manual_seed(seed)
    label_N = torch.arange(count) % classes
    rows = torch.eye(8)[label_N] + spread * torch.randn(count, 8, generator=generator)
    return F.normalize(rows, dim=1), label_N


def test_separate_clusters_are_known_by_every_probe() -> None:
    found = probes.probe(*clusters(200, 0), *clusters(60, 1), 4, ALONE)
    assert found["knn"]["accuracy"] == found["linear"]["accuracy"] == 1.0
    assert list(found["few_shot"]) == ["1", "2", "4", "8", "16"]
    assert found["few_shot"]["16"]["mean"] == 1.0
    assert found["few_shot"]["1"]["mean"] > 0.8
    assert found["train_samples"] == 200


def test_labels_without_meaning_are_at_chance() -> None:
    rows, labels = clusters(400, 0)
    shuffled = labels[torch.randperm(400, generator=torch.Generator().manual_seed(3))]
    found = probes.probe(rows[:200], shuffled[:200], rows[200:], shuffled[200:], 4, ALONE)
    low, high = found["linear"]["interval"]
    assert low < 0.27 < high + 0.1
    assert abs(found["knn"]["accuracy"] - 0.25) < 0.12


def in_a_world(world: World) -> dict[str, object]:
    return probes.probe(*clusters(90, 0, spread=0.8), *clusters(61, 1, spread=0.8), 4, world)


def test_the_number_of_ranks_changes_nothing() -> None:
    alone = in_a_world(ALONE)
    assert 0.3 < alone["linear"]["accuracy"] < 1.0
    assert run_ranks(in_a_world, 2) == [alone, alone]


def test_shots_that_a_class_does_not_have_are_left_out() -> None:
    rows, labels = clusters(20, 0)
    assert list(probes.few_shot(rows, labels, rows, labels, 4, ALONE)) == ["1", "2", "4"]
    assert len(probes.choose(labels, 3, seed=0)) == 12
    assert torch.equal(probes.choose(labels, 3, seed=0), probes.choose(labels, 3, seed=0))
    assert not torch.equal(probes.choose(labels, 3, seed=0), probes.choose(labels, 3, seed=1))


def test_neighbours_vote_by_nearness() -> None:
    train = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), dim=1)
    predicted = probes.neighbours(train, torch.tensor([1, 0, 0]), F.normalize(torch.tensor([[1.0, 0.2]]), dim=1), 2, ALONE)
    assert predicted.tolist() == [1], "one near sample outweighs two far ones"


def test_a_class_without_training_samples_is_named() -> None:
    rows, labels = clusters(8, 0)
    with pytest.raises(DataError, match="1 classes of the test part .* the first is class 3"):
        probes.probe(rows[labels < 3], labels[labels < 3], rows, labels, 4, ALONE)
