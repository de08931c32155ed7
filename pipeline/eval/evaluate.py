"""A list of evaluation sets -> a list of results, each with the provenance that makes it worth keeping.

    results = evaluate(subject, ["sets/emoji_twemoji"], world, device, batch_size=256, out=Path("runs/a/eval.jsonl"))
    results[0]["zero_shot"]["correct@1"], results[0]["retrieval"]["text_to_image"]["recall@10"]

What a set holds decides what is measured: labels with class names give zero-shot accuracy; captions give retrieval and
geometry; a train split gives probes; edits and false captions in the json members give arithmetic and composition. A set that
cannot be read or scored gives a result with ``"error"`` and the others go on; whoever calls decides what that means (the
command exits non-zero).
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import dist
from pipeline.config import DataConfig, EvalConfig
from pipeline.data.evalset import EvalSet, digest, has_split
from pipeline.data.files import ByteSource
from pipeline.data.storage import open_storage
from pipeline.dist import World
from pipeline.errors import DataError, PipelineError
from pipeline.eval import arithmetic, calibration, captioning, composition, geometry, probes, retrieval, zero_shot
from pipeline.eval.embed import Embeddings, Subject, embed_set, embed_texts
from pipeline.eval.prompts import NAMED, class_texts
from pipeline.eval.results import append, known
from pipeline.eval.results import read_results as read_results
from pipeline.eval.sets import addresses
from pipeline.eval.together import all_or_none

log = logging.getLogger(__name__)

PROTOCOL = (
    "fp32 embeddings, exact scores; zero-shot: prompt embeddings averaged per class, lower class index wins ties; "
    "retrieval: best own candidate counts, ties with others are misses; arithmetic: nearest other image of x + scale * (to - "
    "from), ties are misses; composition: first caption against each false one, ties are lost; captions: greedy, 5 to 30 tokens"
)
MAX_PAIRS = 5000
"""Geometry and the calibration of retrieval are measured on at most this many samples and their first captions."""
ASKED = ("templates", "classnames", "max_samples", "captioned")
"""Settings that change what comes out; a result says where they are not the usual ones."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is the same for all sets: the model, who works, and what was asked for."""

    subject: Subject
    world: World
    device: torch.device
    source: ByteSource
    asked: EvalConfig
    batch_size: int
    progress: bool

    def embed(self, evalset: EvalSet) -> Embeddings:
        """All embeddings of a set, on every rank."""
        return embed_set(self.subject, evalset, self.world, self.device, self.batch_size, self.progress)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit rows of texts, on every rank."""
        return embed_texts(self.subject, texts, self.world, self.device, self.progress)


def evaluate(
    subject: Subject,
    sets: Sequence[str | Path],
    world: World,
    device: torch.device,
    *,
    batch_size: int,
    asked: EvalConfig | None = None,
    source: ByteSource | None = None,
    out: Path | None = None,
    progress: bool = True,
    force: bool = False,
) -> list[dict[str, Any]]:
    """Evaluate ``subject`` on each of ``sets``; all ranks call it and get the same results.

    A set that ``out`` has a result of already, from the same weights, the same files, the same protocol and settings, is not
    measured again.

    Args:
        subject: the model, on ``device``.
        sets: folders or URLs in CLIP_benchmark's layout, names of sets, or collections of them.
        world: who shares the work; never changes a number.
        device: where the model is.
        batch_size: samples decoded ahead per rank; never changes a number.
        asked: class names, templates, samples and captions, if not the usual ones; and the root of named sets.
        source: what sets are read through; by default local files, and URLs without options.
        out: rank 0 appends one JSON line per set, as soon as it is done.
        progress: show progress bars on rank 0.
        force: measure again what was measured already.

    Returns:
        One JSON-ready dict per set, in order; ``"error"`` in it means that this set failed, ``"cached"`` that it was known.

    Raises:
        ConfigError: a named set without a root, or captions asked for where they cannot be scored.
    """
    asked, source = asked or EvalConfig(), source or open_storage(DataConfig())
    if asked.captioned and not captioning.can_write(subject.model):
        log.warning("captions for %d images are asked for (eval.captioned), but this model writes none", asked.captioned)
        asked = dataclasses.replace(asked, captioned=0)
    if asked.captioned:
        all_or_none(captioning.require_scores, world)
    run = Evaluation(subject, world, device, source, asked, batch_size, progress)
    names = [str(name) for name in sets]
    found = all_or_none(lambda: addresses(names, asked.root, source) if world.is_main else (), world)
    return [_result(run, address, out, force) for address in dist.broadcast_object(found)]


def _result(run: Evaluation, address: str, out: Path | None, force: bool) -> dict[str, Any]:
    """A set's result: a known one, or measured and written down; with ``"error"`` where that failed."""
    world, settings = run.world, {}
    try:
        settings = {"files_sha256": _from_main(lambda: digest(address, run.source), world), "options": _options(run)}
        provenance = {key: run.subject.provenance.get(key) for key in ("weights_sha256", "step", "weights")}
        if out is not None and provenance["weights_sha256"] and not force:
            wanted = {**provenance, **settings, "options": settings["options"] or None, "protocol": PROTOCOL}
            before = dist.broadcast_object(known(out, wanted) if world.is_main else None)
            if before is not None:
                return {**before, "cached": True}
        measured = _measure(run, address)
    except PipelineError as error:  # raised on every rank alike, see all_or_none
        measured = {"error": f"{type(error).__name__}: {error}"}
    result = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "set": address.rstrip("/").rpartition("/")[2],
        "path": address,
        **run.subject.provenance,
        **{key: value for key, value in settings.items() if value},
        **measured,
        "protocol": PROTOCOL,
        "world_size": world.size,
        "torch": torch.__version__,
        "device": run.device.type,
    }
    if out is not None:
        all_or_none(lambda: append(out, result) if world.is_main else None, world)
    return result


