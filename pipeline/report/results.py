"""The page's part about results: rates with intervals over sets and runs, and what changes within groups of sets."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.eval.table import shifts
from pipeline.report.panels import Rate, Row, table
from pipeline.report.record import Run, sets_of


class Metric(NamedTuple):
    """Where a number lies in a result, and its interval where it has one."""

    name: str
    group: tuple[str, ...]
    rate: str
    interval: str = ""
    percent: bool = True


METRICS = (
    Metric("zero-shot top-1", ("zero_shot",), "accuracy@1", "interval@1"),
    Metric("zero-shot top-5", ("zero_shot",), "accuracy@5"),
    Metric("zero-shot mean per class", ("zero_shot",), "mean_per_class@1"),
    *(
        Metric(f"{label} R@{k}", ("retrieval", direction), f"recall@{k}", f"interval@{k}")
        for direction, label in (("text_to_image", "text to image"), ("image_to_text", "image to text"))
        for k in (1, 5, 10)
    ),
    Metric("unseen concepts: text to image R@1", ("retrieval", "unseen", "text_to_image"), "recall@1", "interval@1"),
    Metric("unseen concepts: image to text R@1", ("retrieval", "unseen", "image_to_text"), "recall@1", "interval@1"),
    Metric("linear probe", ("probes", "linear"), "accuracy", "interval"),
    Metric("nearest neighbours", ("probes", "knn"), "accuracy", "interval"),
    Metric("embedding arithmetic", ("arithmetic",), "accuracy", "interval"),
    Metric("false captions told", ("composition", "negatives"), "accuracy", "interval"),
    Metric("mixed-up pairs, text", ("composition", "pairs", "text"), "accuracy", "interval"),
    Metric("mixed-up pairs, image", ("composition", "pairs", "image"), "accuracy", "interval"),
    Metric("mixed-up pairs, group", ("composition", "pairs", "group"), "accuracy", "interval"),
    Metric("captions, CIDEr", ("captioning",), "cider", "interval", percent=False),
)
"""What the table shows of a result, where it is there."""
MANY_SETS = 3
"""Of more sets of one run each has a line of its own, with the numbers side by side."""
CAPTION = "Newest checkpoint of each run; intervals of 95 % from drawing the test samples again"


def rate_of(result: dict[str, Any], metric: Metric) -> Rate | None:
    """A result's number, or None where it has none."""
    found: Any = result
    for key in metric.group:
        found = found.get(key) or {}
    if found.get(metric.rate) is None:
        return None
    low, high = found.get(metric.interval) or (None, None)
    return Rate(found[metric.rate], low, high, metric.percent)


def beyond_noise(left: Rate, right: Rate) -> bool:
    """Whether two measured rates differ by more than the choice of test samples explains, at the level of their intervals.

    The half-widths of two independent intervals add like standard errors: in squares. Rates without interval never do.
    """
    if left.low is None or left.high is None or right.low is None or right.high is None:
        return False
    return abs(left.value - right.value) > math.hypot((left.high - left.low) / 2, (right.high - right.low) / 2)


def at_a_glance(runs: Sequence[Run]) -> str:
    """A card of headline numbers per run."""
    parts = []
    for run in runs:
        cards: list[tuple[str, str]] = []
        _, losses = run.curve("loss")
        if losses:
            cards.append((f"{losses[-1]:.3f}", f"loss at step {run.metrics[-1]['step']:,}"))
        for name in run.sets()[: 1 if len(runs) > 1 else MANY_SETS]:
            result = run.newest(name) or {}
            for label in ("zero-shot top-1", "text to image R@5"):
                metric = next(one for one in METRICS if one.name == label)
                if rate := rate_of(result, metric):
                    cards.append((f"{rate.value:.1%}", f"{label}, {name}"))
            if shape := result.get("geometry"):
                cards.append((f"{shape['centroid_distance']:.2f}", f"centroid distance, {name}"))
        items = "".join(f"<li><b>{html.escape(value)}</b> <span>{html.escape(label)}</span></li>" for value, label in cards)
        if items:
            heading = f"<h3>{html.escape(run.name)}</h3>" if len(runs) > 1 else ""
            parts.append(f'{heading}<ul class="cards">{items}</ul>')
    return "".join(parts)


def results(runs: Sequence[Run]) -> str:
    """Tables over sets and runs, with intervals, and marks where a run differs from the first beyond noise; then groups."""
    failed = [f"{run.name}: {result['set']}: {result['error']}" for run in runs for result in run.failures]
    told = "".join(f'<p class="bad">{html.escape(text)}</p>' for text in failed)
    names = sets_of(runs)
    main = _by_set(runs[0], names) if len(runs) == 1 and len(names) > MANY_SETS else _side_by_side(runs, names)
    return main + told + shift_tables(runs)


