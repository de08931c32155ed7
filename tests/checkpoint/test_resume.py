"""Continuing: the newest whole checkpoint, at any world size, under the same settings or not at all."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipeline import checkpoint, config
from pipeline.checkpoint.state import FREE, FREE_SLICES
from pipeline.config import RunConfig
from pipeline.dist import World
from pipeline.errors import CheckpointError
from tests.checkpoint.fakes import SETTINGS, TREE, FakeEngine, run_config, save, state
from tests.checkpoint.test_find import flip
from tests.distributed import RanksFailed, run_ranks


def test_the_newest_is_restored(tmp_path: Path) -> None:
    cfg = run_config(tmp_path)
    assert checkpoint.resume(cfg, FakeEngine(), SETTINGS, world=World()) is None
    save(cfg.run_dir, 4)
    engine = FakeEngine()
    found = checkpoint.resume(cfg, engine, SETTINGS, world=World())
    assert found is not None and (found.step, engine.value) == (4, 4.0)


def save_at(world: World, run: str, step: int) -> None:
    engine = FakeEngine(step, world)
    checkpoint.save(Path(run), engine, state(step), world=world, keep_last=0)


def resume_at(world: World, cfg: RunConfig) -> tuple[int, float]:
    engine = FakeEngine(-1.0, world)
    found = checkpoint.resume(cfg, engine, SETTINGS, world=world)
    assert found is not None
    return found.step, engine.value


def test_any_number_of_ranks_resumes_what_any_other_saved_past_a_damaged_shard(tmp_path: Path) -> None:
    cfg = run_config(tmp_path)
    run_ranks(save_at, 3, str(cfg.run_dir), 1)
    run_ranks(save_at, 2, str(cfg.run_dir), 2)
    run_ranks(save_at, 4, str(cfg.run_dir), 3)
    flip(cfg.run_dir / "checkpoints" / "step-00000003" / "shards" / "00002-of-00004.safetensors")
    assert run_ranks(resume_at, 3, cfg) == [(2, 2.0)] * 3
    assert run_ranks(resume_at, 1, cfg) == [(2, 2.0)]


def test_what_rank_0_finds_wrong_ends_every_rank(tmp_path: Path) -> None:
    cfg = run_config(tmp_path)
    (save(cfg.run_dir, 1) / "state.json").unlink()
    with pytest.raises(
        RanksFailed, match=r"(?s)rank 0 of 2.*no checkpoint that is whole.*rank 1 of 2.*no checkpoint that is whole"
    ):
        run_ranks(resume_at, 2, cfg)


def test_a_configured_path_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    cfg = run_config(tmp_path, resume_from=str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        checkpoint.resume(cfg, FakeEngine(), SETTINGS, world=World())


def test_a_configured_path_is_compared_byte_by_byte(tmp_path: Path) -> None:
    folder = save(tmp_path / "other", 1)
    flip(folder / "shards" / "00000-of-00001.safetensors")
    cfg = run_config(tmp_path, resume_from=str(folder))
    with pytest.raises(CheckpointError, match="was damaged: sha256 is"):
        checkpoint.resume(cfg, FakeEngine(), SETTINGS, world=World())


def test_a_run_that_is_started_again_goes_on_from_its_own_and_not_from_where_it_began(tmp_path: Path) -> None:
    given = save(tmp_path / "other", 1)
    cfg = run_config(tmp_path, resume_from=str(given))
    found = checkpoint.resume(cfg, FakeEngine(), SETTINGS, world=World())
    assert found is not None and found.step == 1
    save(cfg.run_dir, 2)
    found = checkpoint.resume(cfg, FakeEngine(), SETTINGS, world=World())
    assert found is not None and found.step == 2


def test_weights_alone_are_nothing_to_resume_from(tmp_path: Path) -> None:
    full = save(tmp_path / "other", 1)
    (tmp_path / "weights").mkdir()
    checkpoint.write_weights(tmp_path / "weights", checkpoint.read_weights(full), checkpoint.read_state(full))
    cfg = run_config(tmp_path, resume_from=str(tmp_path / "weights"))
    with pytest.raises(
        CheckpointError, match="holds weights and nothing to resume from; start from them with model.init_weights"
    ):
        checkpoint.resume(cfg, FakeEngine(), SETTINGS, world=World())


def test_another_models_state_is_refused_by_name_and_size(tmp_path: Path) -> None:
    cfg = run_config(tmp_path)
    save(cfg.run_dir, 1)
    with pytest.raises(CheckpointError, match=r"weight of w has 10 numbers, this model's has 12 \(12,\)"):
        checkpoint.resume(cfg, FakeEngine(size=12), SETTINGS, world=World())
    with pytest.raises(CheckpointError, match="has no ema of w: it belongs to another model"):
        checkpoint.resume(cfg, FakeEngine(averaged=True), SETTINGS, world=World())


@pytest.mark.parametrize(
    ("group", "change", "difference"),
    [
        ("optim", {"warmup_steps": 1}, "optim.warmup_steps: was 0, is 1"),
        (
            "objective",
            {"terms": {"clip": {"label_smoothing": 0.1}}},
            "objective.terms: was .*clip.*, is .*label_smoothing.*0.1.*",
        ),
        ("augment", {"flip_probability": 0.5}, "augment.flip_probability: was 0.0, is 0.5"),
        ("train", {"steps": 8, "global_batch_size": 4}, "train.steps: was 9, is 8"),
        ("seed", 1, "seed: was 0, is 1"),
        ("model", {"architecture": "ViT-B-32", "patch_dropout": 0.5}, "model.patch_dropout: was None, is 0.5"),
    ],
)
def test_whatever_would_change_the_next_loss_is_refused(tmp_path: Path, group: str, change: Any, difference: str) -> None:
    """A run that silently went on with another schedule or loss would not be the run it says it is."""
    cfg = run_config(tmp_path)
    save(cfg.run_dir, 1)
    other = run_config(tmp_path, **{group: {**TREE.get(group, {}), **change} if isinstance(change, dict) else change})
    settings = checkpoint.pinned_settings(other, World(), "fp32")
    with pytest.raises(CheckpointError, match=f"(?s)saved under other settings:\n  {difference}\n.*model.init_weights="):
        checkpoint.resume(other, FakeEngine(), settings, world=World())


def test_precision_is_pinned_as_resolved() -> None:
    cfg = config.from_tree(TREE)
    assert checkpoint.pinned_settings(cfg, World(), "bf16")["engine.precision"] == "bf16"
    assert config.from_tree(TREE).engine.precision == "auto"


@pytest.mark.parametrize(
    "changes",
    [
        {"engine": {"zero_stage": 3}},
        {"engine": {"zero_stage": 2, "offload": "cpu", "ema_decay": 0.9}},
        {"train": {"steps": 9, "global_batch_size": 4, "micro_batches": 2}},
        {"checkpoint": {"every_steps": 3, "keep_last": 1}},
        {"log": {"every_steps": 1}},
        {"name": "again"},
    ],
)
def test_how_the_work_is_spread_and_watched_may_change(changes: dict[str, Any]) -> None:
    other = config.from_tree({**TREE, **changes})
    assert checkpoint.pinned_settings(other, World(1, 4, 1, 4), "fp32") == SETTINGS


def paths(prefix: str, value: Any) -> set[str]:
    """Every setting of a configuration, dotted."""
    found = set()
    for name, part in ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value)):
        found |= paths(f"{prefix}{name}.", part) if dataclasses.is_dataclass(part) else {prefix + name}
    return found


def test_a_new_setting_is_pinned_until_it_is_named_free() -> None:
    known = paths("", config.from_tree(TREE))
    assert known >= FREE, "a name that no setting has frees nothing"
    pinned = {path for path in known if path not in FREE and not path.startswith(FREE_SLICES)} | {"engine.precision"}
    assert set(SETTINGS) == pinned
    assert {"seed", "data.train", "augment.crop_scale", "model.patch_dropout", "objective.terms", "optim.lr"} <= pinned
