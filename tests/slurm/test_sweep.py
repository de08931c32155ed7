"""Several runs from one command."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigError
from slurm.sweep import expand


def test_every_combination_gets_overrides_and_a_folder_of_its_own() -> None:
    members = expand(["seed=0,1", "optim.lr=1e-3,5e-4"], name="small")
    assert members[0] == ("seed=0", "optim.lr=1e-3", "name=small-seed0-lr1e-3")
    assert members[-1] == ("seed=1", "optim.lr=5e-4", "name=small-seed1-lr5e-4")
    assert len(set(members)) == 4
    assert expand([], "small") == [()]


@pytest.mark.parametrize(
    ("sweeps", "message"),
    [
        (["seed"], "expected key.sub=value,value"),
        (["seed=0,,1"], "expected key.sub=value,value"),
        (["seed=0", "seed=1"], "names a setting twice"),
        (["name=a,b"], "the members' names are made of the values"),
        (["data.train=a/b,a_b"], "would share the folder"),
    ],
)
def test_mistakes_are_named(sweeps: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand(sweeps, "small")
