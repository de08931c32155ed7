"""Results as a table, and what changes between sets that differ in one thing: vendors, styles, languages.

    print(table(read_results(file), {"styles": ["noto", "twemoji", "fluent"]}))
    shifts(results, {"styles": ["noto", "twemoji", "fluent"]})      # the same numbers, for programs

Of a group of sets the first is the reference, usually what the model was trained on. For each step and column

    mean         of the others
    worst        the lowest of the others, and which set that is
    difference   worst - reference, in points, +- what the choice of test samples explains (the half-widths of both 95 %
                 intervals, added in squares); how far a model falls is read beside how high it stood

ImageNet and its variants are always a group, where results of them are there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.eval.sets import COLLECTIONS, PREFIX, folders


class Column(NamedTuple):
    """Where a rate lies in a result, and its interval where it has one."""

    group: tuple[str, ...]
    rate: str
    interval: str = ""


COLUMNS: dict[str, Column] = {
    "top-1": Column(("zero_shot",), "accuracy@1", "interval@1"),
    "top-5": Column(("zero_shot",), "accuracy@5"),
    "t2i R@1": Column(("retrieval", "text_to_image"), "recall@1", "interval@1"),
    "t2i R@5": Column(("retrieval", "text_to_image"), "recall@5"),
    "i2t R@1": Column(("retrieval", "image_to_text"), "recall@1", "interval@1"),
    "i2t R@5": Column(("retrieval", "image_to_text"), "recall@5"),
    "arithm.": Column(("arithmetic",), "accuracy", "interval"),
    "compos.": Column(("composition", "negatives"), "accuracy", "interval"),
}
"""What the table shows of a result; empty where a set does not give it, and left out where none does."""


def table(results: Sequence[dict[str, Any]], groups: Mapping[str, Sequence[str]] | None = None) -> str:
    """A line per set and step; below them what changes within each group of sets."""
    newest = _newest(results)
    shown = [name for name in COLUMNS if any(_rate(result, COLUMNS[name]) is not None for result in newest.values())]
    found = shifts(results, groups)
    labels = [name for name, _ in newest] + [f"{shift['group']}: difference" for shift in found]
    width = max(map(len, ["set", *labels]))
    lines = [f"{'set'.ljust(width)}  {'step':>9}  " + "  ".join(f"{name:>8}" for name in shown)]
    for (name, step), result in sorted(newest.items()):
        rates = "  ".join(_cell(_rate(result, COLUMNS[column])) for column in shown)
        lines.append(f"{name.ljust(width)}  {step:>9,}  " + (f"FAILED: {result['error']}" if "error" in result else rates))
    for shift in found:
        lines += ["", *_shift_lines(shift, shown, width)]
    return "\n".join(line.rstrip() for line in lines)


def _shift_lines(shift: dict[str, Any], shown: Sequence[str], width: int) -> list[str]:
    columns = shift["columns"]

    def row(label: str, cell: Any) -> str:
        cells = "  ".join(cell(columns[name]) if name in columns else " " * 8 for name in shown)
        return f"{(shift['group'] + ': ' + label).ljust(width)}  {shift['step']:>9,}  {cells}"

    worst = dict.fromkeys(columns[name]["worst_set"] for name in columns)
    return [
        row("reference", lambda column: _cell(column["reference"])) + f"   ({shift['reference']})",
        row("mean", lambda column: _cell(column["mean"])) + f"   ({', '.join(shift['others'])})",
        row("worst", lambda column: _cell(column["worst"])) + f"   ({', '.join(worst)})",
        row("difference", lambda column: f"{100 * column['difference']:>+8.2f}"),
        row("+-", lambda column: f"{100 * column['noise']:>8.2f}" if "noise" in column else " " * 8),
    ]


def shifts(results: Sequence[dict[str, Any]], groups: Mapping[str, Sequence[str]] | None = None) -> list[dict[str, Any]]:
    """What changes within groups: for each group and step one dict, by step.

    ``{"group", "step", "reference", "others", "columns": {COLUMN: {"reference", "mean", "worst", "worst_set", "difference",
    "noise"}}}``; rates are shares, ``noise`` is missing where a rate has no interval. A group counts at a step at which its
    reference and another of its sets have results.
    """
    newest = {key: result for key, result in _newest(results).items() if "error" not in result}
    found = []
    for group, names in {**_known_groups(newest), **(groups or {})}.items():
        for step in sorted({step for _, step in newest}):
            there = [name for name in names if (name, step) in newest]
            if len(there) > 1 and there[0] == names[0]:
                columns = _compare({name: newest[name, step] for name in there})
                found.append({"group": group, "step": step, "reference": there[0], "others": there[1:], "columns": columns})
    return found


def _compare(sets: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    (reference, base), *others = sets.items()
    compared = {}
    for name, column in COLUMNS.items():
        standing = _rate(base, column)
        rates = {other: rate for other, result in others if (rate := _rate(result, column)) is not None}
        if standing is None or not rates:
            continue
        worst = min(rates, key=lambda other: rates[other])
        widths = [width for one in (reference, worst) if (width := _half_width(sets[one], column)) is not None]
        compared[name] = {
            "reference": standing,
            "mean": sum(rates.values()) / len(rates),
            "worst": rates[worst],
            "worst_set": worst,
            "difference": rates[worst] - standing,
            **({"noise": math.hypot(*widths)} if len(widths) == 2 else {}),
        }
    return compared


def _known_groups(newest: Mapping[tuple[str, int], Any]) -> dict[str, list[str]]:
    """ImageNet and its variants under the names that their folders have here."""
    there = {name for name, _ in newest}
    chosen = [next((one for one in folders(PREFIX + name) if one in there), "") for name in COLLECTIONS["imagenet-shift"]]
    return {"imagenet-shift": [name for name in chosen if name]} if chosen[0] else {}


def _newest(results: Sequence[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """The last result of each set and step."""
    return {(result["set"], result.get("step") or 0): result for result in results}


def _inside(result: Mapping[str, Any], column: Column) -> Any:
    found: Any = result
    for key in column.group:
        found = found.get(key, {})
    return found


def _rate(result: Mapping[str, Any], column: Column) -> float | None:
    value: float | None = _inside(result, column).get(column.rate)
    return value


def _half_width(result: Mapping[str, Any], column: Column) -> float | None:
    interval = _inside(result, column).get(column.interval)
    return (interval[1] - interval[0]) / 2 if interval else None


def _cell(value: float | None) -> str:
    return f"{value:>8.2%}" if value is not None else " " * 8
