"""Optimizer state in files: DeepSpeed's own swapping, with plain reads and writes where its compiled operator would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.dist import World
from pipeline.errors import ConfigError
from tests.distributed import run_ranks
from tests.engine.test_state import chain, leg, new_engine


class FileHandle:
    """What DeepSpeed asks of its operator: read and write buffers at once, and tell its own buffers from others."""

    buffers: list[Tensor] = []  # of all handles of this process

    def __init__(self, **settings: Any) -> None:
        self.pending = 0

    def async_pread(self, buffer: Tensor, path: str, offset: int) -> int:
        content = np.fromfile(path, dtype=np.uint8, count=buffer.numel() * buffer.element_size())
        buffer.view(-1).copy_(torch.from_numpy(content).view(buffer.dtype))
        self.pending += 1
        return 0

    def async_pwrite(self, buffer: Tensor, path: str, offset: int) -> int:
        buffer.contiguous().view(-1).numpy().tofile(path)
        self.pending += 1
        return 0

    def wait(self) -> int:
        done, self.pending = self.pending, 0
        return done

    def new_cpu_locked_tensor(self, numel: int, like: Tensor) -> Tensor:
        self.buffers.append(torch.zeros(numel, dtype=like.dtype))
        return self.buffers[-1]

    def is_pinned(self, tensor: Tensor) -> bool:
        at = tensor.data_ptr()
        return any(b.data_ptr() <= at < b.data_ptr() + b.numel() * b.element_size() for b in self.buffers)


class Builder:
    """Stands for ``AsyncIOBuilder``."""

    aio_handle = FileHandle

    def load(self) -> Any:
        return self

    def is_compatible(self, verbose: bool = False) -> bool:
        return True


class NoBuilder(Builder):
    """A machine without libaio."""

    def is_compatible(self, verbose: bool = False) -> bool:
        return False


def with_builder(builder: type[Builder]) -> None:
    import deepspeed
    from deepspeed.runtime.swap_tensor import optimizer_utils, partitioned_optimizer_swapper, pipelined_optimizer_swapper

    optimizer_utils.MIN_AIO_BYTES = 4096  # smaller groups stay in memory; a tiny model's would all be smaller than 1 MiB
    for module in (deepspeed.ops.op_builder, partitioned_optimizer_swapper, pipelined_optimizer_swapper):
        module.AsyncIOBuilder = builder


def leg_on_disk(world: World, *arguments: Any) -> tuple[list[float], list[str]]:
    """``leg``, and the files that the optimizer state was in."""
    with_builder(Builder)
    seen = leg(world, *arguments)
    return seen, [path.name for path in Path(arguments[-1]["offload"]).rglob("*.swp")]


@pytest.mark.slow
def test_state_in_files_trains_saves_and_resumes_like_any_other(tmp_path: Path) -> None:
    """Two steps on 2 ranks with files, two on 1 rank with files, two on 2 ranks without, against one process."""
    expected = run_ranks(leg, 1, str(tmp_path / "whole"), 0, range(6), {"ema_decay": None})[0]
    disk: dict[str, Any] = {"offload": str(tmp_path / "disk"), "ema_decay": None, "deepspeed": {"aio": {"block_size": 4096}}}
    seen = []
    for world_size, which in ((2, range(2)), (1, range(2, 4))):
        losses, files = run_ranks(leg_on_disk, world_size, str(tmp_path / "run"), 3, which, disk, timeout_seconds=120)[0]
        assert files, "small groups stay in memory, but not all of them"
        seen += losses
    seen += run_ranks(leg, 2, str(tmp_path / "run"), 1, range(4, 6), {"ema_decay": None})[0]
    assert seen == pytest.approx(expected, abs=1e-4)


def without_library(world: World, offload: str) -> str:
    with_builder(NoBuilder)
    try:
        new_engine(world, 3, offload=offload, ema_decay=None)
    except ConfigError as error:
        return str(error)
    return ""


def with_average(world: World, offload: str) -> str:
    with_builder(Builder)
    try:
        new_engine(world, 3, offload=offload, ema_decay=0.9)
    except ConfigError as error:
        return str(error)
    return ""


def test_a_machine_that_cannot_is_told_what_to_install(tmp_path: Path) -> None:
    (message,) = run_ranks(without_library, 1, str(tmp_path))
    assert "apt install libaio-dev" in message and "engine.offload = cpu" in message


def test_averages_are_not_kept_in_files(tmp_path: Path) -> None:
    (message,) = run_ranks(with_average, 1, str(tmp_path))
    assert "engine.ema_decay with engine.offload on a disk" in message


def test_state_on_the_cpu_is_elastic_too(tmp_path: Path) -> None:
    expected = run_ranks(leg, 1, str(tmp_path / "whole"), 0, range(4), {})[0]
    assert chain(tmp_path / "run", [(2, 2), (1, 3)], 2, offload="cpu") == pytest.approx(expected, abs=1e-4)
