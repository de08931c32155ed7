"""The command ``unisphere eval TARGET [--sets DIR ...] [--batch-size N] [--out FILE]``, under any launcher.

    python -m pipeline.eval.run runs/emoji
    torchrun --nproc-per-node 2 -m pipeline.eval.run runs/emoji --sets sets/emoji_twemoji
    srun unisphere eval exports/emoji --sets sets/emoji_twemoji --out results.jsonl
    unisphere eval runs/emoji --follow        every checkpoint as it appears      --table    all results so far

The numbers are the same under each of them. The exit code is the same on every rank, and 0 only if every set was
evaluated. Nothing heavy is imported before the arguments are known to be sound: ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import config
from pipeline.errors import ConfigError, DataError, PipelineError

if TYPE_CHECKING:
    import torch

    from pipeline.dist import World

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
    result.add_argument("--force", action="store_true", help="measure again what --out has results of already")
    result.add_argument("--averaged", action="store_true", help="the moving average of a run's weights (engine.ema_decay)")
    mode = result.add_mutually_exclusive_group()
    mode.add_argument("--follow", action="store_true", help="evaluate every checkpoint of a run as it appears, to its last")
    mode.add_argument("--table", action="store_true", help="print the results there are, a line per set and step")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        if args.batch_size < 1:
            raise ConfigError(f"--batch-size {args.batch_size}: must be at least 1")
        if args.table:
            return _table(args.out or args.target / "eval.jsonl")
        if args.follow:
            return _follow(args.target, args.sets, args.batch_size, args.out)
        return _run(args.target, args.sets, args.batch_size, args.out, force=args.force, averaged=args.averaged)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _run(path: Path, sets: Sequence[str] | None, batch_size: int, out: Path | None, *, force: bool, averaged: bool) -> int:
    from pipeline.eval.evaluate import describe, evaluate
    from pipeline.eval.target import load
    from pipeline.eval.together import all_or_none

    with _world() as (world, device):
        target = all_or_none(lambda: load(path, device, averaged=averaged), world)
        chosen, file = _named(sets or target.sets, path), out or target.results
        results = evaluate(target.subject, chosen, world, device, batch_size=batch_size, out=file, force=force)
    if world.is_main:
        print(world.table())
        for result in results:
            print(describe(result))
        print(f"results appended to {file}")
    return _all_succeeded(results)


def _follow(run: Path, sets: Sequence[str] | None, batch_size: int, out: Path | None) -> int:
    from pipeline.eval.follow import follow

    chosen = _named(sets or config.load(run / "config.yaml").eval.sets, run)
    with _world() as (world, device):
        results = follow(run, chosen, world, device, batch_size=batch_size, out=out or run / "eval.jsonl")
    return _all_succeeded(results)


def _table(path: Path) -> int:
    from pipeline.eval.evaluate import read_results
    from pipeline.eval.follow import table

    results = read_results(path)
    if not results:
        raise DataError(f"{path} holds no results yet; unisphere eval {path.parent} makes some")
    print(table(results))
    return 0


@contextlib.contextmanager
def _world() -> Iterator[tuple[World, torch.device]]:
    """The process group, for as long as it is needed."""
    from pipeline import dist

    world = dist.World.from_env(os.environ)
    device = dist.pick_device(world.local_rank)
    dist.init(world, device, TIMEOUT_SECONDS)
    try:
        yield world, device
    finally:
        dist.shutdown()


def _named(sets: Sequence[str], path: Path) -> tuple[str, ...]:
    if not sets:
        raise ConfigError(f"nothing to evaluate: {path} names no evaluation sets (eval.sets); give --sets DIR ...")
    return tuple(sets)


def _all_succeeded(results: Sequence[dict[str, Any]]) -> int:
    failed = [result["set"] for result in results if "error" in result]
    if failed:
        raise DataError(f"{len(failed)} of {len(results)} sets could not be evaluated: {', '.join(failed)}; see above")
    return 0


if __name__ == "__main__":
    sys.exit(main())
