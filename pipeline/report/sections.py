"""The sections of the page, each a function from runs to HTML; an empty string where there is nothing to say."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from pipeline.report.charts import Series, bars, lines, reliability
from pipeline.report.record import Run, beyond_noise

Pick = Callable[[dict[str, Any]], Any]

CURVES = (
    ("loss", "Loss"),
    ("lr", "Learning rate"),
    ("grad_norm", "Gradient norm before clipping"),
    ("samples_per_second", "Pairs per second"),
    ("data_wait_share", "Share of time spent waiting for data"),
    ("dropped", "Samples that had to be replaced"),
    ("mfu", "Model FLOP utilisation"),
)
NO_CURVES = ("samples", "eta_seconds", "keys")
"""Recorded for programs: they say nothing as a curve."""
GEOMETRY = (
    ("centroid_distance", "Centroid distance (modality gap)"),
    ("linear_separability", "Linear separability of the modalities"),
    ("alignment", "Alignment (lower is better)"),
    ("uniformity_image", "Uniformity of images (lower is better)"),
    ("uniformity_text", "Uniformity of texts (lower is better)"),
    ("uniformity_cross", "Uniformity across modalities"),
    ("effective_rank_image", "Effective rank of images"),
    ("effective_rank_text", "Effective rank of texts"),
    ("hubness", "Hubness of images"),
)


def at_a_glance(runs: Sequence[Run]) -> str:
    """A card of headline numbers per run."""
    parts = []
    for run in runs:
        cards: list[tuple[str, str]] = []
        steps, losses = run.curve("loss")
        if losses:
            cards.append((f"{losses[-1]:.3f}", f"loss at step {run.metrics[-1]['step']:,}"))
        for name in run.sets():
            result = run.newest(name) or {}
            if zero := result.get("zero_shot"):
                cards.append((f"{zero['accuracy@1']:.1%}", f"zero-shot top-1, {name}"))
            if found := result.get("retrieval"):
                cards.append((f"{found['text_to_image']['recall@5']:.1%}", f"text to image R@5, {name}"))
            if shape := result.get("geometry"):
                cards.append((f"{shape['centroid_distance']:.2f}", f"centroid distance, {name}"))
        items = "".join(f"<li><b>{html.escape(value)}</b><span>{html.escape(label)}</span></li>" for value, label in cards)
        parts.append(f'<h3>{html.escape(run.name)}</h3><ul class="cards">{items}</ul>')
    return "".join(parts)


def training(runs: Sequence[Run]) -> str:
    """Curves of what was recorded while training: the usual ones, each term's loss and gradient, learned numbers, the rest."""
    recorded = dict.fromkeys(key for run in runs for key in run.numbers() if key not in NO_CURVES)
    quiet = [key for key in recorded if all(set(run.curve(key)[1]) <= {0} for run in runs)]
    keys = [key for key in recorded if key not in quiet]
    named = dict(CURVES)
    charts = [_curve(runs, key, title) for key, title in CURVES if key in keys]
    if "logit_scale" in keys:
        inverse = [Series(run.name, x, [1 / value for value in y]) for run in runs for x, y in [run.curve("logit_scale")]]
        charts.insert(1, lines("Temperature", inverse, x="step"))
    for key in keys:
        prefix, slash, rest = key.partition("/")
        if slash and prefix in ("loss", "grad_norm", "weight"):
            what = {"loss": "Loss", "grad_norm": "Gradient norm", "weight": "Weight"}[prefix]
            if prefix != "weight" or any(len(set(run.curve(key)[1])) > 1 for run in runs):  # a constant is in the settings
                charts.append(_curve(runs, key, f"{what} of {rest}"))
        elif key not in named and key != "logit_scale":
            charts.append(_curve(runs, key, key))
    told = f'<p class="note">Always 0, and not drawn: {html.escape(", ".join(quiet))}.</p>' if quiet and charts else ""
    return _charts(charts) + told


def _curve(runs: Sequence[Run], key: str, title: str) -> str:
    return lines(title, [Series(run.name, *run.curve(key)) for run in runs], x="step")


def results(runs: Sequence[Run]) -> str:
    """Zero-shot and retrieval tables over sets and runs, with intervals and marks where a run differs beyond noise."""
    metrics: tuple[tuple[str, str, str, Pick], ...] = (
        ("zero-shot top-1", "accuracy@1", "interval@1", lambda result: result.get("zero_shot")),
        ("text to image R@1", "recall@1", "interval@1", lambda result: result.get("retrieval", {}).get("text_to_image")),
        ("image to text R@1", "recall@1", "interval@1", lambda result: result.get("retrieval", {}).get("image_to_text")),
    )
    further: tuple[tuple[str, Pick], ...] = (
        ("zero-shot top-5", lambda result: result.get("zero_shot", {}).get("accuracy@5")),
        ("mean per class", lambda result: result.get("zero_shot", {}).get("mean_per_class@1")),
        ("text to image R@5", lambda result: result.get("retrieval", {}).get("text_to_image", {}).get("recall@5")),
        ("image to text R@5", lambda result: result.get("retrieval", {}).get("image_to_text", {}).get("recall@5")),
    )
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.sets()):
        newest = [run.newest(name) or {} for run in runs]
        for label, rate, interval, pick in metrics:
            groups = [pick(result) for result in newest]
            if any(groups):
                cells = [_with_interval(group, groups[0] if i else None, rate, interval) for i, group in enumerate(groups)]
                rows.append((f"{name}: {label}", cells))
        for label, value_of in further:
            values = [value_of(result) for result in newest]
            if any(value is not None for value in values):
                rows.append((f"{name}: {label}", [f"{value:.2%}" if value is not None else "" for value in values]))
    failed = [f"{run.name}: {result['set']}: {result['error']}" for run in runs for result in run.failures]
    told = "".join(f'<p class="bad">{html.escape(text)}</p>' for text in failed)
    if not rows:
        return told
    note = "Newest checkpoint of each run; 95 % intervals from drawing the test samples again."
    if len(runs) > 1:
        note += " ▲ ▼: differs from the first run by more than the test samples explain."
    return _table(["", *(run.name for run in runs)], rows, note) + told


