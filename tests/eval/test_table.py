"""The table of results: what is shown, and what a shift costs."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.eval.table import shifts, table


def top_1(name: str, rate: float, half_width: float | None = None, step: int = 10) -> dict[str, Any]:
    zero = {"accuracy@1": rate, "accuracy@5": 2 * rate}
    if half_width is not None:
        zero["interval@1"] = [rate - half_width, rate + half_width]
    return {"set": name, "step": step, "zero_shot": zero}


def test_failures_and_the_newest_of_repeated_results_are_shown() -> None:
    shown = table([top_1("a", 0.1), top_1("a", 0.25), {"set": "a", "step": 9, "error": "DataError: gone"}]).splitlines()
    assert shown[0].split() == ["set", "step", "top-1", "top-5"], "columns that no set has are left out"
    assert shown[1].split() == ["a", "9", "FAILED:", "DataError:", "gone"]
    assert shown[2].split() == ["a", "10", "25.00%", "50.00%"]


def test_a_group_says_what_the_shift_costs() -> None:
    results = [top_1("noto", 0.40, 0.03), top_1("twemoji", 0.36, 0.05), top_1("fluent", 0.20, 0.04), top_1("noto", 0.3, step=5)]
    (found,) = shifts(results, {"styles": ["noto", "twemoji", "fluent"]})
    assert (found["group"], found["step"], found["reference"], found["others"]) == ("styles", 10, "noto", ["twemoji", "fluent"])
    first = found["columns"]["top-1"]
    assert (first["reference"], first["worst"], first["worst_set"]) == (0.40, 0.20, "fluent")
    assert (first["mean"], first["difference"], first["noise"]) == pytest.approx((0.28, -0.20, 0.05))
    assert "noise" not in found["columns"]["top-5"], "no interval, no noise"
    shown = table(results, {"styles": ["noto", "twemoji", "fluent"]}).splitlines()[-5:]
    assert [line.split()[1:4] for line in shown] == [
        ["reference", "10", "40.00%"],
        ["mean", "10", "28.00%"],
        ["worst", "10", "20.00%"],
        ["difference", "10", "-20.00"],
        ["+-", "10", "5.00"],
    ]
    assert shown[2].endswith("(fluent)")


def test_a_group_needs_its_reference_and_another_set() -> None:
    groups = {"styles": ["noto", "fluent"]}
    assert shifts([top_1("fluent", 0.2), top_1("other", 0.1)], groups) == []
    assert shifts([top_1("noto", 0.2)], groups) == []
    broken = {"set": "fluent", "step": 10, "error": "DataError: gone"}
    assert shifts([top_1("noto", 0.2), broken], groups) == []


def test_imagenet_and_its_variants_are_a_group_by_themselves() -> None:
    results = [top_1("wds_imagenet1k_test", 0.7), top_1("wds_imagenet-a_test", 0.3), top_1("wds_imagenetv2_test", 0.6)]
    (found,) = shifts(results)
    assert (found["group"], found["reference"]) == ("imagenet-shift", "wds_imagenet1k_test")
    assert found["others"] == ["wds_imagenetv2_test", "wds_imagenet-a_test"]
    assert shifts(results[1:]) == [], "without ImageNet itself there is nothing to measure against"
