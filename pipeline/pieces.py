"""How a rank describes its share of a run's state, whoever holds the rest: pieces, ranges of flattened tensors.

An engine spreads a parameter over ranks in its own way, which depends on the number of ranks and the ZeRO stage. A checkpoint
must not: it stores, for each piece, which numbers of which tensor it holds, and any other spread can be read back from that.

    Piece("weight", "visual.proj", (2, 3), start=4, values=tensor([5., 6.]))     # the last two of six numbers
    snapshot = whole({"visual.proj": tensor_23})                                 # one rank that holds everything

Kinds: ``weight`` (trainable, fp32), ``frozen``, ``buffer``, ``ema`` (averaged weights, fp32), and the optimizer's own names
(``exp_avg``, ``exp_avg_sq``). The first three make up the model's weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

MODEL_KINDS = ("weight", "frozen", "buffer")
"""What ``model.safetensors`` consists of. Under averaged weights, ``ema`` stands for ``weight``."""


@dataclass(frozen=True)
class Piece:
    """A range of one flattened tensor."""

    kind: str
    name: str
    shape: tuple[int, ...]
    """Of the whole tensor."""
    start: int
    """Where the range begins in the flattened tensor."""
    values: Tensor
    """1-D view of live memory on any device: copy what must not change, write to restore."""

    @property
    def stop(self) -> int:
        """One past the range's last number."""
        return self.start + self.values.numel()

    @property
    def numel(self) -> int:
        """Numbers in the whole tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Snapshot:
    """One rank's share of a state."""

    pieces: list[Piece]
    """Over all ranks, the pieces of a tensor are disjoint and complete."""
    scalars: dict[str, Any] = field(default_factory=dict)
    """Plain data, equal on all ranks: step counts, the loss scale."""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Every tensor of the model in its order, wherever its pieces are; equal on all ranks."""


class Reader(Protocol):
    """Where a state is restored from."""

    @property
    def scalars(self) -> Mapping[str, Any]:
        """The snapshot's scalars."""

    def kinds(self) -> set[str]:
        """The kinds of tensors it holds."""

    def fill(self, piece: Piece) -> None:
        """Write the saved numbers of this range into ``piece.values``."""


class Saveable(Protocol):
    """What a checkpoint asks of whatever it saves."""

    @property
    def on_disk(self) -> bool:
        """Whether a snapshot reads files instead of showing live memory."""

    def snapshot(self) -> Snapshot:
        """This rank's share, as views of live memory; no communication."""

    def restore(self, reader: Reader) -> None:
        """Take over a saved state, at any number of ranks; every rank, together."""


def whole(weights: Mapping[str, Tensor]) -> Snapshot:
    """The snapshot of weights that one rank holds completely."""
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    return Snapshot([Piece("weight", name, shapes[name], 0, t.reshape(-1)) for name, t in weights.items()], shapes=shapes)


def share(length: int, rank: int, world_size: int) -> tuple[int, int]:
    """The range of ``length`` numbers that ``rank`` saves of a tensor that every rank holds: ``(start, stop)``."""
    return length * rank // world_size, length * (rank + 1) // world_size
