"""Every file in ``configs/`` loads, says how it is used, and describes a model and an engine that can be built."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from pipeline import config
from pipeline.data.views import VIEW_PARAMS
from pipeline.engine.ds_config import ds_config, resolve_precision
from pipeline.losses import Objective
from pipeline.models import clip
from tests.architecture.guards import REPOSITORY

HEADINGS = ("command", "hardware", "time", "expected")
FIGURES = ("time", "expected")
CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))  # those in configs/objectives/ are parts of a run


def header_violations(name: str, text: str) -> list[str]:
    """What the comment lines at the head of a config leave out; the command must name the file itself."""
    head = re.match(r"(?:#.*\n)*", text)
    said = {key.lower(): value for key, value in re.findall(r"^#\s*(\w+)[^:\n]*:\s*(\S.*)$", head[0] if head else "", re.M)}
    found = [f"{name}: no comment line `# {key}: ...` at its head" for key in HEADINGS if key not in said]
    found += [f"{name}: no figure in `# {key}: {said[key]}`" for key in FIGURES if not re.search(r"\d", said.get(key, "0"))]
    if "command" in said and name not in said["command"]:
        found.append(f"{name}: its command does not name it: {said['command']}")
    return found


def test_there_are_configs() -> None:
    assert len(CONFIGS) >= 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_says_how_it_is_used(path: Path) -> None:
    assert header_violations(str(path.relative_to(REPOSITORY)), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_survives_being_written_out(path: Path, tmp_path: Path) -> None:
    cfg = config.load(path)
    (tmp_path / "again.yaml").write_text(config.dump(cfg), encoding="utf-8")
    assert config.load(tmp_path / "again.yaml") == cfg


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_describes_a_model(path: Path) -> None:
    """Its towers and heads can be built, and make what its loss needs."""
    cfg = config.load(path)
    objective = Objective(cfg.objective, seed=cfg.seed, total_steps=cfg.train.steps)
    objective.check(clip.domains(len(cfg.augment.views), cfg.model))
    towers = {name: dataclasses.replace(getattr(cfg.model, name), init_weights=None) for name in ("image_tower", "text_tower")}
    plain = dataclasses.replace(cfg.model, init_weights=None, compile=False, **towers)  # the files may not be here
    with torch.device("meta"):  # shapes without memory
        built = clip.build(plain, cfg.objective, objective.scalars(), num_view_params=len(VIEW_PARAMS))
    for tower in (built.visual, built.text):
        parameters = list(tower.parameters())
        assert all(parameter.is_meta for parameter in parameters)
        assert sum(parameter.numel() for parameter in parameters) > 50_000


@pytest.mark.parametrize("world_size", [1, 8])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_describes_an_engine(path: Path, world_size: int) -> None:
    cfg = config.load(path)
    micro_batch_size = config.micro_batch_size(cfg.train.global_batch_size, world_size)
    for device_type in ("cuda", "cpu"):
        precision, _ = resolve_precision(cfg.engine, device_type, bf16_supported=device_type == "cuda")
        derived = ds_config(
            cfg.engine,
            cfg.optim,
            micro_batch_size=micro_batch_size,
            world_size=world_size,
            precision=precision,
            device_type=device_type,
        )
        assert derived["train_batch_size"] == cfg.train.global_batch_size
        assert derived["zero_optimization"]["stage"] == cfg.engine.zero_stage


def test_an_incomplete_header_is_found() -> None:
    good = "# Command: unisphere train configs/a.yaml\n# Hardware: 2 cores\n# Time: 3 minutes\n"
    good += "# Expected loss: 1.2\nname: a\n"
    assert header_violations("configs/a.yaml", good) == []
    assert header_violations("configs/b.yaml", good) == [
        "configs/b.yaml: its command does not name it: unisphere train configs/a.yaml"
    ]
    vague = good.replace("1.2", "as low as possible")
    assert header_violations("configs/a.yaml", vague) == ["configs/a.yaml: no figure in `# expected: as low as possible`"]
    late = "name: a\n" + good
    assert len(header_violations("configs/a.yaml", late)) == len(HEADINGS)
    assert header_violations("configs/a.yaml", good.replace("# Time: 3 minutes\n", "")) == [
        "configs/a.yaml: no comment line `# time: ...` at its head"
    ]
