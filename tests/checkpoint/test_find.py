"""What is found on a disk: complete or not there, damage noticed and passed over, never silently from the beginning."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import checkpoint
from pipeline.errors import CheckpointError
from tests.checkpoint.fakes import SETTINGS, FakeEngine, names, save, set_pointer

FILES = ["model.safetensors", "ema.safetensors", "shards/00000-of-00001.safetensors", "state.json"]


def cut(path: Path) -> None:
    """Lose the last byte."""
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    """Change one bit in the middle, which no size shows."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_round_trip(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    assert checkpoint.newest(tmp_path) == folder == tmp_path / "checkpoints" / "step-00000003"
    state = checkpoint.read_state(folder)
    assert (state.step, state.samples, state.settings) == (3, 12, SETTINGS)
    assert checkpoint.read_weights(folder)["w"].tolist() == [3.0] * 10
    assert state.weights_sha256 == checkpoint.file_sha256(folder / "model.safetensors")
    assert checkpoint.verify(folder).world_size == 1


def test_a_run_that_never_saved_has_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None


def test_averaged_weights_are_a_file_of_their_own(tmp_path: Path) -> None:
    engine = FakeEngine(2.0, averaged=True)
    engine.held["ema"].fill_(1.5)
    folder = save(tmp_path, 1, engine)
    assert checkpoint.read_weights(folder)["w"].tolist() == [2.0] * 10
    assert checkpoint.read_weights(folder, averaged=True)["w"].tolist() == [1.5] * 10
    with pytest.raises(CheckpointError, match="has no averaged weights; they are kept where engine.ema_decay is set"):
        checkpoint.read_weights(save(tmp_path, 2), averaged=True)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_any_damage_to_any_file_is_noticed_and_the_one_before_is_used(
    tmp_path: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    before = save(tmp_path, 1, FakeEngine(1, averaged=True))
    damaged = save(tmp_path, 2, FakeEngine(2, averaged=True))
    damage(damaged / name)
    with caplog.at_level(logging.WARNING, "unisphere"):
        logging.getLogger("unisphere").addHandler(caplog.handler)
        assert checkpoint.newest(tmp_path, deep=True) == before
        logging.getLogger("unisphere").removeHandler(caplog.handler)
    (message,) = [record.getMessage() for record in caplog.records if "passed over" in record.getMessage()][:1]
    assert name in message and str(damaged) in message
    with pytest.raises(CheckpointError, match=r"damaged|is missing"):
        checkpoint.verify(damaged)


@pytest.mark.parametrize("content", [None, "", "step-00000009\n", "\0\xff"])
def test_a_lost_or_damaged_pointer_means_the_newest(tmp_path: Path, content: str | None) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    pointer = tmp_path / "checkpoints" / "latest"
    pointer.unlink() if content is None else pointer.write_bytes(content.encode("latin1"))
    assert checkpoint.newest(tmp_path) == newest


def test_the_pointer_sets_a_run_back(tmp_path: Path) -> None:
    older = save(tmp_path, 1)
    save(tmp_path, 2)
    set_pointer(tmp_path, older.name)
    assert checkpoint.newest(tmp_path) == older


def test_checkpoints_that_are_all_damaged_are_an_error_and_not_a_new_run(tmp_path: Path) -> None:
    for folder in [save(tmp_path, step) for step in (1, 2)]:
        (folder / "state.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"(?s)has no checkpoint that is whole.*00002.*00001.*to start from the beginning"
    ):
        checkpoint.newest(tmp_path)


@pytest.mark.parametrize("name", ["state.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, 1)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"not a complete checkpoint: {name} is missing"):
        checkpoint.read_state(folder)


def test_damaged_weights_are_noticed_when_they_are_read(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    flip(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.safetensors was damaged: sha256 is"):
        checkpoint.read_weights(folder)


def test_weights_alone_are_readable_the_same_way(tmp_path: Path) -> None:
    folder = save(tmp_path, 4)
    weights, state = checkpoint.read_weights(folder), checkpoint.read_state(folder)
    (tmp_path / "alone").mkdir()
    checkpoint.write_weights(tmp_path / "alone", weights, state)
    assert checkpoint.read_weights(tmp_path / "alone")["w"].equal(weights["w"])
    assert checkpoint.read_state(tmp_path / "alone").step == 4


def test_names_of_a_run_that_saved_twice(tmp_path: Path) -> None:
    save(tmp_path, 5, FakeEngine(1.0))
    assert checkpoint.read_weights(save(tmp_path, 5, FakeEngine(2.0)))["w"][0].item() == 2.0
    assert names(tmp_path) == ["step-00000005"]
