"""What a save costs the training, beside a blocking ``torch.save`` of the same state; and reading it back.

    python benchmarks/checkpoint.py                      # 40 million parameters: 480 MB of weights and moments
    python benchmarks/checkpoint.py --elastic            # the elastic matrix: every ZeRO stage to every other one

One process, one thread, wall time, the two ways in turn; the median of the rounds. Memory for the copy is made ready beside
the first steps, for which a second passes here; a save in the first moment waits for it. ``torch.save`` is not even asked to
wait for the disk; our file is hashed and synchronised too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import Tensor

from pipeline.checkpoint import Saver, TrainState
from pipeline.checkpoint.shards import Shards
from pipeline.config import CheckpointConfig
from pipeline.dist import World
from pipeline.pieces import Piece, Reader, Snapshot
from tests.distributed import run_ranks

KINDS = ("weight", "exp_avg", "exp_avg_sq")


class State:
    """Weights and moments of a transformer's size, in tensors of its usual shapes."""

    on_disk = False

    def __init__(self, millions: float) -> None:
        width = 768
        layers = max(1, round(millions * 1e6 / (12 * width * width)))
        shapes = {f"blocks.{i}.{n}": s for i in range(layers) for n, s in
                  {"qkv": (3 * width, width), "proj": (width, width), "up": (4 * width, width), "down": (width, 4 * width),
                   "ln": (width,)}.items()}  # fmt: skip
        self.tensors = {kind: {name: torch.randn(shape) for name, shape in shapes.items()} for kind in KINDS}
        self.numbers = sum(t.numel() for kind in self.tensors.values() for t in kind.values())

    def snapshot(self) -> Snapshot:
        """Everything: one rank holds it all."""
        pieces = [
            Piece(kind, name, tuple(tensor.shape), 0, tensor.view(-1))
            for kind, tensors in self.tensors.items()
            for name, tensor in tensors.items()
        ]
        return Snapshot(pieces, {}, {name: tuple(tensor.shape) for name, tensor in self.tensors["weight"].items()})

    def restore(self, reader: Reader) -> None:
        """Read it back in place."""
        for piece in self.snapshot().pieces:
            reader.fill(piece)

    def load_dict(self, loaded: dict[str, dict[str, Tensor]]) -> None:
        """What a training does with what ``torch.load`` gives it."""
        for kind, tensors in self.tensors.items():
            for name, tensor in tensors.items():
                tensor.copy_(loaded[kind][name])


def timed(action: Callable[[], object]) -> float:
    """Seconds of wall time."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(millions: float, rounds: int, folder: Path) -> None:
    """Print the table of stalls, and the one of reading."""
    state = State(millions)
    blocking, stalls, whole, ours, theirs = [], [], [], [], []
    firsts = []
    for seconds in (0, 1):
        saver = Saver(CheckpointConfig(keep_last=1), folder / f"run-{seconds}", state, world=World())
        time.sleep(seconds)
        firsts.append(timed(lambda: saver.begin(TrainState(0, 0, {}))))  # noqa: B023  # called at once
        saver.wait()
    for step in range(1, rounds + 1):
        blocking.append(timed(lambda: torch.save(state.tensors, folder / "blocking.pt")))
        started = time.perf_counter()
        stalls.append(timed(lambda: saver.begin(TrainState(step, 0, {}))))  # noqa: B023  # called at once
        found = saver.wait()
        whole.append(time.perf_counter() - started)
        assert found is not None
        shards = sorted((found / "shards").iterdir())
        ours.append(timed(lambda: state.restore(Shards(shards, {}))))  # noqa: B023
        theirs.append(timed(lambda: state.load_dict(torch.load(folder / "blocking.pt", weights_only=True))))
    size = 4 * state.numbers / 1e6
    base, stall = statistics.median(blocking), statistics.median(stalls)
    print(f"{state.numbers / len(KINDS) / 1e6:.0f} million parameters, {size:.0f} MB of state, {rounds} rounds\n")
    print("| what training waits for | seconds | beside torch.save |\n|---|---|---|")
    print(f"| a blocking torch.save | {base:.3f} | 1 |")
    for seconds, first in enumerate(firsts):
        print(f"| Saver.begin, the first time, {seconds} s after the start | {first:.3f} | {first / base:.2f} |")
    print(f"| Saver.begin, later | {stall:.3f} | {stall / base:.2f} |")
    print(f"\nA checkpoint is complete {statistics.median(whole):.2f} s after it was begun.")
    reading, theirs_s = statistics.median(ours), statistics.median(theirs)
    print("\n| reading the state back in place | seconds |\n|---|---|")
    print(f"| torch.load, then copying | {theirs_s:.3f} |\n| ranges of shards | {reading:.3f} |")


def elastic(folder: Path) -> None:
    """Print the largest difference in loss to one uninterrupted process, for every pair of stages."""
    from tests.engine import test_state as t

    whole = run_ranks(t.leg, 1, str(folder / "whole"), 0, range(8), {})[0]
    print("| saved at | " + " | ".join(f"resumed at stage {stage}" for stage in range(4)) + " |\n|---|" + "---|" * 4)
    for first in range(4):
        cells = []
        for second in range(4):
            plan = [(1, first), (2, second), (4, first), (3, second)]
            seen = t.chain(folder / f"{first}{second}", plan, 2)
            cells.append(f"{max(abs(a - b) for a, b in zip(seen, whole, strict=True)):.0e}")
        print(f"| stage {first} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=40.0, help="parameters")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--elastic", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        elastic(Path(folder)) if args.elastic else measure(args.millions, args.rounds, Path(folder))


if __name__ == "__main__":
    main()
