from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pipeline.dist import World
from pipeline.errors import DataError
from pipeline.eval.scores import to_grid
from pipeline.eval.zero_shot import answers, classifier, summary

ALONE = World()


def circle(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_a_class_is_the_direction_between_its_prompts() -> None:
    weights = classifier(circle(0, 60, 170, 190, 80, 90, 100), [2, 2, 3])
    assert torch.allclose(weights, circle(30, 180, 90).double(), atol=1e-7)


def test_accuracy_of_right_answers_is_exactly_one() -> None:
    degrees = [float(d) for d in range(0, 360, 3)]
    labels = torch.arange(len(degrees))
    right = summary(answers(circle(*degrees), to_grid(circle(*degrees)), labels, ALONE), 120)
    assert (right["correct@1"], right["correct@5"], right["mean_per_class@1"]) == (120, 120, 1.0)
    assert right["interval@1"] == [1.0, 1.0]
    assert right["confusions"] == []
    # One class off: never first, always among the nearest five.
    off = summary(answers(circle(*degrees), to_grid(circle(*degrees)), labels.roll(1), ALONE), 120)
    assert (off["correct@1"], off["correct@5"]) == (0, 120)
    assert off["per_class"] == [[1, 0, 1]] * 120
    assert off["confusions"][0] == [0, 1, 1], "class 0 is taken for class 1, once"


def test_a_rare_class_counts_as_much_as_a_common_one() -> None:
    image = circle(*[0.0] * 9, 80.0)
    found = summary(answers(image, to_grid(circle(0, 90)), torch.tensor([0] * 9 + [1]), ALONE), 2)
    assert (found["accuracy@1"], found["mean_per_class@1"]) == (1.0, 1.0)
    found = summary(answers(image, to_grid(circle(0, 30)), torch.tensor([0] * 9 + [0]), ALONE), 3)
    assert (found["accuracy@1"], found["mean_per_class@1"]) == (0.9, 0.9), "a class without images does not count"


def test_of_equal_classes_the_lower_index_wins() -> None:
    classes = to_grid(circle(0, 90, 90, 180))
    image = to_grid(circle(90, 90, 90, 90))
    assert answers(image, classes, torch.tensor([0, 1, 2, 3]), ALONE).rank_N.tolist() == [3, 1, 2, 4]


def test_ranks_equal_a_stable_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    image = to_grid(F.normalize(torch.randn(50, 4, generator=generator), dim=1))
    classes = to_grid(F.normalize(torch.randn(9, 4, generator=generator), dim=1))[[0, 1, 2, 3, 4, 5, 6, 7, 8, 3, 0]]
    labels = torch.randint(0, 11, (50,), generator=generator)
    order = (image @ classes.T).sort(dim=1, descending=True, stable=True).indices
    expected = 1 + (order == labels[:, None]).int().argmax(dim=1)
    assert answers(image, classes, labels, ALONE).rank_N.tolist() == expected.tolist()


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_without_a_class_is_named(label: int) -> None:
    with pytest.raises(DataError, match=f"sample 1 has label {label}, but the class names go from 0 to 1"):
        answers(circle(0, 90), to_grid(circle(0, 90)), torch.tensor([0, label]), ALONE)