def _with_interval(group: dict[str, Any] | None, base: dict[str, Any] | None, rate: str, interval: str) -> str:
    if not group or group.get(rate) is None:
        return ""
    if interval not in group:  # a result of an earlier version
        return f"{group[rate]:.2%}"
    low, high = group[interval]
    mark = ""
    if base is not None and interval in base and beyond_noise(base, group, rate, interval):
        better = group[rate] > base[rate]
        mark = (
            ' <span class="good" title="better beyond noise">▲</span>'
            if better
            else ' <span class="bad" title="worse beyond noise">▼</span>'
        )
    return f"{group[rate]:.2%} <small>{low:.1%} to {high:.1%}</small>{mark}"


def geometry(runs: Sequence[Run]) -> str:
    """How images and texts lie on the sphere: over time where there are several evaluations, with histogram and gap shift."""
    parts = []
    for name in dict.fromkeys(name for run in runs for name in run.sets()):
        charts = []
        for key, title in GEOMETRY:
            series = []
            for run in runs:
                found = [r for r in run.over_time(name) if key in r.get("geometry", {})]
                series.append(Series(run.name, [r.get("step") or 0 for r in found], [r["geometry"][key] for r in found]))
            charts.append(lines(title, series, x="step"))
        for run in runs:
            shape = (run.newest(name) or {}).get("geometry", {})
            if histogram := shape.get("cosine_histogram"):
                count = len(histogram["matched"])
                edges = [-1 + 2 * i / count for i in range(count)]
                pairs = [Series(kind, edges, values) for kind, values in histogram.items()]
                charts.append(bars(f"Cosines, {run.name}", pairs, x="cosine of image and text"))
            if shift := shape.get("gap_shift"):
                x = [point["distance"] for point in shift]
                charts.append(
                    lines(
                        f"Loss along the gap, {run.name}",
                        [Series("loss", x, [p["loss"] for p in shift])],
                        x="signed centroid distance",
                    )
                )
        if any(charts):
            parts.append(f"<h3>{html.escape(name)}</h3>" + _charts(charts))
    return "".join(parts)


def calibration(runs: Sequence[Run]) -> str:
    """Reliability diagrams, and the errors as a table."""
    charts, rows = [], []
    for name in dict.fromkeys(name for run in runs for name in run.sets()):
        for label, pick in _CALIBRATIONS:
            found = [(run, pick(run.newest(name) or {})) for run in runs]
            shown = [(run, group) for run, group in found if group]
            if not shown:
                continue
            series = [
                Series(run.name, [b["confidence"] for b in group["bins"]], [b["accuracy"] for b in group["bins"]])
                for run, group in shown
            ]
            charts.append(reliability(f"{label}, {name}", series))
            cells = [
                f"{group['ece']:.3f} <small>{group.get('ece_fitted', float('nan')):.3f} scaled</small>" if group else ""
                for _, group in found
            ]
            rows.append((f"{name}: {label}, ECE", cells))
    return (
        _table(["", *(run.name for run in runs)], rows, "Expected calibration error; after temperature scaling") if rows else ""
    ) + _charts(charts)


_CALIBRATIONS: tuple[tuple[str, Pick], ...] = (
    ("zero-shot", lambda result: result.get("calibration")),
    ("text to image", lambda result: result.get("retrieval_calibration", {}).get("text_to_image")),
    ("image to text", lambda result: result.get("retrieval_calibration", {}).get("image_to_text")),
)


def provenance(runs: Sequence[Run]) -> str:
    """Where the numbers come from: data, hardware, versions, commit, starts, and the complete settings."""
    parts = []
    for run in runs:
        facts: list[tuple[str, str]] = [("folder", str(run.folder)), ("data", str(run.settings.get("data", {}).get("train")))]
        train = run.settings.get("train", {})
        facts.append(("steps × batch", f"{train.get('steps'):,} × {train.get('global_batch_size'):,}"))
        if run.starts:
            last = run.starts[-1]
            git = last.get("git") or {}
            facts += [
                ("starts", f"{len(run.starts)}, the last on {last['started']} on {last['host']}"),
                (
                    "ranks",
                    f"{last['world']['size']} from {last['world']['source']} on {', '.join(sorted(set(last['devices'])))}",
                ),
                ("commit", f"{git.get('commit', 'unknown')}{' (changed)' if git.get('changed') else ''}"),
                ("versions", ", ".join(f"{name} {version}" for name, version in last["packages"].items())),
            ]
        rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts)
        text = html.escape(yaml.safe_dump(run.settings, sort_keys=False, allow_unicode=True, width=100))
        parts.append(
            f"<h3>{html.escape(run.name)}</h3><dl>{rows}</dl>"
            f"<details><summary>All settings</summary><pre>{text}</pre></details>"
        )
    return "".join(parts)


def _charts(charts: Sequence[str]) -> str:
    shown = [chart for chart in charts if chart]
    return f'<div class="charts">{"".join(shown)}</div>' if shown else ""


def _table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], caption: str) -> str:
    columns = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{html.escape(label)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for label, cells in rows
    )
    words = html.escape(caption)
    table = f"<table><caption>{words}</caption><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{words}">{table}</div>'
