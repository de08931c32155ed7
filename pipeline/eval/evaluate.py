"""A list of evaluation sets -> a list of results, each with the provenance that makes it worth keeping.

    results = evaluate(subject, ["sets/emoji_twemoji"], world, device, batch_size=256, out=Path("runs/a/eval.jsonl"))
    results[0]["zero_shot"]["correct@1"], results[0]["retrieval"]["text_to_image"]["recall@10"]

What a set holds decides what is measured: labels with class names give zero-shot accuracy; captions give retrieval and
geometry. A set that cannot be read or scored gives a result with ``"error"`` and the others go on; whoever calls
decides what that means (the command exits non-zero).
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import dist
from pipeline.config import EvalConfig
from pipeline.data.evalset import EvalSet
from pipeline.dist import World
from pipeline.errors import DataError, PipelineError
from pipeline.eval import calibration, geometry, probes, retrieval, zero_shot
from pipeline.eval.embed import Embeddings, Subject, embed_set, embed_texts
from pipeline.eval.together import all_or_none

PROTOCOL = (
    "fp32 embeddings, exact scores; zero-shot: prompt embeddings averaged per class, lower class index wins ties; "
    "retrieval: best own candidate counts, ties with others are misses"
)
MAX_PAIRS = 5000
"""Geometry and the calibration of retrieval are measured on at most this many samples and their first captions."""


def evaluate(
    subject: Subject,
    sets: Sequence[str | Path],
    world: World,
    device: torch.device,
    *,
    batch_size: int,
    out: Path | None = None,
    progress: bool = True,
    force: bool = False,
) -> list[dict[str, Any]]:
    """Evaluate ``subject`` on each folder of ``sets``; all ranks call it and get the same results.

    A set that ``out`` has a result of already, from the same weights, the same files and the same protocol, is not measured
    again.

    Args:
        subject: the model, on ``device``.
        sets: folders in CLIP_benchmark's layout.
        world: who shares the work; never changes a number.
        device: where the model is.
        batch_size: samples decoded ahead per rank; never changes a number.
        out: rank 0 appends one JSON line per set, as soon as it is done.
        progress: show progress bars on rank 0.
        force: measure again what was measured already.

    Returns:
        One JSON-ready dict per set, in order; ``"error"`` in it means that this set failed, ``"cached"`` that it was known.
    """
    results = []
    for folder in sets:
        try:
            files = all_or_none(lambda: files_sha256(Path(folder)) if world.is_main else "", world)  # noqa: B023  # called at once
            files = dist.broadcast_object(files)
            known = None if force else dist.broadcast_object(_known(out, subject, files) if world.is_main else None)
            if known is not None:
                results.append({**known, "cached": True})
                continue
            measured = {"files_sha256": files, **_evaluate_set(subject, Path(folder), world, device, batch_size, progress)}
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
        result |= _zero_shot(subject, evalset, data, world, device)
        if (folder / "train").is_dir():
            train_set = all_or_none(lambda: EvalSet.open(folder, "train"), world)
            train = embed_set(subject, train_set, world, device, batch_size, progress)
            result["probes"] = probes.probe(
                train.image_Nd, train.label_N, data.image_Nd, data.label_N, len(evalset.classnames), world
            )
    if data.captions:
        result["retrieval"] = retrieval.recalls(data.image_Nd, data.text_Md, data.owner_M, world, data.unseen_N)
        image_Pd, text_Pd = _first_pairs(data)
        if len(image_Pd) > 1:
            result["geometry"] = geometry.measure(image_Pd, text_Pd, subject.scale)
            own_P = torch.arange(len(image_Pd), device=device)
            result["retrieval_calibration"] = {
                "text_to_image": calibration.measure(text_Pd, image_Pd, own_P, subject.scale, world),
                "image_to_text": calibration.measure(image_Pd, text_Pd, own_P, subject.scale, world),
            }
    if not labelled and not data.captions:
        raise DataError(f"{folder}: neither labels with classnames.txt nor captions; there is nothing to measure")
    return result


def _first_pairs(data: Embeddings) -> tuple[Tensor, Tensor]:
    """The first samples that have captions, each with its first one; at most ``MAX_PAIRS``."""
    first_captions = {owner: j for j, owner in reversed(list(enumerate(data.owner_M.tolist())))}
    pairs = sorted(first_captions.items())[:MAX_PAIRS]
    images, texts = [owner for owner, _ in pairs], [j for _, j in pairs]
    return data.image_Nd[images], data.text_Md[texts]


def _zero_shot(subject: Subject, evalset: EvalSet, data: Embeddings, world: World, device: torch.device) -> dict[str, Any]:
    classnames, templates = list(evalset.classnames), list(evalset.templates)
    prompt_Pd = embed_texts(subject, zero_shot.prompts(classnames, templates), world, device)
    class_Cd = zero_shot.classifier(prompt_Pd, len(classnames))
    found = zero_shot.answers(data.image_Nd, class_Cd, data.label_N, world)
    return {
        "zero_shot": {
            "classes": len(classnames),
            "templates": len(templates),
            "classnames_sha256": _sha256(classnames),
            "templates_sha256": _sha256(templates),
            **zero_shot.summary(found, len(classnames)),
        },
        "calibration": calibration.measure(data.image_Nd, class_Cd, data.label_N, subject.scale, world),
    }


def files_sha256(folder: Path) -> str:
    """Digest of a set's own files, names and bytes: what must be equal for a result to hold.

    Raises:
        DataError: the folder cannot be read.
    """
    digest = hashlib.sha256()
    try:
        paths = sorted([*folder.glob("*.txt"), *folder.glob("test/*"), *folder.glob("train/*")])
        for path in paths:
            with path.open("rb") as file:
                digest.update(f"{path.relative_to(folder)}\n{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    except OSError as error:
        raise DataError(f"evaluation set {folder} cannot be read: {error}") from error
    return digest.hexdigest()


def _known(out: Path | None, subject: Subject, files: str) -> dict[str, Any] | None:
    """The newest result in ``out`` that would come out again."""
    wanted = {
        **{key: subject.provenance.get(key) for key in ("weights_sha256", "step", "weights")},
        "files_sha256": files,
        "protocol": PROTOCOL,
    }
    if out is None or not wanted["weights_sha256"]:
        return None
    equal = (r for r in reversed(read_results(out)) if "error" not in r and all(r.get(key) == wanted[key] for key in wanted))
    return next(equal, None)


def read_results(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file; one that is being written, or was cut short, is not there."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


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
