"""How a slice of the schema states its limits: ranges of single numbers, and rules about several settings together."""

from __future__ import annotations

import functools
import typing
from collections.abc import Iterable, Mapping

from pipeline.errors import ConfigError

Ranges = Mapping[str, tuple[float, float]]
"""Dotted path of a setting to its smallest and largest value; ``POSITIVE`` as the smallest excludes 0."""

Rule = tuple[bool, str]
"""Whether a combination of settings holds, and what to say when it does not."""

POSITIVE = 5e-324
INFINITY = float("inf")


def check_ranges(cfg: object, ranges: Ranges) -> None:
    """Refuse numbers out of range; None means that a setting is off and passes.

    Raises:
        ConfigError: naming the setting, its value, and what it must be.
    """
    for path, (low, high) in ranges.items():
        value: typing.Any = functools.reduce(getattr, path.split("."), typing.cast(typing.Any, cfg))
        if value is not None and not low <= value <= high:
            limit = f"within [{low}, {high}]" if high < INFINITY else "positive" if 0 < low < 1 else f"at least {low}"
            raise ConfigError(f"{path} = {value}: must be {limit}")


def check_rules(rules: Iterable[Rule]) -> None:
    """Refuse the first combination that does not hold.

    Raises:
        ConfigError: with the rule's own message.
    """
    for holds, message in rules:
        if not holds:
            raise ConfigError(message)
