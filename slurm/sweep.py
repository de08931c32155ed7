"""Several runs from one: every combination of the values given for some settings.

members = expand(["seed=0,1,2", "optim.lr=1e-3,5e-4"], name="small")
members[0]                  # ("seed=0", "optim.lr=1e-3", "name=small-seed0-lr1e-3")
len(members)                # 6
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from pipeline.errors import ConfigError


def expand(sweeps: Sequence[str], name: str) -> list[tuple[str, ...]]:
    """Overrides of each member, its name last; one member without overrides where nothing is swept.

    Raises:
        ConfigError: not ``key.sub=value,value``, a key given twice, or the run's name, which the members derive.
    """
    if not sweeps:
        return [()]
    axes = [_axis(sweep) for sweep in sweeps]
    keys = [key for key, _ in axes]
    if len(set(keys)) < len(keys):
        raise ConfigError(f"--sweep names a setting twice: {', '.join(keys)}")
    members = []
    for values in itertools.product(*(values for _, values in axes)):
        parts = [f"{key.rpartition('.')[2]}{_plain(value)}" for key, value in zip(keys, values, strict=True)]
        overrides = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
        members.append((*overrides, "name=" + "-".join([name, *parts])))
    if len({member[-1] for member in members}) < len(members):
        raise ConfigError(f"--sweep: two members would share the folder {members[0][-1]}; give values that differ in letters")
    return members


def _axis(sweep: str) -> tuple[str, list[str]]:
    key, equals, values = sweep.partition("=")
    if not equals or not key or not all(values.split(",")):
        raise ConfigError(f"--sweep {sweep}: expected key.sub=value,value, for example seed=0,1,2")
    if key == "name":
        raise ConfigError("--sweep name=...: the members' names are made of the values swept")
    return key, values.split(",")


def _plain(value: str) -> str:
    """What of a value may stand in a folder's name."""
    return re.sub(r"[^A-Za-z0-9.+-]", "_", value)
