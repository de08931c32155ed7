"""The page's parts about where images and texts lie, and about how far the model's confidence can be believed."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.report.charts import Series, bars, lines, reliability
from pipeline.report.panels import Row, charts, table
from pipeline.report.record import Run, sets_of

GEOMETRY = {
    "centroid_distance": "Centroid distance (modality gap)",
    "linear_separability": "Linear separability of the modalities",
    "alignment": "Alignment (lower is better)",
    "uniformity_image": "Uniformity of images (lower is better)",
    "uniformity_text": "Uniformity of texts (lower is better)",
    "uniformity_cross": "Uniformity across modalities",
    "effective_rank_image": "Effective rank of images",
    "effective_rank_text": "Effective rank of texts",
    "hubness": "Hubness of images",
    "matched_cosine": "Mean cosine of matched pairs",
}
"""Names of the numbers; one that is not here goes by its key."""
FEW = 4
"""Up to so many pictures stand beside the table."""


def geometry(runs: Sequence[Run]) -> str:
    """How images and texts lie on the sphere: the newest numbers, over time where there are several, histogram, gap shift."""
    parts = []
    for name in sets_of(runs):
        newest = [(run.newest(name) or {}).get("geometry") or {} for run in runs]
        keys = [key for key in dict.fromkeys(key for shape in newest for key in shape) if _is_number(newest, key)]
        ordered = [key for key in GEOMETRY if key in keys] + [key for key in keys if key not in GEOMETRY and key != "pairs"]
        body = [Row(_named(key), [f"{shape[key]:.4g}" if key in shape else "" for shape in newest]) for key in ordered]
        data: list[list[object]] = [["number", "run", "value"]]
        data += [
            [key, run.name, shape[key]] for key in ordered for run, shape in zip(runs, newest, strict=True) if key in shape
        ]
        pairs = next((shape["pairs"] for shape in newest if "pairs" in shape), 0)
        told = table(["", *(run.name for run in runs)], body, f"On {pairs:,} pairs of {name}", data)
        drawn = [_over_time(runs, name, key) for key in ordered]
        drawn += _shapes(runs, newest)
        both = told + charts(drawn)
        if told:
            beside = len([one for one in drawn if one]) <= FEW
            parts.append(f"<h3>{html.escape(name)}</h3>" + (f'<div class="beside">{both}</div>' if beside else both))
    return "".join(parts)


def _is_number(shapes: Sequence[dict[str, Any]], key: str) -> bool:
    return all(isinstance(shape[key], (int, float)) for shape in shapes if key in shape)


def _named(key: str) -> str:
    return GEOMETRY.get(key, key.replace("_", " "))


def _over_time(runs: Sequence[Run], name: str, key: str) -> str:
    series = []
    for run in runs:
        found = [result for result in run.over_time(name) if key in (result.get("geometry") or {})]
        series.append(Series(run.name, [r.get("step") or 0 for r in found], [r["geometry"][key] for r in found]))
    return lines(_named(key), series, x="step") if any(len(one.x) > 1 for one in series) else ""


def _shapes(runs: Sequence[Run], newest: Sequence[dict[str, Any]]) -> list[str]:
    """Histograms by run, the loss along the gap, and spectra: lists of numbers over their rank."""
    drawn = []
    both = list(zip(runs, newest, strict=True))
    for run, shape in both:
        if histogram := shape.get("cosine_histogram"):
            count = len(histogram["matched"])
            edges = [-1 + 2 * i / count for i in range(count)]
            pairs = [Series(kind, edges, values) for kind, values in histogram.items()]
            of = f", {run.name}" if len(runs) > 1 else ""
            drawn.append(bars(f"Cosines of matched and other pairs{of}", pairs, x="cosine of image and text"))
    along = [
        Series(run.name, [point["distance"] for point in shift], [point["loss"] for point in shift])
        for run, shape in both
        for shift in [shape.get("gap_shift") or []]
    ]
    drawn.append(lines("Loss along the gap", along, x="signed centroid distance"))
    for key in dict.fromkeys(key for shape in newest for key, values in shape.items() if _is_spectrum(values)):
        spectra = [
            Series(run.name, [float(rank + 1) for rank in range(len(values))], values)
            for run, shape in both
            for values in [shape.get(key) or []]
        ]
        drawn.append(lines(_named(key).capitalize(), spectra, x="rank"))
    return drawn


def _is_spectrum(values: Any) -> bool:
    return isinstance(values, list) and len(values) > 1 and all(isinstance(value, (int, float)) for value in values)


Pick = Callable[[dict[str, Any]], Any]

CALIBRATIONS: tuple[tuple[str, Pick], ...] = (
    ("zero-shot", lambda result: result.get("calibration")),
    ("text to image", lambda result: (result.get("retrieval_calibration") or {}).get("text_to_image")),
    ("image to text", lambda result: (result.get("retrieval_calibration") or {}).get("image_to_text")),
)


def calibration(runs: Sequence[Run]) -> str:
    """Reliability diagrams, and the errors as a table."""
    drawn, body = [], []
    data: list[list[object]] = [["set", "what", "run", "ECE", "ECE scaled", "NLL"]]
    for name in sets_of(runs):
        for label, pick in CALIBRATIONS:
            found = [(run, pick(run.newest(name) or {})) for run in runs]
            if not any(group for _, group in found):
                continue
            series = [
                Series(
                    run.name,
                    [b["confidence"] for b in group["bins"]],
                    [b["accuracy"] for b in group["bins"]],
                    count=[b["count"] for b in group["bins"]],
                )
                for run, group in found
                if group
            ]
            drawn.append(
                reliability(
                    f"{label[0].upper()}{label[1:]}, {name}", series, note="The larger a mark, the more answers it stands for."
                )
            )
            body.append(Row(f"{name}: {label}", [_errors(group) for _, group in found]))
            data += [[name, label, run.name, g["ece"], g.get("ece_fitted"), g.get("nll")] for run, g in found if g]
    told = table(["", *(run.name for run in runs)], body, "Expected calibration error, and after temperature scaling", data)
    return told + charts(drawn)


def _errors(group: dict[str, Any] | None) -> str:
    if not group:
        return ""
    fitted = f" <small>{group['ece_fitted']:.3f} scaled</small>" if "ece_fitted" in group else ""
    return f"{group['ece']:.3f}{fitted}"