def _from_main(action: Any, world: World) -> Any:
    """What rank 0 found, on every rank; its failure too."""
    return dist.broadcast_object(all_or_none(lambda: action() if world.is_main else None, world))


def _options(run: Evaluation) -> dict[str, Any]:
    """Settings that are not the usual ones; of a file also its hash, so that another content is another setting."""
    usual, asked = EvalConfig(), run.asked
    found = {name: getattr(asked, name) for name in ASKED if getattr(asked, name) != getattr(usual, name)}
    for name in ("templates", "classnames"):
        if name in found and found[name] not in NAMED:
            found[f"{name}_file_sha256"] = _from_main(lambda: _file_sha256(run.source, found[name]), run.world)  # noqa: B023
    return found


def _file_sha256(source: ByteSource, path: str) -> str:
    try:
        with source.stream(path) as stream:
            return hashlib.sha256(stream.read()).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}; see eval.templates and eval.classnames") from error


def _measure(run: Evaluation, address: str) -> dict[str, Any]:
    world, asked, source = run.world, run.asked, run.source
    evalset = all_or_none(lambda: EvalSet.open(address, "test", source, asked.max_samples), world)
    data = run.embed(evalset)
    result: dict[str, Any] = {"samples": len(data.keys), "set_sha256": data.sha256}
    labelled = bool(evalset.classnames) or (asked.classnames != "set" and bool((data.label_N >= 0).all()))
    if labelled:
        result |= _zero_shot(run, evalset, data)
        if all_or_none(lambda: has_split(address, "train", source), world):
            train = run.embed(all_or_none(lambda: EvalSet.open(address, "train", source), world))
            classes = result["zero_shot"]["classes"]
            result["probes"] = probes.probe(train.image_Nd, train.label_N, data.image_Nd, data.label_N, classes, world)
    if data.captions:
        result |= _captions(run, data)
    if edits := [] if asked.max_samples else arithmetic.requested(data.notes, data.keys):
        result["arithmetic"] = arithmetic.measure(data.image_Nd, run.texts(arithmetic.words(edits)), edits, world)
    if asked.captioned and data.captions:
        written = captioning.write(run.subject, evalset.twin(asked.captioned), world, run.device)
        result["captioning"] = captioning.measure(written)
    if not labelled and not data.captions:
        raise DataError(f"{address}: neither labels with classnames.txt nor captions; there is nothing to measure")
    return result


