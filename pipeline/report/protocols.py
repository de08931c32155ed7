"""The page's part about what is behind the rates of each set: classes and their confusions, shots, arithmetic, false captions,
written captions; and whatever else a result holds, as a plain table."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.report.charts import Series, lines
from pipeline.report.panels import Rate, Row, charts, ladder, matrix, table
from pipeline.report.record import Run, sets_of
from pipeline.report.results import METRICS, class_names, rate_of

SHOWN = (
    "zero_shot", "retrieval", "probes", "calibration", "retrieval_calibration", "geometry",
    "arithmetic", "composition", "captioning",
)  # fmt: skip
PROVENANCE = (
    "time", "set", "path", "run", "step", "weights", "weights_sha256", "files_sha256", "samples", "set_sha256", "options",
    "protocol", "world_size", "torch", "device", "cached",
)  # fmt: skip
"""Parts of a result that the page draws, and those that say what it holds for; everything else is shown as it is."""
CONFUSED = 12
"""Commonest confusions whose classes make the matrix."""
LISTED = 200
"""Lines of a plain table."""

Measured = list[tuple[Run, dict[str, Any]]]


def protocols(runs: Sequence[Run]) -> str:
    """By set: what each protocol has to show."""
    parts = []
    for name in sets_of(runs):
        measured = [(run, result) for run in runs if (result := run.newest(name))]
        drawn = charts([*_rates_over_time(runs, name), _few_shot(measured), *_arithmetic(measured), *_composition(measured)])
        mistaken = charts([_confusions(run, result, len(runs) > 1) for run, result in measured])
        told = "".join(_classes(run, result, len(runs) > 1) + _captions(run, result) for run, result in measured)
        both = drawn + mistaken + told + _unknown(measured)
        parts.append(f"<h3>{html.escape(name)}</h3>{both}" if both else "")
    return "".join(parts)


def _rates_over_time(runs: Sequence[Run], name: str) -> list[str]:
    """The headline rates by step, where a run was evaluated more than once."""
    drawn = []
    for metric in METRICS:
        if metric.name not in ("zero-shot top-1", "text to image R@1", "image to text R@1"):
            continue
        series = []
        for run in runs:
            found = [(result.get("step") or 0, rate) for result in run.over_time(name) if (rate := rate_of(result, metric))]
            low = [rate.low for _, rate in found if rate.low is not None]
            high = [rate.high for _, rate in found if rate.high is not None]
            ends = (low, high) if len(low) == len(high) == len(found) else ([], [])
            series.append(Series(run.name, [step for step, _ in found], [rate.value for _, rate in found], *ends))
        if any(len(one.x) > 1 for one in series):
            drawn.append(lines(metric.name[0].upper() + metric.name[1:], series, x="step"))
    return drawn


def _few_shot(measured: Measured) -> str:
    series = []
    for run, result in measured:
        shots = (result.get("probes") or {}).get("few_shot") or {}
        mean = [entry["mean"] for entry in shots.values()]
        spread = [entry["std"] for entry in shots.values()]
        low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
        series.append(Series(run.name, [float(count) for count in shots], mean, low, high))
    return lines("Few-shot accuracy", series, x="images per class", note="Mean and standard deviation over three draws.")


def _arithmetic(measured: Measured) -> list[str]:
    found = [(run, result["arithmetic"]) for run, result in measured if "arithmetic" in result]
    series = []
    for run, moved in found:
        scales = moved.get("scales", [])
        ends = [[scale["interval"][i] for scale in scales] for i in (0, 1)]
        series.append(Series(run.name, [s["scale"] for s in scales], [s["accuracy"] for s in scales], *ends))
    chance = f"Chance {found[0][1]['chance']:.2%}; at 0 the words do nothing." if found else ""
    return [
        lines("Edits that arrive", series, x="weight of the words' difference", note=chance),
        _by_kind("Edits that arrive, by kind", found, lambda moved: moved.get("by_kind", {})),
    ]


def _composition(measured: Measured) -> list[str]:
    found = [(run, result["composition"]) for run, result in measured if "composition" in result]
    pairs = [(run, told) for run, told in found if "pairs" in told]
    return [
        _by_kind(
            "False captions told, by kind", found, lambda told: told.get("negatives", {}).get("by_kind", {}), "Chance 50 %."
        ),
        _by_kind("Mixed-up pairs", pairs, lambda told: {k: told["pairs"][k] for k in ("text", "image", "group")}),
    ]


def _by_kind(title: str, found: Measured, kinds_of: Callable[[dict[str, Any]], dict[str, Any]], note: str = "") -> str:
    kinds = [kinds_of(part) for _, part in found]
    steps = [
        (
            kind,
            [Rate(of[kind]["accuracy"], *(of[kind].get("interval") or (None, None))) if kind in of else None for of in kinds],
        )
        for kind in dict.fromkeys(kind for of in kinds for kind in of)
    ]
    return ladder(title, steps, [run.name for run, _ in found], note)


def _confusions(run: Run, result: dict[str, Any], several: bool) -> str:
    """The commonest confusions as a matrix."""
    pairs = (result.get("zero_shot") or {}).get("confusions", [])
    if not pairs:
        return ""
    names = class_names(result)
    true = list(dict.fromkeys(pair[0] for pair in pairs[:CONFUSED]))
    taken = list(dict.fromkeys(pair[1] for pair in pairs[:CONFUSED]))
    counts = {(true.index(a), taken.index(b)): count for a, b, count in pairs if a in true and b in taken}
    title = "Commonest confusions" + (f", {run.name}" if several else "")
    note = "Rows: the right class; columns: what it was taken for; numbers: images."
    return matrix(title, [names[c] for c in true], [names[c] for c in taken], counts, note)


def _classes(run: Run, result: dict[str, Any], several: bool) -> str:
    """All classes as a table to unfold, worst first."""
    rows = (result.get("zero_shot") or {}).get("per_class", [])
    if not rows:
        return ""
    names = class_names(result)
    order = sorted((c for c, (n, *_) in enumerate(rows) if n), key=lambda c: (rows[c][1] / rows[c][0], c))
    body, data = [], [["class", "images", "correct at 1", "correct at 5"]]
    for c in order:
        n, first, five = rows[c]
        data.append([names[c], n, first, five])
        body.append(Row(names[c], [f"{n:,}", f"{first / n:.1%}", f"{five / n:.1%}"]))
    of = f", {run.name}" if several else ""
    listed = table(["class", "images", "top-1", "top-5"], body[:LISTED], f"Classes{of}, worst first", data)
    more = f" (the first {LISTED} of {len(body)}; all in the CSV)" if len(body) > LISTED else ""
    return f"<details><summary>All {len(body)} classes{html.escape(of)}{more}</summary>{listed}</details>"


def _captions(run: Run, result: dict[str, Any]) -> str:
    """Captions that the model wrote, beside one that a person did."""
    examples = (result.get("captioning") or {}).get("examples", [])
    body = [Row(key, [html.escape(text), html.escape(reference)]) for key, text, reference in examples]
    data = [["image", "written", "reference"], *examples]
    return table(["image", "written", "reference"], body, f"Captions that {run.name} wrote", data, words=True)


def _unknown(measured: Measured) -> str:
    """Numbers and short texts of parts of a result that this page has no picture for."""
    flat = [
        dict(
            _flat(key, value)
            for top, found in result.items()
            if top not in SHOWN + PROVENANCE
            for key, value in _leaves(top, found)
        )
        for _, result in measured
    ]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    body = [Row(key, [html.escape(one.get(key, "")) for one in flat]) for key in keys[:LISTED]]
    return table(["", *(run.name for run, _ in measured)], body, "Also recorded") if body else ""


def _leaves(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _leaves(f"{name}/{key}", inner)]
    return [(name, value)]


def _flat(key: str, value: Any) -> tuple[str, str]:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return key, text if len(text) <= 120 else f"{text[:119]}…"
