"""InfoNCE over several processes beside open_clip with ``local_loss`` and ``gather_with_grad``: CPU time and bytes received.

    python benchmarks/distributed_loss.py                     # 2 and 4 gloo processes, B = 4096, d = 512
    python benchmarks/distributed_loss.py --ranks 2 --rounds 5

Time is CPU time of rank 0 (``process_time``), forward and backward, peers taking turns in the same processes, best of the
rounds. Bytes are what rank 0 receives in collectives, counted at torch.distributed's functions: an all-gather brings W - 1
blocks, a reduce-scatter W - 1 contributions to its own block, an all-reduce 2 (W - 1) / W of the tensor.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline.config import ObjectiveConfig
from pipeline.dist import World
from pipeline.features import Features
from pipeline.losses import Objective
from tests.distributed import run_ranks

PEER, OURS, OURS_BF16 = "open_clip ClipLoss", "this project", "this project, bf16 gather"


def main() -> None:
    """Measure at each number of ranks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(
        f"InfoNCE, B = {args.batch}, d = {args.width}, fp32, one thread a process, best of {args.rounds} interleaved rounds\n"
    )
    print(f"{'':28} {'ranks':>5} {'CPU ms':>8} {'time':>7} {'MB received':>12} {'bytes':>6}")
    for size in args.ranks:
        found = run_ranks(measure, size, args.batch, args.width, args.rounds, timeout_seconds=600)[0]
        for name, (ms, received) in found.items():
            ratios = f"{found[PEER][0] / ms:6.2f}x {received / 1e6:12.1f} {received / found[PEER][1]:6.0%}"
            print(f"{name:28} {size:5} {ms:8.0f} {ratios}")


def measure(world: World, batch: int, width: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Best CPU milliseconds and bytes received per step, by variant, on this rank."""
    from open_clip.loss import ClipLoss

    torch.manual_seed(world.rank)
    b = batch // world.size
    rows = {name: F.normalize(torch.randn(b, width), dim=1).requires_grad_() for name in ("image", "text")}
    scale = torch.tensor(14.3, requires_grad=True)
    group_b = torch.arange(b) + world.rank * b
    peer = ClipLoss(local_loss=True, gather_with_grad=True, rank=world.rank, world_size=world.size)
    exact, short = (Objective(ObjectiveConfig(gather_dtype=dtype), seed=0, total_steps=1) for dtype in ("fp32", "bf16"))
    steps = {
        PEER: lambda: peer(rows["image"], rows["text"], scale),
        OURS: lambda: exact(Features(rows, {"scale": scale}, group_b), step=0).total,
        OURS_BF16: lambda: short(Features(rows, {"scale": scale}, group_b), step=0).total,
    }
    received = count_received(world.size)
    best: dict[str, tuple[float, float]] = {}
    for _ in range(rounds + 1):  # the first one warms up
        for name, step in steps.items():
            torch_dist.barrier()
            received[0] = 0.0
            start = time.process_time()
            step().backward()
            ms = (time.process_time() - start) * 1000
            best[name] = (min(ms, best[name][0]) if name in best else float("inf"), received[0])
    return best


def count_received(size: int) -> list[float]:
    """From now on, add what each collective brings to this rank to the returned box."""
    box = [0.0]

    def nbytes(value: Any) -> int:
        tensors = value if isinstance(value, (list, tuple)) else [value]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, Tensor))

    # Name -> bytes brought, from the call's first two arguments.
    costs = {
        "all_gather": lambda out, own: nbytes(out) - nbytes(own),
        "all_gather_single": lambda out, own: nbytes(out) - nbytes(own),
        "all_gather_into_tensor": lambda out, own: nbytes(out) - nbytes(own),
        "reduce_scatter": lambda own, parts: (size - 1) * nbytes(own),
        "reduce_scatter_single": lambda own, parts: (size - 1) * nbytes(own),
        "reduce_scatter_tensor": lambda own, parts: (size - 1) * nbytes(own),
        "all_to_all": lambda out, parts: nbytes(out) * (size - 1) / size,
        "all_to_all_single": lambda out, own: nbytes(out) * (size - 1) / size,
        "all_reduce": lambda tensor, *_: 2 * nbytes(tensor) * (size - 1) / size,
        "scatter": lambda own, parts: nbytes(own) * (size - 1) / size,  # called once per rank as the source
        "reduce": lambda tensor, *_: nbytes(tensor) * (size - 1) / size,
    }
    from pipeline.losses import gather

    for name, cost in costs.items():
        if hasattr(torch_dist, name):
            counted = _counted(getattr(torch_dist, name), cost, box)
            for holder in (torch_dist, torch_dist.distributed_c10d, torch_dist.nn.functional.dist):
                setattr(holder, name, counted)
    gather._all_gather = _counted(gather._all_gather, costs["all_gather"], box)
    return box


def _counted(call: Any, cost: Any, box: list[float]) -> Any:
    def counting(*args: Any, **options: Any) -> Any:
        box[0] += cost(*args[:2]) if len(args) > 1 else cost(args[0], None)
        return call(*args, **options)

    return counting


if __name__ == "__main__":
    main()
