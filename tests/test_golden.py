"""Trainings give the losses they gave before; and the tool that says so can tell what changed."""

from __future__ import annotations

import dataclasses

import pytest

from tests import golden
from tests.golden import Golden

QUICK = ("emoji_smoke", "uniclip_emoji")
"""The smallest, and the one with every head and several views; the others are slow tests."""


def test_every_small_config_has_golden_losses_and_none_is_left_over() -> None:
    assert len(golden.names()) >= 2
    assert sorted(path.stem for path in golden.FOLDER.glob("*.json")) == golden.names()


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in golden.names() if name not in QUICK)]
)
def test_losses_are_golden(name: str) -> None:
    expected, found = golden.read(name), golden.compute(name)
    assert len(found.losses) == golden.STEPS
    assert golden.differing_step(expected, found) is None, golden.explain(expected, found)


EXAMPLE = Golden("a", {"lr": "1"}, [4.0, 3.0, 2.0], [1.0, 1.0, 1.0], [7, 8, 9])


def test_on_the_same_machine_the_last_bit_counts_and_elsewhere_a_thousandth() -> None:
    near = dataclasses.replace(EXAMPLE, losses=[4.0, 3.0000001, 2.0])
    assert golden.differing_step(EXAMPLE, EXAMPLE) is None
    assert golden.differing_step(EXAMPLE, near) == 2
    assert golden.differing_step(EXAMPLE, dataclasses.replace(near, machine="b")) is None
    assert golden.differing_step(EXAMPLE, dataclasses.replace(near, machine="b", losses=[4.0, 3.0, 2.1])) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"losses": [4.5, 3.0, 2.0]}, "initial weights, views, tokens, towers or the loss itself"),
        ({"losses": [4.0, 3.5, 2.0]}, "step 1 was equal: its gradient, the learning rate or the update has changed"),
        ({"keys": [7, 1, 9], "losses": [4.0, 3.5, 2.0]}, "data: other samples from step 2 on"),
        ({"settings": {"lr": "2"}}, "setting lr: was 1, is 2"),
        ({"machine": "b"}, "machine: b; golden on a; compared within 0.001"),
        ({}, "equal"),
    ],
)
def test_the_explanation_names_what_changed(change: dict[str, object], said: str) -> None:
    assert said in golden.explain(EXAMPLE, dataclasses.replace(EXAMPLE, **change))  # type: ignore[arg-type]
