"""How exact the losses are, as a table: every term x world size, and the complete objective x ZeRO stage x world size.

    python benchmarks/exactness.py > docs/exactness.md

The cases are those of the test suite; here their errors are printed instead of bounded.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline.dist import World
from tests.distributed import run_ranks
from tests.engine import test_oracle
from tests.losses.cases import CASES, GROUPS, expected, largest_error, measured

WORLDS = (1, 2, 3, 4)
STAGES = (0, 1, 2, 3)


def term_errors(world: World) -> list[float]:
    """For each case the largest error over all groupings, on this rank."""
    return [
        max(largest_error(measured(case, group, world.rank, world.size), expected(case, group)) for group in GROUPS.values())
        for case in CASES
    ]


def stage_error(stage: int, world_size: int) -> float:
    """Largest error of the loss and of any parameter's gradient through DeepSpeed, over all ranks; relative beyond 1."""
    true_loss, true_grads = test_oracle.oracle()
    worst = 0.0
    for loss, grads, _ in run_ranks(test_oracle.through_engine, world_size, stage):
        errors = [abs(loss - true_loss) / max(1.0, abs(true_loss))]
        errors += [test_oracle.relative_error(grads[name], true_grads[name]) for name in true_grads]
        worst = max(worst, *errors)
    return worst


def main() -> None:
    """Print both tables as Markdown."""
    print("# How exact the losses are\n")
    print("Made by `python benchmarks/exactness.py > docs/exactness.md`.\n")
    print("## Each term against its reference, float64\n")
    print("Largest absolute error of the loss and of every gradient (embeddings, temperatures, offsets, biases), over batches")
    print("with distinct samples, pairs of equal ones, groups that span ranks, and a single group.\n")
    print("| term | " + " | ".join(f"{size} rank{'s' * (size > 1)}" for size in WORLDS) + " |")
    print("|---|" + "---|" * len(WORLDS))
    by_world = [[max(errors) for errors in zip(*run_ranks(term_errors, size), strict=True)] for size in WORLDS]
    for case, row in zip(CASES, zip(*by_world, strict=True), strict=True):
        print(f"| {case.title} | " + " | ".join(f"{error:.0e}" for error in row) + " |")
    print("\n## The complete objective through DeepSpeed, float32\n")
    print(f"{len(test_oracle.TERMS)} terms at once: {', '.join(test_oracle.TERMS)}. Largest relative error of the loss")
    print("and of every parameter's gradient (both towers, temperature, bias) against one process on the whole batch.\n")
    print("| ZeRO stage | " + " | ".join(f"{size} rank{'s' * (size > 1)}" for size in WORLDS[:3]) + " |")
    print("|---|" + "---|" * 3)
    for stage in STAGES:
        print(f"| {stage} | " + " | ".join(f"{stage_error(stage, size):.0e}" for size in WORLDS[:3]) + " |")


if __name__ == "__main__":
    main()
