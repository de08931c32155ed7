"""A rank's share of a state in one file, and reading any range of it back, whoever wrote it.

Each tensor of a shard is a piece: ``exp_avg/visual.proj@4`` holds the numbers of the first moment of ``visual.proj`` from the
fifth one on. ``Shards`` looks at the headers of all ranks' files and fills any range of any tensor from whichever files have
it, so that a state can be read by another number of ranks, at another ZeRO stage. Nothing is converted or unpickled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pipeline.checkpoint.files import Entry, Layout, raw, write
from pipeline.errors import CheckpointError
from pipeline.pieces import MODEL_KINDS, Piece


class Staging:
    """Host memory that snapshots are copied to, which training waits for. Kept: new memory costs several times the copy."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._header, self._size = b"", 0

    def reserve(self, pieces: list[Piece]) -> None:
        """Have memory for such pieces, every page of it touched; ``copy`` would do it otherwise."""
        self._reserve(*_layout(pieces))

    def _reserve(self, layout: Layout, gpu: bool) -> None:
        if len(self._memory) < layout.size:
            self._memory = torch.empty(layout.size, dtype=torch.uint8, pin_memory=gpu).zero_()

    def copy(self, pieces: list[Piece]) -> None:
        """Copy live memory, from the GPU through pinned memory; when it returns, training may change it."""
        named = _named(pieces)
        layout, gpu = _layout(pieces)
        self._reserve(layout, gpu)
        for key, (start, stop) in layout.places.items():
            self._memory[start:stop].view(named[key].dtype).copy_(named[key], non_blocking=True)
        if gpu:
            torch.cuda.synchronize()
        self._header, self._size = layout.header, layout.size

    def write(self, path: Path) -> Entry:
        """Write what was last copied."""
        return write(path, [self._header, raw(self._memory[: self._size])])


def _named(pieces: list[Piece]) -> dict[str, torch.Tensor]:
    return {f"{piece.kind}/{piece.name}@{piece.start}": piece.values for piece in pieces}


def _layout(pieces: list[Piece]) -> tuple[Layout, bool]:
    """Where the pieces go in a file, and whether some come from a GPU."""
    layout = Layout.of({key: (values.dtype, tuple(values.shape)) for key, values in _named(pieces).items()})
    return layout, any(piece.values.is_cuda for piece in pieces)


class Shards:
    """The tensors of all ranks' files, by range. A ``pipeline.pieces.Reader``."""

    def __init__(self, paths: list[Path], scalars: Mapping[str, Any]) -> None:
        """Read the headers.

        Raises:
            CheckpointError: a file is no safetensors file.
        """
        self.scalars = scalars
        self._where = str(paths[0].parent)
        self._ranges: dict[tuple[str, str], list[tuple[int, int, Any]]] = {}
        for path in paths:
            try:
                file: Any = safe_open(path, framework="pt")
                for key in file.keys():  # noqa: SIM118  # not a dict
                    kind, _, rest = key.partition("/")
                    name, _, start = rest.rpartition("@")
                    part = file.get_slice(key)
                    self._ranges.setdefault((kind, name), []).append((int(start), part.get_shape()[0], part))
            except (SafetensorError, OSError, ValueError) as error:
                raise CheckpointError(f"{path} cannot be read as tensors: {error}") from error
        for parts in self._ranges.values():
            parts.sort(key=lambda part: part[:2])

    def kinds(self) -> set[str]:
        """The kinds of tensors in the files."""
        return {kind for kind, _ in self._ranges}

    def find(self, name: str, kinds: tuple[str, ...]) -> str:
        """The first of these kinds that there is of a tensor.

        Raises:
            CheckpointError: there is none.
        """
        for kind in kinds:
            if (kind, name) in self._ranges:
                return kind
        raise CheckpointError(f"{self._where} has no {' or '.join(kinds)} of {name}: it belongs to another model")

    def dtype(self, kind: str, name: str) -> torch.dtype:
        """What a tensor is stored as."""
        dtype: torch.dtype = self._ranges[kind, name][0][2][:1].dtype
        return dtype

    def fill(self, piece: Piece) -> None:
        """Write the stored numbers of a range into ``piece.values``.

        Raises:
            CheckpointError: the tensor is missing, incomplete, or of another size.
        """
        kind = self.find(piece.name, (piece.kind,) if piece.kind != "frozen" else ("frozen", "weight"))
        stored = self._ranges[kind, piece.name]
        total = sum(length for _, length, _ in stored)
        if total != piece.numel:
            raise CheckpointError(
                f"{self._where}: {kind} of {piece.name} has {total} numbers, this model's has {piece.numel} {piece.shape}"
            )
        done = piece.start
        for start, length, part in stored:
            low, high = max(start, done), min(start + length, piece.stop)
            if low < high and low == done:
                piece.values[low - piece.start : high - piece.start].copy_(part[low - start : high - start])
                done = high
        if done != piece.stop:
            raise CheckpointError(f"{self._where}: {kind} of {piece.name} lacks its numbers {done} to {piece.stop}")


def write_whole(path: Path, shards: Shards, shapes: Mapping[str, tuple[int, ...]], *, averaged: bool) -> Entry:
    """Put the model together, tensor by tensor, from all ranks' pieces: fp32 (buffers as they are), under its own names."""
    kinds = ("ema", *MODEL_KINDS) if averaged else MODEL_KINDS
    found = {name: shards.find(name, kinds) for name in shapes}
    dtypes = {name: shards.dtype(kind, name) if kind == "buffer" else torch.float32 for name, kind in found.items()}
    layout = Layout.of({name: (dtypes[name], tuple(shapes[name])) for name in shapes})

    def parts() -> Iterator[bytes | memoryview]:
        yield layout.header
        for name in layout.places:
            values = torch.empty(math.prod(shapes[name]), dtype=dtypes[name])
            shards.fill(Piece(found[name], name, tuple(shapes[name]), 0, values))
            yield raw(values)

    return write(path, parts())
