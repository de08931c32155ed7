"""The results file: a JSON line for each set evaluated; reading it, adding to it, and a result in words.

append(Path("runs/a/eval.jsonl"), result)
newest = read_results(Path("runs/a/eval.jsonl"))[-1]
print(describe(newest))
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.eval import retrieval


def read_results(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file; one that is being written, or was cut short, is not there."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def known(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """The newest result in the file that has all of ``wanted`` and no error; a field that is missing there is None."""
    equal = (r for r in reversed(read_results(path)) if "error" not in r and all(r.get(key) == wanted[key] for key in wanted))
    return next(equal, None)


def append(path: Path, result: Mapping[str, Any]) -> None:
    """One line, one write: a reader never sees half a result, and a crash loses at most the last one.

    Raises:
        PipelineError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
    except OSError as error:
        raise PipelineError(f"cannot write evaluation results to {path}: {error}") from error


def describe(result: dict[str, Any]) -> str:
    """A result in a few lines, for a terminal."""
    if "error" in result:
        return f"{result['set']}\n  FAILED: {result['error']}"
    parts = []
    if zero := result.get("zero_shot"):
        low, high = zero["interval@1"]
        parts.append(
            f"zero-shot top-1 {zero['accuracy@1']:.2%} ({zero['correct@1']} of {zero['n']}; 95 %: {low:.2%} to {high:.2%}), "
            f"top-5 {zero['accuracy@5']:.2%}, mean per class {zero['mean_per_class@1']:.2%}"
        )
    if confidence := result.get("calibration"):
        parts.append(
            f"calibration: ECE {confidence['ece']:.3f}, NLL {confidence['nll']:.3f} at scale {confidence['scale']:.1f}"
            + (f"; {confidence['ece_fitted']:.3f} at {confidence['fitted_scale']:.1f}" if "fitted_scale" in confidence else "")
        )
    if known := result.get("probes"):
        shots = ", ".join(f"{k}: {entry['mean']:.1%}" for k, entry in known["few_shot"].items())
        parts.append(
            f"probes: linear {known['linear']['accuracy']:.2%}, {known['knn']['k']} nearest {known['knn']['accuracy']:.2%}"
            + (f", shots {shots}" if shots else "")
        )
    found = result.get("retrieval", {})
    for label, group in (("", found), ("unseen concepts: ", found.get("unseen"))):
        for direction in ("text_to_image", "image_to_text") if group else ():
            if n := group[direction]["n"]:
                recall = " / ".join(f"{group[direction][f'recall@{k}']:.2%}" for k in retrieval.CUTOFFS)
                parts.append(f"{label}{direction.replace('_', ' ')} R@1/5/10 {recall} (n = {n})")
    return "\n  ".join([result["set"], *parts, *_further(result)])


def _further(result: dict[str, Any]) -> list[str]:
    """The protocols that only some sets ask for."""
    parts = []
    if moved := result.get("arithmetic"):
        low, high = moved["interval"]
        still = moved["scales"][0]["accuracy"]
        parts.append(
            f"arithmetic: {moved['accuracy']:.2%} of {moved['n']} edits arrive (95 %: {low:.2%} to {high:.2%}; "
            f"without words {still:.2%}, chance {moved['chance']:.2%})"
        )
    composed = result.get("composition", {})
    if told := composed.get("negatives"):
        low, high = told["interval"]
        parts.append(f"false captions: {told['accuracy']:.2%} of {told['n']} told (95 %: {low:.2%} to {high:.2%}; chance 50 %)")
    if pairs := composed.get("pairs"):
        shown = ", ".join(f"{name} {pairs[name]['accuracy']:.2%}" for name in ("text", "image", "group"))
        parts.append(f"pairs: {shown} (n = {pairs['n']})")
    if written := result.get("captioning"):
        parts.append(f"captions: BLEU-4 {written['bleu'][3]:.3f}, CIDEr {written['cider']:.3f} (n = {written['n']})")
    return parts
