"""A list of evaluation sets -> a list of results, each with the provenance that makes it worth keeping.

    results = evaluate(subject, ["sets/emoji_twemoji"], world, device, batch_size=256, out=Path("runs/a/eval.jsonl"))
    results[0]["zero_shot"]["correct@1"], results[0]["retrieval"]["text_to_image"]["recall@10"]

What a set holds decides what is measured: labels with class names give zero-shot accuracy; captions give retrieval and
geometry. A set that cannot be read or scored gives a result with ``"error"`` and the others go on; whoever calls
decides what that means (the command exits non-zero).
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.config import EvalConfig
from pipeline.data.evalset import EvalSet
from pipeline.dist import World
from pipeline.errors import DataError, PipelineError
from pipeline.eval import geometry, retrieval, zero_shot
from pipeline.eval.embed import Embeddings, Subject, embed_set, embed_texts
from pipeline.eval.together import all_or_none

PROTOCOL = (
    "fp32 embeddings, exact scores; zero-shot: prompt embeddings averaged per class, lower class index wins ties; "
    "retrieval: best own candidate counts, ties with others are misses"
)
GEOMETRY_PAIRS = 5000
"""Geometry is measured on the first captions of at most this many samples: its cost grows with the square."""


def evaluate(
    subject: Subject,
    sets: Sequence[str | Path],
    world: World,
    device: torch.device,
    *,
    batch_size: int,
    out: Path | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Evaluate ``subject`` on each folder of ``sets``; all ranks call it and get the same results.

    Args:
        subject: the model, on ``device``.
        sets: folders in CLIP_benchmark's layout.
        world: who shares the work; never changes a number.
        device: where the model is.
        batch_size: samples decoded ahead per rank; never changes a number.
        out: rank 0 appends one JSON line per set, as soon as it is done.
        progress: show progress bars on rank 0.

    Returns:
        One JSON-ready dict per set, in order; ``"error"`` in it means that this set failed.
    """
    results = []
    for folder in sets:
        try:
            measured = _evaluate_set(subject, Path(folder), world, device, batch_size, progress)
        except PipelineError as error:  # raised on every rank alike, see all_or_none
            measured = {"error": f"{type(error).__name__}: {error}"}
        result = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "set": Path(folder).name,
            "path": str(folder),
            **subject.provenance,
            **measured,
            "protocol": PROTOCOL,
            "world_size": world.size,
            "torch": torch.__version__,
            "device": device.type,
        }
        if out is not None:
            all_or_none(lambda: _append(out, result) if world.is_main else None, world)  # noqa: B023  # called at once
        results.append(result)
    return results


def _evaluate_set(
    subject: Subject, folder: Path, world: World, device: torch.device, batch_size: int, progress: bool
) -> dict[str, Any]:
    evalset = all_or_none(lambda: EvalSet.open(folder), world)
    data = embed_set(subject, evalset, world, device, batch_size, progress)
    result: dict[str, Any] = {"samples": len(data.keys), "set_sha256": data.sha256}
    labelled = evalset.has_labels and bool(evalset.classnames)
    if labelled:
        result["zero_shot"] = _zero_shot(subject, evalset, data, world, device)
    if data.captions:
        result["retrieval"] = retrieval.recalls(data.image_Nd, data.text_Md, data.owner_M, world, data.unseen_N)
        first_captions = {int(owner): j for j, owner in reversed(list(enumerate(data.owner_M.tolist())))}
        pairs = sorted(first_captions.items())[:GEOMETRY_PAIRS]
        if len(pairs) > 1:
            image_index, text_index = map(list, zip(*pairs, strict=True))
            result["geometry"] = geometry.measure(data.image_Nd[image_index], data.text_Md[text_index])
    if not labelled and not data.captions:
        raise DataError(f"{folder}: neither labels with classnames.txt nor captions; there is nothing to measure")
    return result


def _zero_shot(subject: Subject, evalset: EvalSet, data: Embeddings, world: World, device: torch.device) -> dict[str, Any]:
    classnames, templates = list(evalset.classnames), list(evalset.templates)
    prompt_Pd = embed_texts(subject, zero_shot.prompts(classnames, templates), world, device)
    correct = zero_shot.count_topk(data.image_Nd, zero_shot.classifier(prompt_Pd, len(classnames)), data.label_N, world)
    n = len(data.label_N)
    return {
        "n": n,
        "classes": len(classnames),
        "templates": len(templates),
        "classnames_sha256": _sha256(classnames),
        "templates_sha256": _sha256(templates),
        **{f"correct@{k}": hits for k, hits in correct.items()},
        **{f"accuracy@{k}": hits / n for k, hits in correct.items()},
    }


def _sha256(texts: list[str]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _append(path: Path, result: dict[str, Any]) -> None:
    """One line, one write: a reader never sees half a result, and a crash loses at most the last one."""
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
        top1, top5 = zero["accuracy@1"], zero["accuracy@5"]
        parts.append(f"zero-shot top-1 {top1:.2%} ({zero['correct@1']} of {zero['n']}), top-5 {top5:.2%}")
    found = result.get("retrieval", {})
    for label, group in (("", found), ("unseen concepts: ", found.get("unseen"))):
        for direction in ("text_to_image", "image_to_text") if group else ():
            if n := group[direction]["n"]:
                recall = " / ".join(f"{group[direction][f'recall@{k}']:.2%}" for k in retrieval.CUTOFFS)
                parts.append(f"{label}{direction.replace('_', ' ')} R@1/5/10 {recall} (n = {n})")
    return "\n  ".join([result["set"], *parts])


def evaluate_checkpoint(folder: Path, cfg: EvalConfig, world: World, device: torch.device) -> list[dict[str, Any]]:
    """Evaluate a run's checkpoint on the sets of its configuration, as the command would; all ranks call it.

    The weights are read back from the file, whole on every rank: training may hold them sharded and in lower precision.
    """
    from pipeline.eval.target import load

    target = all_or_none(lambda: load(folder, device), world)
    return evaluate(
        target.subject, cfg.sets, world, device, batch_size=cfg.batch_size_per_rank, out=target.results, progress=False
    )
