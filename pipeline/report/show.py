"""Which models and sets the page shows pictures of: the run's steps that are still there, and the model before its first step.

pictures([run])         # HTML: maps, what captions and images find, confusions
"""

from __future__ import annotations

import dataclasses
import html
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline import dist
from pipeline.checkpoint.find import complete_steps
from pipeline.config import load as load_config
from pipeline.data.views import VIEW_PARAMS
from pipeline.dist import World
from pipeline.errors import PipelineError
from pipeline.eval.embed import Subject
from pipeline.eval.target import load
from pipeline.losses.objective import Objective
from pipeline.models import clip
from pipeline.report.gallery import findings, look, maps, mistakes, readings
from pipeline.report.record import Run


def pictures(runs: Sequence[Run]) -> str:
    """Of each run on its first set that is here: maps over its steps, findings, confusions. Needs the models; says on stderr
    what is missing and why there are no pictures."""
    world, device = dist.World(), dist.pick_device(0)
    return "".join(_pictures(run, f"map{number}", world, device) for number, run in enumerate(runs))


def _pictures(run: Run, prefix: str, world: World, device: torch.device) -> str:
    folders, address = complete_steps(run.folder / "checkpoints"), _set_here(run)
    if not folders or address is None:
        print(f"{run.folder}: no checkpoint or no evaluation set here, so no pictures", file=sys.stderr)
        return ""
    last = load(folders[max(folders)], device).subject
    newest = look(last, f"Step {max(folders):,}", address, world, device)
    if not newest.data.captions:
        return ""
    earlier = []
    if (start := before_training(run, last)) is not None:
        earlier.append(look(start, "Before training", address, world, device))
    if min(folders) < max(folders):
        earlier.append(look(load(folders[min(folders)], device).subject, f"Step {min(folders):,}", address, world, device))
    name = Path(address).name
    where = html.escape(f"{run.name}, step {max(folders):,}, {name}")
    wrong = mistakes(newest, run.newest(name) or {})
    parts = [
        f"<h3>The gap: {html.escape(run.name)}, {html.escape(name)}</h3>{maps([*earlier, newest], prefix)}",
        f"<h3>What captions find: {where}</h3>{findings(newest)}",
        f"<h3>What images find: {where}</h3>{readings(newest)}",
        f"<h3>What is taken for what: {where}</h3>{wrong}" if wrong else "",
    ]
    return "".join(parts)


def _set_here(run: Run) -> str | None:
    """The first set of the run, measured or configured, that is a folder here."""
    measured = [str(result.get("path")) for result in run.results if "retrieval" in result]
    asked = [str(address) for address in (run.settings.get("eval") or {}).get("sets") or []]
    return next((address for address in [*measured, *asked] if Path(address).is_dir()), None)


def before_training(run: Run, trained: Subject) -> Subject | None:
    """The model that the run began with, made again from its seed as training makes it; None where it cannot be made.

    Its tokenizer and normalisation are those of ``trained``. A run that began with weights of another needs that file.
    """
    try:
        cfg = load_config(run.folder / "config.yaml")
        plain = dataclasses.replace(cfg.model, compile=False)
        torch.manual_seed(cfg.seed)
        objective = Objective(cfg.objective, seed=cfg.seed, total_steps=cfg.train.steps)
        model: Any = clip.build(plain, cfg.objective, objective.scalars(), num_view_params=len(VIEW_PARAMS)).eval()
    except (PipelineError, OSError) as error:
        print(f"{run.folder}: no map from before the training: {error}", file=sys.stderr)
        return None
    device = (
        next(iter(trained.model.parameters())).device if isinstance(trained.model, torch.nn.Module) else torch.device("cpu")
    )
    return dataclasses.replace(trained, model=model.to(device), provenance={"run": run.name, "step": 0})
