"""The report in short, as Markdown for a README or a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.report.card import facts
from pipeline.report.panels import Rate
from pipeline.report.record import Run, sets_of
from pipeline.report.results import compared

MARKS = {"better": " ▲", "worse": " ▼", "": ""}


def markdown(runs: Sequence[Run]) -> str:
    """Facts, results with intervals side by side, and what differs beyond noise from the first run."""
    names = [run.name for run in runs]
    found = [facts(run) for run in runs]
    keys = list(dict.fromkeys(key for one in found for key in one))
    lines = [f"# {', '.join(names)}", "", *_table(["", *names], [[key, *(one.get(key, "") for one in found)] for key in keys])]
    rows = []
    for name in sets_of(runs):
        for metric, rates, verdicts in compared(runs, name):
            cells = [f"{_rate(rate)}{MARKS[verdict]}" for rate, verdict in zip(rates, verdicts, strict=True)]
            rows.append([name, metric.name, *cells])
        distances = [((run.newest(name) or {}).get("geometry") or {}).get("centroid_distance") for run in runs]
        if any(distance is not None for distance in distances):
            rows.append([name, "centroid distance", *("" if d is None else f"{d:.3f}" for d in distances)])
    if rows:
        lines += ["", *_table(["set", "metric", *names], rows)]
    if len(runs) > 1:
        lines += ["", "▲ ▼: differs from the first run by more than the test samples explain (95 % intervals)."]
    lines += [f"\nFailed: {run.name}: {result['set']}: {result['error']}" for run in runs for result in run.failures]
    return "\n".join(lines) + "\n"


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return ""
    if rate.low is None or rate.high is None:
        return str(rate)
    ends = f"{rate.low:.1%} to {rate.high:.1%}" if rate.percent else f"{rate.low:.2f} to {rate.high:.2f}"
    return f"{rate} ({ends})"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