def _captions(run: Evaluation, data: Embeddings) -> dict[str, Any]:
    """Retrieval, geometry, the calibration of retrieval, and false captions."""
    subject, world = run.subject, run.world
    result: dict[str, Any] = {}
    result["retrieval"] = retrieval.recalls(data.image_Nd, data.text_Md, data.owner_M, world, data.unseen_N)
    image_Pd, text_Pd = _first_pairs(data, MAX_PAIRS)
    if len(image_Pd) > 1:
        result["geometry"] = geometry.measure(image_Pd, text_Pd, subject.scale)
        own_P = torch.arange(len(image_Pd), device=run.device)
        result["retrieval_calibration"] = {
            "text_to_image": calibration.measure(text_Pd, image_Pd, own_P, subject.scale, world),
            "image_to_text": calibration.measure(image_Pd, text_Pd, own_P, subject.scale, world),
        }
    comparisons = composition.false_captions(data.notes, data.keys)
    pairs = [] if run.asked.max_samples else composition.pair_places(data.notes, data.keys)
    if comparisons or pairs:
        image_Nd, true_Nd = _first_pairs(data, None)  # every sample has a caption, or retrieval would have refused
        told: dict[str, Any] = {}
        if comparisons:
            false_Md = run.texts([comparison.caption for comparison in comparisons])
            told["negatives"] = composition.measure(image_Nd, true_Nd, false_Md, comparisons)
        if pairs:
            told["pairs"] = composition.measure_pairs(image_Nd, true_Nd, pairs)
        result["composition"] = told
    return result


def _first_pairs(data: Embeddings, most: int | None) -> tuple[Tensor, Tensor]:
    """The first samples that have captions, each with its first one; at most ``most``."""
    first_captions = {owner: j for j, owner in reversed(list(enumerate(data.owner_M.tolist())))}
    pairs = sorted(first_captions.items())[:most]
    images, texts = [owner for owner, _ in pairs], [j for _, j in pairs]
    return data.image_Nd[images], data.text_Md[texts]


def _zero_shot(run: Evaluation, evalset: EvalSet, data: Embeddings) -> dict[str, Any]:
    classes = all_or_none(lambda: class_texts(evalset, run.asked, run.source), run.world)
    prompt_Pd = run.texts([text for texts in classes.prompts for text in texts])
    class_Cd = zero_shot.classifier(prompt_Pd, [len(texts) for texts in classes.prompts])
    found = zero_shot.answers(data.image_Nd, class_Cd, data.label_N, run.world)
    return {
        "zero_shot": {**classes.provenance(), **zero_shot.summary(found, len(classes.names))},
        "calibration": calibration.measure(data.image_Nd, class_Cd, data.label_N, run.subject.scale, run.world),
    }


def evaluate_checkpoint(folder: Path, cfg: EvalConfig, world: World, device: torch.device) -> list[dict[str, Any]]:
    """Evaluate a run's checkpoint on the sets of its configuration, as the command would; all ranks call it.

    The weights are read back from the file, whole on every rank: training may hold them sharded and in lower precision. They
    are the moving average where the run keeps one (``engine.ema_decay``). With ``eval.max_samples`` the time is bounded.
    """
    from pipeline.checkpoint import AVERAGED
    from pipeline.eval.target import load

    averaged = all_or_none(lambda: (folder / AVERAGED).is_file(), world)
    target = all_or_none(lambda: load(folder, device, averaged=averaged), world)
    return evaluate(
        target.subject,
        cfg.sets,
        world,
        device,
        batch_size=cfg.batch_size_per_rank,
        asked=cfg,
        source=target.source,
        out=target.results,
        progress=False,
    )
