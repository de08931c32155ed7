"""What a checkpoint promises: complete or not there, pointer last, damage noticed, other settings refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import checkpoint, config
from pipeline.checkpoint import TrainState
from pipeline.dist import World
from pipeline.errors import CheckpointError

TREE: dict[str, Any] = {
    "name": "run",
    "data": {"train": "shards"},
    "model": {"architecture": "ViT-B-32"},
    "train": {"steps": 9, "global_batch_size": 4},
    "optim": {"warmup_steps": 0},
}
SETTINGS = checkpoint.pinned_settings(config.from_tree(TREE), World(), "fp32")


class FakeEngine:
    """An engine whose whole state is one number."""

    def __init__(self, value: float = 0.0, fail: bool = False) -> None:
        self.value, self.fail = value, fail

    def save(self, folder: Path) -> None:
        (folder / "engine").mkdir()
        (folder / "engine" / "value").write_text(str(self.value))
        if self.fail:
            raise KeyboardInterrupt  # stands for a kill in the middle of a save

    def load(self, folder: Path) -> None:
        self.value = float((folder / "engine" / "value").read_text())

    def consolidated(self) -> dict[str, Tensor]:
        return {"w": torch.tensor([self.value])}


def save(run: Path, step: int, engine: Any = None, keep_last: int = 0) -> Path:
    state = TrainState(step, step * 4, SETTINGS)
    return checkpoint.save(run, engine or FakeEngine(step), state, world=World(), keep_last=keep_last)


def test_round_trip(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    assert checkpoint.newest(tmp_path) == folder == tmp_path / "checkpoints" / "step-00000003"
    state = checkpoint.read_state(folder)
    assert (state.step, state.samples, state.settings) == (3, 12, SETTINGS)
    assert checkpoint.read_weights(folder)["w"].item() == 3.0


def test_a_run_that_never_saved_has_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None


def test_dying_while_writing_leaves_the_previous_one_and_the_next_save_succeeds(tmp_path: Path) -> None:
    first = save(tmp_path, 1)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2, FakeEngine(2, fail=True))
    assert checkpoint.newest(tmp_path) == first
    assert save(tmp_path, 2) == checkpoint.newest(tmp_path)


def test_saving_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 5, FakeEngine(1.0))
    assert checkpoint.read_weights(save(tmp_path, 5, FakeEngine(2.0)))["w"].item() == 2.0


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep_last=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*")) == ["step-00000003", "step-00000004"]


def test_an_unwritable_folder_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match="cannot start .*checkpoints"):
        save(tmp_path, 1)


@pytest.mark.parametrize("name", ["state.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, 1)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"not a complete checkpoint: {name} is missing"):
        checkpoint.newest(tmp_path)


def test_damaged_weights_are_noticed(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="was damaged: sha256 is"):
        checkpoint.read_weights(folder)


def test_a_damaged_state_file_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    (folder / "state.json").write_text('{"step": 1')
    with pytest.raises(CheckpointError, match="state.json is damaged"):
        checkpoint.read_state(folder)


def test_resume_restores_the_newest(tmp_path: Path) -> None:
    cfg = config.from_tree({**TREE, "runs_dir": str(tmp_path)})
    assert checkpoint.resume(cfg, FakeEngine(), SETTINGS) is None
    save(cfg.run_dir, 4)
    engine = FakeEngine()
    state = checkpoint.resume(cfg, engine, SETTINGS)
    assert state is not None and (state.step, engine.value) == (4, 4.0)


def test_a_configured_path_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    cfg = config.from_tree({**TREE, "runs_dir": str(tmp_path), "resume_from": str(tmp_path / "nowhere")})
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        checkpoint.resume(cfg, FakeEngine(), SETTINGS)


def test_other_settings_are_refused_with_both_values(tmp_path: Path) -> None:
    cfg = config.from_tree({**TREE, "runs_dir": str(tmp_path)})
    save(cfg.run_dir, 1)
    with pytest.raises(CheckpointError, match="(?s)world size: was 1, is 2.*model.init_weights="):
        checkpoint.resume(cfg, FakeEngine(), {**SETTINGS, "world size": 2})


@pytest.mark.parametrize(
    ("group", "change"),
    [
        ("optim", {"warmup_steps": 1}),
        ("objective", {"terms": {"clip": {"label_smoothing": 0.1}}}),
        ("augment", {"flip_probability": 0.5}),
        ("train", {"steps": 8, "global_batch_size": 4}),
    ],
)
def test_whatever_would_change_the_next_loss_is_refused(tmp_path: Path, group: str, change: dict[str, Any]) -> None:
    """A run that silently went on with another schedule or loss would not be the run it says it is."""
    cfg = config.from_tree({**TREE, "runs_dir": str(tmp_path)})
    save(cfg.run_dir, 1)
    other = config.from_tree({**TREE, "runs_dir": str(tmp_path), group: {**TREE.get(group, {}), **change}})
    with pytest.raises(CheckpointError, match=f"was saved under other settings:\\n  {group}"):
        checkpoint.resume(other, FakeEngine(), checkpoint.pinned_settings(other, World(), "fp32"))
