"""How well the order of an epoch is shuffled, and how local it is, beside a full shuffle: a table and a picture.

    python benchmarks/shuffle_quality.py                        # prints the table, writes docs/shuffle.png
    python benchmarks/shuffle_quality.py --shards 4000 --per-shard 1000 --batch 8192 --picture shuffle.png

Mixing, each the ratio to what a full shuffle of all samples gives, so that 1 is perfect:

    same shard     how often two samples of one batch come from one shard; for a property that all samples of a shard share
                   (worst case), this is how much the batches' composition varies more than it should
    neighbours     how often samples stored next to each other meet in a batch
    spread         how far over the epoch the samples of one shard are spread (standard deviation of their steps)

Locality, at 8 nodes of 8 ranks: shards that a node reads from in one step, and nodes that read a shard in an epoch. Everything
is counted in the plan itself; no data is read.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline.data import plan

NODES = 8
SETTINGS = ((10_000, 1), (10_000, 64), (100_000, 1), (100_000, 8), (100_000, 64), (1_000_000, 1), (1_000_000, 64))
SHOWN = ((8_000, 1), (8_000, 32), None)
SHOWN_SHARDS, SHOWN_PER_SHARD, SHOWN_BATCH = 160, 250, 256


def main() -> None:
    """Count, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=4000)
    parser.add_argument("--per-shard", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--picture", default=str(Path(__file__).parent.parent / "docs" / "shuffle.png"))
    args = parser.parse_args()
    plans = {setting: rows(setting, args.shards, args.per_shard, args.batch) for setting in (*SETTINGS, None)}
    full = mixing(plans[None], args.per_shard)
    print(f"{args.shards} shards of {args.per_shard}, batch {args.batch}, {NODES} nodes\n")
    head = ("window", "lanes", "same shard", "neighbours", "spread", "shards/node/step", "nodes/shard")
    print("".join(f"{name:>{width}}" for name, width in zip(head, (9, 7, 12, 12, 9, 18, 13), strict=True)))
    for setting, found in plans.items():
        ratios = mixing(found, args.per_shard) / full
        open_shards, readers = locality(found, args.per_shard)
        name = f"{setting[0]:9,}{setting[1]:7}" if setting else f"{'full shuffle':>16}"
        print(f"{name}{ratios[0]:12.2f}{ratios[1]:12.2f}{ratios[2]:9.2f}{open_shards:18.1f}{readers:13.2f}")
    small = {setting: rows(setting, SHOWN_SHARDS, SHOWN_PER_SHARD, SHOWN_BATCH) for setting in SHOWN}
    draw(small, SHOWN_PER_SHARD, Path(args.picture))


def rows(setting: tuple[int, int] | None, shards: int, per_shard: int, batch: int) -> plan.Indices:
    """The whole batches of an epoch with this window and number of lanes; None for a full shuffle."""
    steps = shards * per_shard // batch
    if setting is None:
        return np.random.default_rng(0).permutation(shards * per_shard)[: steps * batch].reshape(steps, batch)
    options = {"seed": 0, "epoch": 0, "global_batch_size": batch, "shuffle_window": setting[0], "max_lanes": setting[1]}
    return plan.plan_epoch([per_shard] * shards, **options)[:steps]


def mixing(rows: plan.Indices, per_shard: int) -> np.ndarray:
    """Pairs of a batch from one shard, stored neighbours in one batch, spread of a shard over the steps."""
    steps, batch = rows.shape
    shard = rows // per_shard
    num_shards = int(shard.max()) + 1
    counts = np.stack([np.bincount(row, minlength=num_shards) for row in shard]).astype(np.float64)
    same = (counts * (counts - 1)).sum() / (steps * batch * (batch - 1))
    step_of = np.full(num_shards * per_shard, -1)
    step_of[rows.reshape(-1)] = np.repeat(np.arange(steps), batch)
    together = np.mean((step_of[1:] == step_of[:-1]) & (step_of[1:] >= 0))
    weight = counts / counts.sum(axis=0)
    mean = (weight * np.arange(steps)[:, None]).sum(axis=0)
    spread = np.sqrt((weight * (np.arange(steps)[:, None] - mean) ** 2).sum(axis=0)).mean()
    return np.array([same, together, spread])


def locality(rows: plan.Indices, per_shard: int) -> tuple[float, float]:
    """Mean number of shards that a node reads from in one step, and of nodes that read a shard."""
    shard = rows // per_shard
    columns = [plan.rank_columns(rows.shape[1], node, NODES) for node in range(NODES)]
    at_once = np.mean([len(set(row[low:high].tolist())) for row in shard[::8] for low, high in columns])
    readers = np.bincount(np.concatenate([np.unique(shard[:, low:high]) for low, high in columns]))
    return float(at_once), float(readers[readers > 0].mean())


def draw(plans: dict[tuple[int, int] | None, plan.Indices], per_shard: int, path: Path) -> None:
    """Which shards feed which step: one point per some of the samples, coloured by the node that reads it."""
    figure, axes = plt.subplots(1, len(plans), figsize=(15, 4.6), sharey=True, layout="constrained")
    colours = plt.get_cmap("tab10")(np.arange(NODES))
    rng = np.random.default_rng(0)
    for axis, (setting, rows) in zip(axes, plans.items(), strict=True):
        steps, batch = rows.shape
        chosen = rng.choice(rows.size, min(rows.size, 20_000), replace=False)
        step, column = np.divmod(chosen, batch)
        node = column * NODES // batch
        axis.scatter(step, rows.reshape(-1)[chosen] // per_shard, s=3, c=colours[node], linewidths=0)
        axis.set_title("full shuffle" if setting is None else f"window {setting[0]:,}, lanes: {setting[1]}")
        axis.set_xlabel("step")
        axis.set_xlim(0, steps)
    axes[0].set_ylabel("shard, in stored order")
    handles = [plt.Line2D([], [], marker="o", ls="", color=colour, label=f"node {k}") for k, colour in enumerate(colours)]
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    figure.suptitle(f"{SHOWN_SHARDS} shards of {SHOWN_PER_SHARD}, batches of {SHOWN_BATCH}: who reads which shard when")
    figure.savefig(path, dpi=80)
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
