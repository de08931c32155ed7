"""Golden losses: the first 20 steps of every small configuration, so that no change alters a training unnoticed.

    python -m tests.golden               run them all and compare          python -m tests.golden NAME ...    only some
    python -m tests.golden --explain     also say what differs, from which step on, and what that suggests
    python -m tests.golden --update      take what they give now as golden; say why in CHANGELOG.md

A configuration is run as it is, but from random weights, on 64 synthetic pairs, 16 per step, in one process. On the machine
that wrote a file, with its torch, losses must be bitwise equal. Elsewhere other vector instructions round otherwise, and 20
steps of Adam make more of it: there 1e-3 of the loss is allowed.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline import config, logs, strict
from pipeline.config import RunConfig
from pipeline.dist import World
from tests.distributed import run_ranks
from tests.runs import write_shards

FOLDER = Path(__file__).parent
CONFIGS = Path(__file__).parents[2] / "configs"
STEPS = 20
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Golden:
    """What a configuration gave."""

    machine: str
    settings: dict[str, Any]
    losses: list[float]
    grad_norms: list[float]
    keys: list[int]
    """Which samples each step saw, as one number."""


def names() -> list[str]:
    """Configurations that a CPU trains in seconds."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if "emoji" in path.stem)


def machine() -> str:
    """Where losses are bitwise reproducible: this kind of CPU with this torch."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__.partition('+')[0]}"


def shortened(name: str, folder: Path) -> RunConfig:
    """The configuration as it is, but for where it reads and writes and how long it runs."""
    tree = strict.read_yaml(CONFIGS / f"{name}.yaml")
    tree["data"] = {k: v for k, v in tree["data"].items() if k != "mixture"} | {
        "train": str(folder / "shards"),
        "workers_per_rank": 0,
    }
    tree["model"] = without(tree["model"], "init_weights", "fresh_projections")  # random weights, equal everywhere
    tree["train"] = {**tree["train"], "steps": STEPS, "global_batch_size": 16}
    tree["optim"] = {**tree.get("optim", {}), "warmup_steps": 5}
    tree |= {"name": name, "runs_dir": str(folder / "runs"), "eval": {}, "log": {"every_steps": 1, "tensorboard": False}}
    tree["checkpoint"] = {"every_steps": 0}
    tree.pop("resume_from", None)
    return config.from_tree(tree)


def without(tree: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Nested settings without some keys, at any depth."""
    return {k: without(v, *keys) if isinstance(v, dict) else v for k, v in tree.items() if k not in keys}


def compute(name: str) -> Golden:
    """Run one configuration."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_shards(folder / "shards", num_samples=64)
        cfg = shortened(name, folder)
        run_ranks(_train, 1, cfg, timeout_seconds=240)
        records = [r for r in logs.read_metrics(cfg.run_dir / logs.METRICS) if "loss" in r]
        plain = dataclasses.replace(cfg, runs_dir="", data=dataclasses.replace(cfg.data, train=""))
        settings = {path: str(value) for path, value in flat(strict.parse_yaml(config.dump(plain))).items()}
    return Golden(machine(), settings, *([r[key] for r in records] for key in ("loss", "grad_norm", "keys")))


def _train(world: World, cfg: RunConfig) -> None:
    from pipeline.train import train

    train(cfg, world)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted path."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def path_of(name: str) -> Path:
    """Where a configuration's golden losses are."""
    return FOLDER / f"{name}.json"


def read(name: str) -> Golden:
    """What a configuration should give."""
    return Golden(**json.loads(path_of(name).read_text()))


def write(name: str, golden: Golden) -> None:
    """Make it what a configuration should give."""
    path_of(name).write_text(json.dumps(dataclasses.asdict(golden), indent=1) + "\n")


def differing_step(expected: Golden, found: Golden) -> int | None:
    """The first step (from 1) whose loss is not what it should be, or None."""
    exact = expected.machine == found.machine
    for step, (want, have) in enumerate(zip(expected.losses, found.losses, strict=True), 1):
        if (want != have) if exact else abs(want - have) > TOLERANCE * abs(want):
            return step
    return None


def explain(expected: Golden, found: Golden) -> str:
    """What differs, from where on, and what that suggests; a line each."""
    lines = []
    if expected.machine != found.machine:
        lines.append(f"machine: {found.machine}; golden on {expected.machine}; compared within {TOLERANCE:g}")
    changed = {k for k in expected.settings.keys() | found.settings.keys() if expected.settings.get(k) != found.settings.get(k)}
    for key in sorted(changed):
        lines.append(f"setting {key}: was {expected.settings.get(key, 'not there')}, is {found.settings.get(key, 'not there')}")
    data = next((s for s, (a, b) in enumerate(zip(expected.keys, found.keys, strict=True), 1) if a != b), None)
    if data is not None:
        lines.append(f"data: other samples from step {data} on, so the order of the data or what is dropped has changed")
    step = differing_step(expected, found)
    if step is not None:
        want, have = expected.losses[step - 1], found.losses[step - 1]
        lines.append(f"loss: differs from step {step} on: {want!r} before, {have!r} now ({(have - want) / abs(want):+.1e})")
        norms = abs(expected.grad_norms[step - 1] - found.grad_norms[step - 1]) / expected.grad_norms[step - 1]
        if step == 1 and data is None:
            lines.append(
                f"before any update (gradient norm off {norms:.1e}): initial weights, views, tokens, towers or the loss itself"
            )
        elif step > 1 and data != step:
            lines.append(
                f"step {step - 1} was equal: its gradient, the learning rate or the update has changed, or something random"
            )
        lines.append(f"after {STEPS} steps: {expected.losses[-1]:.6f} before, {found.losses[-1]:.6f} now")
    return "\n".join(lines) or "equal"
