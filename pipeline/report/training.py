"""The page's part about training: curves of what was recorded at every logged step."""

from __future__ import annotations

import html
from collections.abc import Sequence

from pipeline.report.charts import Mark, Series, lines
from pipeline.report.panels import charts
from pipeline.report.record import Run

CURVES = {
    "Optimisation": {
        "loss": "Loss",
        "temperature": "Temperature",
        "lr": "Learning rate",
        "grad_norm": "Gradient norm before clipping",
        "skipped": "Steps skipped as not finite",
        "grad_spikes": "Steps skipped as spikes",
        "rollbacks": "Returns to a checkpoint",
    },
    "Speed and data": {
        "samples_per_second": "Pairs per second",
        "data_wait_share": "Share of time spent waiting for data",
        "mfu": "Model FLOP utilisation",
        "tflops_per_device": "TFLOP/s per device",
        "dropped": "Samples that had to be replaced",
        "checkpoint/stall_seconds": "Checkpoint: seconds waited",
        "checkpoint/write_seconds": "Checkpoint: seconds to write",
    },
}
"""Curves that have a name of their own, in the order in which they are shown."""
PREFIXES = {"loss": "Loss of", "grad_norm": "Gradient norm of", "weight": "Weight of", "mix": "Share of source"}
NO_CURVES = ("samples", "eta_seconds", "keys", "logit_scale")
"""Recorded for programs, or drawn as something else: they say nothing as a curve."""


def training(runs: Sequence[Run]) -> str:
    """Curves: the usual ones, each term's loss and gradient, learned numbers, the rest; constants and zeros only named."""
    recorded = dict.fromkeys(key for run in runs for key in run.numbers() if key not in NO_CURVES)
    quiet = [key for key in recorded if all(set(run.curve(key)[1]) <= {0} for run in runs)]
    constant = [key for key in recorded if key.startswith("weight/") and all(len(set(run.curve(key)[1])) <= 1 for run in runs)]
    left = [key for key in recorded if key not in quiet and key not in constant and not _is_the_loss(runs, key, recorded)]
    if any("logit_scale" in run.numbers() for run in runs):
        left.append("temperature")
    parts = []
    for heading, named in CURVES.items():
        known = [key for key in named if key in left]
        if heading == "Optimisation":
            known += [key for key in left if key.partition("/")[0] in PREFIXES and "/" in key]
        drawn = charts([_curve(runs, key, named.get(key) or _title(key)) for key in known])
        left = [key for key in left if key not in known]
        parts.append(f"<h3>{heading}</h3>{drawn}" if drawn else "")
    rest = charts([_curve(runs, key, _title(key)) for key in left])
    parts.append(f"<h3>Further numbers</h3>{rest}" if rest else "")
    told = f'<p class="note">Always 0, and not drawn: {html.escape(", ".join(quiet))}.</p>' if quiet and any(parts) else ""
    return "".join(parts) + told


def _is_the_loss(runs: Sequence[Run], key: str, recorded: dict[str, None]) -> bool:
    """Whether this is the only term of the loss, with weight 1, so that its curve is the loss's own."""
    terms = [name for name in recorded if name.startswith("loss/")]
    return terms == [key] and all(run.curve(key) == run.curve("loss") for run in runs)


def _curve(runs: Sequence[Run], key: str, title: str) -> str:
    series = []
    for run in runs:
        steps, values = run.curve("logit_scale" if key == "temperature" else key)
        series.append(Series(run.name, steps, [1 / value for value in values] if key == "temperature" else values))
    marks = [Mark(step, f"{run.name} {what} at step {step:,}") for run in runs for what, step in run.turns() if len(runs) == 1]
    return lines(title, series, x="step", marks=marks)


def _title(key: str) -> str:
    prefix, slash, rest = key.partition("/")
    if slash and prefix in PREFIXES:
        return f"{PREFIXES[prefix]} {rest}"
    return key.replace("_", " ").replace("/", ": ")
