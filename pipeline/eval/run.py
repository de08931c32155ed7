"""The command ``unisphere eval TARGET [--sets DIR ...] [--batch-size N] [--out FILE]``, under any launcher.

    python -m pipeline.eval.run runs/emoji
    torchrun --nproc-per-node 2 -m pipeline.eval.run runs/emoji --sets sets/emoji_twemoji
    srun unisphere eval exports/emoji --sets sets/emoji_twemoji --out results.jsonl

The numbers are the same under each of them. The exit code is the same on every rank, and 0 only if every set was
evaluated. Nothing heavy is imported before the arguments are known to be sound: ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import ConfigError, DataError, PipelineError

TIMEOUT_SECONDS = 600
"""How long a rank waits for the others before it gives up and fails."""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog="unisphere eval",
        description="Zero-shot accuracy, retrieval recall, and geometry of a trained model on evaluation sets.",
    )
    result.add_argument("target", type=Path, help="run folder (newest checkpoint), checkpoint folder, or export folder")
    result.add_argument("--sets", nargs="+", metavar="DIR", help="evaluation sets; default: those of the run's config")
    result.add_argument(
        "--batch-size", type=int, default=256, metavar="N", help="samples read ahead per rank (no effect on numbers)"
    )
    result.add_argument(
        "--out", type=Path, metavar="FILE", help="append results here; default: eval.jsonl in the target's folder"
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        if args.batch_size < 1:
            raise ConfigError(f"--batch-size {args.batch_size}: must be at least 1")
        return _run(args.target, args.sets, args.batch_size, args.out)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _run(path: Path, sets: Sequence[str] | None, batch_size: int, out: Path | None) -> int:
    from pipeline import dist
    from pipeline.eval.evaluate import describe, evaluate
    from pipeline.eval.target import load
    from pipeline.eval.together import all_or_none

    world = dist.World.from_env(os.environ)
    device = dist.pick_device(world.local_rank)
    dist.init(world, device, TIMEOUT_SECONDS)
    try:
        target = all_or_none(lambda: load(path, device), world)
        chosen = tuple(sets or target.sets)
        if not chosen:
            raise ConfigError(f"nothing to evaluate: {path} names no evaluation sets (eval.sets); give --sets DIR ...")
        file = out or target.results
        results = evaluate(target.subject, chosen, world, device, batch_size=batch_size, out=file)
    finally:
        dist.shutdown()
    if world.is_main:
        print(world.table())
        for result in results:
            print(describe(result))
        print(f"results appended to {file}")
    failed = [result["set"] for result in results if "error" in result]
    if failed:
        raise DataError(f"{len(failed)} of {len(results)} sets could not be evaluated: {', '.join(failed)}; see above")
    return 0


if __name__ == "__main__":
    sys.exit(main())
