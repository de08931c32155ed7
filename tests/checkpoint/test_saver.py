"""Saving beside the training: what a step waits for, what happens when writing fails, who may write, what stays."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import checkpoint
from pipeline.checkpoint import Generation, Saver
from pipeline.checkpoint.shards import Staging
from pipeline.config import CheckpointConfig
from pipeline.dist import World
from pipeline.errors import CheckpointError, Superseded
from tests.checkpoint.fakes import FakeEngine, names, save, state
from tests.distributed import run_ranks


def test_what_training_changes_after_begin_is_not_in_the_checkpoint(tmp_path: Path) -> None:
    engine = FakeEngine(1.0, size=100_000)
    saver = Saver(CheckpointConfig(), tmp_path, engine, world=World())
    saver.begin(state(1))
    for values in engine.held.values():
        values.fill_(2.0)
    folder = saver.wait()
    assert folder is not None and set(checkpoint.read_weights(folder)["w"].tolist()) == {1.0}
    saver.begin(state(2))  # the same host memory again
    assert set(checkpoint.read_weights(saver.wait() or Path())["w"].tolist()) == {2.0}
    assert saver.metrics()["checkpoint/failures"] == 0


def test_poll_gives_the_folder_once_and_costs_nothing_without_a_save(tmp_path: Path) -> None:
    saver = Saver(CheckpointConfig(), tmp_path, FakeEngine(1.0), world=World())
    assert saver.poll() is None
    saver.begin(state(1))
    found = []
    while not found:
        found += [folder for folder in [saver.poll()] if folder is not None]
    assert found == [tmp_path / "checkpoints" / "step-00000001"]
    assert saver.poll() is None and saver.wait() is None


def test_in_the_foreground_begin_waits(tmp_path: Path) -> None:
    Saver(CheckpointConfig(background=False), tmp_path, FakeEngine(1.0), world=World()).begin(state(1))
    assert checkpoint.newest(tmp_path) is not None


def test_leftovers_of_lost_processes_are_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".writing-step-00000001-g1" / "shards").mkdir(parents=True)
    save(tmp_path, 2)
    assert names(tmp_path) == ["step-00000002"]


def test_an_unwritable_folder_is_an_error_that_says_so_and_training_could_go_on(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    saver = Saver(CheckpointConfig(), tmp_path, FakeEngine(), world=World())
    saver.begin(state(1))
    assert saver.wait() is None and saver.metrics()["checkpoint/failures"] == 1
    with pytest.raises(CheckpointError, match="cannot write .*step-00000002: .*checkpoints"):
        saver.save(state(2))


def full_disk(world: World, run: str) -> tuple[float, float, str, str]:
    """Save, then twice with less room than a shard needs, then with room again, on ranks that go on in step."""
    engine = FakeEngine(1.0, world, size=200_000)
    saver = Saver(CheckpointConfig(), Path(run), engine, world=world)
    saver.save(state(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    saver.begin(state(2))
    nothing = saver.wait()
    error = saver.last_error
    assert nothing is None
    kept = checkpoint.newest(Path(run), deep=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    failures = saver.metrics()["checkpoint/failures"]
    after = saver.save(state(3))
    assert kept is not None
    return failures, saver.metrics()["checkpoint/failures"], f"{kept.name} {error}", after.name


def test_a_full_disk_ends_no_training_and_takes_no_checkpoint_with_it(tmp_path: Path) -> None:
    for failures, later, message, after in run_ranks(full_disk, 2, str(tmp_path)):
        assert (failures, later, after) == (1, 1, "step-00000003")
        assert message.startswith("step-00000001 cannot write") and "OSError: [Errno 27] File too large" in message


def one_rank_fails(world: World, run: str) -> str:
    saver = Saver(CheckpointConfig(), Path(run), FakeEngine(1.0, world, size=200_000), world=world)
    saver.save(state(1))
    if world.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    saver.begin(state(2))
    saver.wait()
    return saver.last_error


def test_a_write_that_fails_on_one_rank_is_reported_on_all(tmp_path: Path) -> None:
    assert all("rank 1: OSError" in error for error in run_ranks(one_rank_fails, 3, str(tmp_path)))
    assert names(tmp_path) == ["step-00000001"], "what was written of the second one is cleared away"


def test_starts_of_a_run_are_numbered(tmp_path: Path) -> None:
    first = Generation.claim(tmp_path, World())
    first.check()
    second = Generation.claim(tmp_path, World())
    assert (first.number, second.number) == (1, 2)
    second.check()
    assert json.loads((tmp_path / "generations" / "00002.json").read_text()).keys() == {"host", "pid", "time"}
    with pytest.raises(
        Superseded, match=r"this is start 1 of .*, but start 2 has taken over \(host .*; nothing more is written"
    ):
        first.check()


def test_a_folder_that_cannot_be_claimed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "generations").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot claim .*generations"):
        Generation.claim(tmp_path, World())


def claim(world: World, run: str) -> int:
    return Generation.claim(Path(run), world).number


def test_every_rank_has_the_same_generation(tmp_path: Path) -> None:
    assert run_ranks(claim, 3, str(tmp_path)) == [1, 1, 1]
    assert run_ranks(claim, 2, str(tmp_path)) == [2, 2]


def stale(world: World, run: str, when: str) -> tuple[str, int, str]:
    """A start that is overtaken before it begins a save, or while it writes one."""
    generation = Generation.claim(Path(run), world)
    saver = Saver(CheckpointConfig(), Path(run), FakeEngine(1.0, world), world=world, generation=generation)
    saver.save(state(1))
    try:
        if when == "writing":
            saver.begin(state(2))
        if world.is_main:  # as another start's rank 0 would
            (Path(run) / "generations" / "00002.json").write_text("{}")
        if when == "before":
            saver.begin(state(2))
        saver.wait()
    except Superseded as error:
        newest = checkpoint.newest(Path(run))
        return str(error), error.exit_code, newest.name if newest else ""
    return "", 0, ""


@pytest.mark.parametrize("when", ["before", "writing"])
def test_a_superseded_start_publishes_nothing_and_leaves_with_its_own_code_on_every_rank(tmp_path: Path, when: str) -> None:
    for message, code, newest in run_ranks(stale, 2, str(tmp_path), when):
        assert "start 2 has taken over" in message
        assert (code, newest) == (9, "step-00000001")
    assert names(tmp_path) == ["step-00000001"]


def test_what_is_kept(tmp_path: Path) -> None:
    cfg = CheckpointConfig(keep_last=2, keep_every_steps=3, best_metric="set/top1")
    saver = Saver(cfg, tmp_path, FakeEngine(1.0), world=World())
    for step in range(1, 9):
        saver.save(state(step))
        saver.note(step, {"set/top1": 0.9 if step == 4 else 0.1 * step})
    assert names(tmp_path) == [f"step-{step:08d}" for step in (3, 4, 6, 7, 8)]


def test_lower_may_be_better_and_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    saver = Saver(
        CheckpointConfig(keep_last=1, best_metric="loss", best_is_highest=False), tmp_path, FakeEngine(), world=World()
    )
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.0)):
        saver.save(state(step))
        saver.note(step, {"loss": loss})
    with open(tmp_path / "checkpoints" / "figures.jsonl", "a") as file:
        file.write('{"step": 9, "lo')
    saver.save(state(5))
    assert names(tmp_path) == ["step-00000002", "step-00000005"]


def test_a_damaged_checkpoint_does_not_count_as_kept(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / "checkpoints" / "step-00000002" / "model.safetensors").unlink()
    save(tmp_path, 3, keep_last=2)
    assert "step-00000001" in names(tmp_path), "with 2 to keep, 1 and 3 are the ones that are whole"


def test_what_a_crash_left_of_a_deletion_goes_with_the_next_save(tmp_path: Path) -> None:
    (save(tmp_path, 1) / "state.json").unlink()
    save(tmp_path, 2, keep_last=3)
    assert names(tmp_path) == ["step-00000002"]


def half_precision(world: World, run: str) -> Any:
    from pipeline.pieces import Piece, Snapshot

    class Mixed:
        """Wide, narrow and whole-number tensors, none of them a multiple of the others' size."""

        on_disk = False

        tensors = {
            "half": ("frozen", torch.arange(3, dtype=torch.bfloat16)),
            "count": ("buffer", torch.tensor([7])),
            "flag": ("buffer", torch.tensor([True, False, True])),
            "w": ("weight", torch.arange(5.0)),
        }

        def snapshot(self) -> Snapshot:
            pieces = [Piece(kind, name, tuple(t.shape), 0, t) for name, (kind, t) in self.tensors.items()]
            return Snapshot(pieces, shapes={name: tuple(t.shape) for name, (_, t) in self.tensors.items()})

        def restore(self, reader: Any) -> None:
            for piece in self.snapshot().pieces:
                reader.fill(piece)

    return checkpoint.read_weights(checkpoint.save(Path(run), Mixed(), state(1), world=world, keep_last=0))


def test_tensors_of_every_width_share_a_file(tmp_path: Path) -> None:
    weights = half_precision(World(), str(tmp_path))
    assert weights["half"].dtype == torch.float32 and weights["half"].tolist() == [0, 1, 2]
    assert weights["count"].tolist() == [7] and weights["flag"].tolist() == [True, False, True]
    assert weights["w"].tolist() == [0, 1, 2, 3, 4]


def test_memory_for_the_first_copy_is_made_ready_at_the_start(tmp_path: Path) -> None:
    pieces = FakeEngine(1.0, size=1000).snapshot().pieces
    staging = Staging()
    staging.reserve(pieces)
    memory = staging._memory.data_ptr()
    staging.copy(pieces)
    assert staging._memory.data_ptr() == memory and len(staging._memory) >= 8000


def test_a_state_on_disk_is_not_read_at_the_start(tmp_path: Path) -> None:
    class OnDisk(FakeEngine):
        on_disk, looks = True, 0

        def snapshot(self) -> Any:
            self.looks += 1
            return super().snapshot()

    engine = OnDisk(2.0)
    saver = Saver(CheckpointConfig(), tmp_path, engine, world=World())
    assert engine.looks == 0
    saver.save(state(1))
    assert engine.looks == 1
