"""Where a run's numbers come from: ``config.yaml``, ``deepspeed.json``, and ``run.json`` in its folder. Written by rank 0.

Every start appends one line to ``run.json`` (JSON lines): versions, git commit and whether the tree was changed, host,
devices, world. No environment variable is recorded: they hold secrets.
"""

from __future__ import annotations

import datetime
import json
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline import config
from pipeline.config import RunConfig
from pipeline.dist import World

PACKAGES = ("unisphere", "torch", "deepspeed", "open_clip_torch", "webdataset", "numpy", "pillow")


def write(cfg: RunConfig, world: World, ds_config: dict[str, Any]) -> None:
    """Record the resolved configuration and what it runs on; rank 0 does, the others return."""
    if not world.is_main:
        return
    cfg.run_dir.mkdir(parents=True, exist_ok=True)
    (cfg.run_dir / "config.yaml").write_text(config.dump(cfg), encoding="utf-8")
    (cfg.run_dir / "deepspeed.json").write_text(json.dumps(ds_config, indent=1) + "\n", encoding="utf-8")
    with open(cfg.run_dir / "run.json", "a", encoding="utf-8") as file:
        file.write(json.dumps(describe(world)) + "\n")


def describe(world: World) -> dict[str, Any]:
    """This start of a run as plain data."""
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "devices": _devices(),
        "world": {"size": world.size, "source": world.source},
        "git": git_state(Path(__file__).parent),
    }


def version(package: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that holds ``folder`` and whether it has uncommitted changes; None outside a checkout."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _devices() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return ["cpu"]
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
