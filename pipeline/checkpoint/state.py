"""What a checkpoint says about itself, and which settings a resumed run may not change."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.checkpoint.files import Entry
from pipeline.config import RunConfig
from pipeline.dist import World
from pipeline.errors import CheckpointError

WEIGHTS, AVERAGED, STATE, POINTER, SHARDS = "model.safetensors", "ema.safetensors", "state.json", "latest", "shards"
REPLACED = ".replaced-"
"""What a checkpoint's name begins with while a new one of the same step takes its place."""

FREE = frozenset(
    {
        # Names and places.
        "name", "runs_dir", "resume_from",
        "model.init_weights", "model.image_tower.init_weights", "model.text_tower.init_weights",
        # How the work is spread and what memory it takes.
        "train.micro_batches", "model.compile", "model.gradient_checkpointing", "model.views_together", "objective.tile",
        "objective.keep_mb",
        # How long a run goes on trying.
        "train.time_limit_minutes", "train.max_starts_without_progress", "data.max_bad_fraction",
        # How bytes are read: who reads them, where they wait, and how patiently.
        "data.workers_per_rank", "data.prefetch_batches", "data.cache_dir", "data.cache_gigabytes", "data.verify",
        "data.read_attempts", "data.map_files", "data.storage", "data.stall_seconds", "data.stall_limit_seconds",
        "data.allow_commands",
    }
)  # fmt: skip
"""Settings that may change when a run resumes: its losses stay the same. A setting that is not named is pinned."""

FREE_SLICES = ("engine.", "checkpoint.", "eval.", "log.", "numbers.")
"""Slices that say how ranks share the work, or what happens beside the training or when it goes wrong."""


@dataclass(frozen=True)
class TrainState:
    """Where a run is. Everything random or scheduled is a function of ``step`` and the settings, so this is all of it."""

    step: int
    """Completed optimizer steps."""
    samples: int
    """Pairs seen, over all ranks."""
    settings: dict[str, Any]
    """Settings that decide what the next step computes; see ``pinned_settings``."""
    weights_sha256: str = ""
    """Of ``model.safetensors``; known once it is written."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What else the training loop must remember, as plain data."""


@dataclass(frozen=True)
class Record:
    """Everything in ``state.json``."""

    state: TrainState
    world_size: int
    """Of the run that saved it; any other can resume from it."""
    generation: int
    scalars: dict[str, Any]
    """The engine's own plain data."""
    files: dict[str, Entry]
    """Every other file of the checkpoint, by its path within it."""

    def dump(self) -> str:
        """As text that carries its own hash."""
        content = json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1)
        return json.dumps({"sha256": hashlib.sha256(content.encode()).hexdigest()}) + "\n" + content + "\n"

    @staticmethod
    def parse(text: str) -> Record:
        """Read what ``dump`` wrote.

        Raises:
            ValueError: it was changed since, or cut short.
        """
        head, _, rest = text.partition("\n")
        content = rest.removesuffix("\n")
        if json.loads(head)["sha256"] != hashlib.sha256(content.encode()).hexdigest() or content == rest:
            raise ValueError("its content does not fit the hash in its first line")
        values = json.loads(content)
        values["state"] = TrainState(**values["state"])
        values["files"] = {name: Entry(**entry) for name, entry in values["files"].items()}
        return Record(**values)


def pinned_settings(cfg: RunConfig, world: World, precision: str) -> dict[str, Any]:
    """The settings under which a resumed run continues the same sequence of losses: all but those named in this module.

    Args:
        world: not pinned; a run may resume on more or fewer ranks.
        precision: what ``engine.precision`` resolved to on this device.
    """
    found: dict[str, Any] = {"engine.precision": precision}
    _flatten("", cfg, found)
    plain: dict[str, Any] = json.loads(json.dumps(found, default=_plain))  # as it will come back from the file
    return plain


def _flatten(prefix: str, value: Any, found: dict[str, Any]) -> None:
    """Slices are dataclasses; whatever else a setting holds is one value."""
    for name, part in ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value)):
        path = prefix + name
        if dataclasses.is_dataclass(part):
            _flatten(f"{path}.", part, found)
        elif not _is_free(path):
            found.setdefault(path, part)


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else str(value)


def _is_free(path: str) -> bool:
    return path in FREE or path.startswith(FREE_SLICES)


def check_same_settings(saved: TrainState, settings: dict[str, Any], folder: Path) -> None:
    """Refuse to continue a run whose next loss would not be the one it was going to have.

    A setting that the checkpoint does not know is newer than it; what it was then is what the program did by default.

    Raises:
        CheckpointError: naming each setting that differs, with both values.
    """
    differences = [
        f"{name}: was {saved.settings[name]!r}, is {value!r}"
        for name, value in settings.items()
        if name in saved.settings and saved.settings[name] != value
    ]
    if differences:
        raise CheckpointError(
            f"{folder} was saved under other settings:\n  "
            + "\n  ".join(differences)
            + "\nrestore them, or start another run (name=...) from its weights with model.init_weights="
            + str(folder / WEIGHTS)
        )