def compared(runs: Sequence[Run], name: str) -> list[tuple[Metric, list[Rate | None], list[str]]]:
    """On one set: each metric that a run has, with the rates by run and how each differs from the first's beyond noise:
    ``better``, ``worse``, or nothing."""
    found = []
    for metric in METRICS:
        rates = [rate_of(run.newest(name) or {}, metric) for run in runs]
        if any(rates):
            first = rates[0]
            differing = [bool(first and rate and beyond_noise(first, rate)) for rate in rates]
            verdicts = [
                ("better" if rate.value > first.value else "worse") if differs and first and rate else ""
                for rate, differs in zip(rates, differing, strict=True)
            ]
            found.append((metric, rates, verdicts))
    return found


def _side_by_side(runs: Sequence[Run], names: Sequence[str]) -> str:
    body: list[Row] = []
    data: list[list[object]] = [["set", "metric", "run", "value", "low", "high", "beyond noise"]]
    by_set = {name: compared(runs, name) for name in names}
    most = _most([rate for found in by_set.values() for _, rates, _ in found for rate in rates])
    for name, found in by_set.items():
        for i, (metric, rates, verdicts) in enumerate(found):
            cells = [_cell(rate, verdict, most) for rate, verdict in zip(rates, verdicts, strict=True)]
            body.append(Row(metric.name, cells, "" if i else name))
            for run, rate, verdict in zip(runs, rates, verdicts, strict=True):
                if rate:
                    data.append([name, metric.name, run.name, rate.value, rate.low, rate.high, verdict])
    note = f"{CAPTION}; drawn from 0 to {most:.0%}"
    if len(runs) > 1:
        note += ". ▲ ▼: differs from the first run by more than the test samples explain"
    return table(["", *(run.name for run in runs)], body, note, data)


def _by_set(run: Run, names: Sequence[str]) -> str:
    found = {name: {metric: rate for metric, rates, _ in compared([run], name) for rate in rates if rate} for name in names}
    shown = [metric for metric in METRICS if any(metric in rates for rates in found.values())]
    body = [Row(name, [_cell(rates.get(metric), "", 0.0) for metric in shown]) for name, rates in found.items()]
    data: list[list[object]] = [["set", "metric", "value", "low", "high"]]
    data += [
        [name, metric.name, rate.value, rate.low, rate.high] for name, rates in found.items() for metric, rate in rates.items()
    ]
    return table(["set", *(metric.name for metric in shown)], body, CAPTION, data)


def _most(rates: Sequence[Rate | None]) -> float:
    """The end of the scale on which rates are drawn: the next of 10, 20, ... 100 %."""
    ends = [rate.value if rate.high is None else rate.high for rate in rates if rate and rate.percent]
    return math.ceil(10 * max(ends, default=1.0) - 1e-9) / 10


def _cell(rate: Rate | None, verdict: str, most: float) -> str:
    sign = {"better": "▲", "worse": "▼"}.get(verdict, "")
    kind = "good" if verdict == "better" else "bad"
    mark = f' <span class="{kind}" role="img" aria-label="{verdict} beyond noise">{sign}</span>' if sign else ""
    return rate.markup(most, mark) if rate else ""


def shift_tables(runs: Sequence[Run]) -> str:
    """What changes within groups of sets (vendors, styles, languages): a table each; nothing where no group was measured."""
    groups: dict[str, list[tuple[Run, dict[str, Any]]]] = {}
    for run in runs:
        newest = [result for name in run.sets() if (result := run.newest(name))]
        for shift in shifts(newest, (run.settings.get("eval") or {}).get("groups")):
            groups.setdefault(shift["group"], []).append((run, shift))
    return "".join(_shift_table(group, found, len(runs) > 1) for group, found in groups.items())


def _shift_table(group: str, found: Sequence[tuple[Run, dict[str, Any]]], several: bool) -> str:
    body: list[Row] = []
    data: list[list[object]] = [["run", "metric", "reference", "mean", "worst", "worst set", "difference", "noise"]]
    for run, shift in found:
        for i, (name, column) in enumerate(shift["columns"].items()):
            noise = column.get("noise")
            points = f"{100 * column['difference']:+.2f}" + (
                f" <small>± {100 * noise:.2f}</small>" if noise is not None else ""
            )
            if noise is not None and -column["difference"] > noise:
                points += ' <span class="bad" role="img" aria-label="worse beyond noise">▼</span>'
            worst = f"{column['worst']:.2%} <small>{html.escape(column['worst_set'])}</small>"
            cells = [f"{column['reference']:.2%}", f"{column['mean']:.2%}", worst, points]
            body.append(Row(name, cells, run.name if several and not i else ""))
            keys = ("reference", "mean", "worst", "worst_set", "difference")
            data.append([run.name, name, *(column[key] for key in keys), noise])
    shift = found[0][1]
    caption = f"{group}: {', '.join(shift['others'])} against {shift['reference']}; differences in points"
    head = ["", shift["reference"], "mean of the others", "worst", "worst − reference"]
    return f"<h3>Shift: {html.escape(group)}</h3>" + table(head, body, caption, data)


def class_names(result: dict[str, Any]) -> list[str]:
    """Names of a result's classes, from its set where that is here; numbers otherwise."""
    count = result["zero_shot"]["classes"]
    path = Path(str(result.get("path", ""))) / "classnames.txt"
    names = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return names if len(names) == count else [f"class {number}" for number in range(count)]
