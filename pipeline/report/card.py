"""The page's run card: what each run was asked to do, on which data and machines, from which commit; and where runs differ."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import yaml

from pipeline.report.panels import Row, table
from pipeline.report.record import Run

UNINTERESTING = ("name", "runs_dir")
"""Settings that differ between any two runs."""


def card(runs: Sequence[Run]) -> str:
    """Facts of each run side by side, settings in which they differ, and the complete settings to unfold."""
    found = [facts(run) for run in runs]
    names = list(dict.fromkeys(name for one in found for name in one))
    body = [Row(name, [html.escape(one.get(name, "")) for one in found]) for name in names]
    caption = "What was run, on what, from which code"
    told = table(["", *(run.name for run in runs)], body, caption, words=True)
    texts = (yaml.safe_dump(run.settings, sort_keys=False, allow_unicode=True, width=100) for run in runs)
    unfold = "".join(
        f"<details><summary>All settings of {html.escape(run.name)}</summary>"
        f'<pre tabindex="0" role="region" aria-label="Settings of {html.escape(run.name)}">{html.escape(text)}</pre></details>'
        for run, text in zip(runs, texts, strict=True)
    )
    return told + _differences(runs) + unfold


def facts(run: Run) -> dict[str, str]:
    """What a reader asks first, by name."""
    settings = run.settings
    train, engine = settings.get("train") or {}, settings.get("engine") or {}
    data, objective = settings.get("data") or {}, settings.get("objective") or {}
    optim = settings.get("optim") or {}
    terms = ", ".join(objective.get("terms") or {})
    found = {
        "folder": str(run.folder),
        "model": _model(settings.get("model") or {}),
        "data": str(data.get("train"))
        if data.get("train")
        else ", ".join(str(s.get("path", s)) for s in data.get("mixture") or []),
        "loss": terms,
        "steps × pairs": f"{train.get('steps', 0):,} × {train.get('global_batch_size', 0):,}",
        "optimiser": f"learning rate {optim.get('lr')} after {optim.get('warmup_steps')} steps, "
        f"weight decay {optim.get('weight_decay')}",
        "engine": f"ZeRO stage {engine.get('zero_stage')}, precision {engine.get('precision')}",
    }
    if run.metrics:
        dropped = run.metrics[-1].get("dropped")
        found["progress"] = f"step {run.metrics[-1]['step']:,}" + ("" if dropped is None else f", {dropped:,} samples replaced")
    if turns := run.turns():
        found["interruptions"] = ", ".join(f"{what} at step {step:,}" for what, step in turns)
    if run.starts:
        last = run.starts[-1]
        git, world = last.get("git") or {}, last.get("world") or {}
        devices = ", ".join(sorted(set(last.get("devices") or [])))
        found |= {
            "hardware": f"{world.get('size')} ranks ({world.get('source')}) on {devices}, host {last.get('host')}",
            "started": f"{run.starts[0].get('started')}, {len(run.starts)} start{'s' if len(run.starts) > 1 else ''}",
            "commit": f"{git.get('commit', 'unknown')}{' (changed)' if git.get('changed') else ''}",
            "versions": ", ".join(f"{name} {version}" for name, version in (last.get("packages") or {}).items()),
        }
    return found


def _model(model: dict[str, Any]) -> str:
    if model.get("architecture"):
        return str(model["architecture"])
    inline = model.get("inline") or {}
    towers = ((part, inline.get(f"{part}_cfg") or {}) for part in ("vision", "text"))
    sizes = (f"{part} {cfg.get('width')} wide, {cfg.get('layers')} layers" for part, cfg in towers)
    return f"own: {', '.join(sizes)}, embedding of {inline.get('embed_dim')}"


def _differences(runs: Sequence[Run]) -> str:
    flat = [dict(_leaves("", run.settings)) for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one if key not in UNINTERESTING))
    differing = [key for key in keys if len({str(one.get(key)) for one in flat}) > 1]
    body = [Row(key, [html.escape(str(one.get(key, "not set"))) for one in flat]) for key in differing]
    return table(["", *(run.name for run in runs)], body, "Settings in which they differ", words=True)


def _leaves(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [leaf for key, inner in value.items() for leaf in _leaves(f"{prefix}.{key}" if prefix else str(key), inner)]
    return [(prefix, value)]
