"""The command ``unisphere eval TARGET [--sets SET ...] [--root DIR] [--templates NAME] [--out FILE]``, under any launcher.

    python -m pipeline.eval.run runs/emoji
    torchrun --nproc-per-node 2 -m pipeline.eval.run runs/emoji --sets sets/emoji_twemoji
    srun unisphere eval exports/emoji --sets sets/emoji_twemoji --out results.jsonl
    unisphere eval runs/x --sets datacomp wds/flickr30k --root s3://bucket/evals
    unisphere eval runs/emoji --follow        every checkpoint as it appears      --table    all results so far

The numbers are the same under each of them. The exit code is the same on every rank, and 0 only if every set was
evaluated. Nothing heavy is imported before the arguments are known to be sound: ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
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
    result.add_argument(
        "--sets",
        nargs="+",
        metavar="SET",
        help="evaluation sets: folders, URLs, names below --root (wds/imagenet1k), or collections of them (datacomp, vtab, "
        "vtab+, imagenet-shift, retrieval); default: those of the run's config",
    )
    result.add_argument("--root", metavar="DIR", help="folder or URL below which named sets lie (eval.root)")
    result.add_argument(
        "--templates", metavar="NAME", help="set (its own), openai, simple, a text file, or a JSON file of sentences per class"
    )
    result.add_argument("--classnames", metavar="NAME", help="set (its own), openai, or a text file of one name per line")
    result.add_argument("--captioned", type=int, metavar="N", help="images of each set that a captioning model writes about")
    result.add_argument("--max-samples", type=int, metavar="N", help="evaluate only so many samples of each set")
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
    result.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="NAME=SET,SET,...",
        help="with --table: sets to compare, the first being what the others are measured against; beside those of eval.groups",
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        for name in ("batch_size", "max_samples"):
            if (value := getattr(args, name)) is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: must be at least 1")
        if args.table:
            return _table(args)
        return _follow(args) if args.follow else _run(args)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _run(args: argparse.Namespace) -> int:
    from pipeline.eval.evaluate import evaluate
    from pipeline.eval.results import describe
    from pipeline.eval.target import load
    from pipeline.eval.together import all_or_none

    with _world() as (world, device):
        target = all_or_none(lambda: load(args.target, device, averaged=args.averaged), world)
        asked, file = _asked(args, target.asked), args.out or target.results
        results = evaluate(
            target.subject,
            asked.sets,
            world,
            device,
            batch_size=args.batch_size,
            asked=asked,
            source=target.source,
            out=file,
            force=args.force,
        )
    if world.is_main:
        print(world.table())
        for result in results:
            print(describe(result))
        print(f"results appended to {file}")
    return _all_succeeded(results)


def _follow(args: argparse.Namespace) -> int:
    from pipeline.data.storage import open_storage
    from pipeline.eval.follow import follow
    from pipeline.eval.sets import addresses
    from pipeline.eval.together import all_or_none

    cfg = config.load(args.target / "config.yaml")
    asked, out = _asked(args, cfg.eval), args.out or args.target / "eval.jsonl"
    with _world() as (world, device):
        sets = all_or_none(lambda: addresses(asked.sets, asked.root, open_storage(cfg.data)), world)
        results = follow(args.target, sets, world, device, batch_size=args.batch_size, asked=asked, out=out)
    return _all_succeeded(results)


def _table(args: argparse.Namespace) -> int:
    from pipeline.eval.results import read_results
    from pipeline.eval.table import table

    path = args.out or args.target / "eval.jsonl"
    results = read_results(path)
    if not results:
        raise DataError(f"{path} holds no results yet; unisphere eval {path.parent} makes some")
    settings = args.target / "config.yaml"
    groups = {**(config.load(settings).eval.groups if settings.is_file() else {}), **dict(map(_group, args.group))}
    print(table(results, groups))
    return 0


def _group(text: str) -> tuple[str, tuple[str, ...]]:
    name, equals, sets = text.partition("=")
    names = tuple(one for one in sets.split(",") if one)
    if not equals or not name or len(names) < 2:
        raise ConfigError(f"--group {text}: write NAME=REFERENCE,SET,... with the names of at least two sets")
    return name, names


def _asked(args: argparse.Namespace, settings: config.EvalConfig) -> config.EvalConfig:
    """What the run's configuration asks for, changed by the command line; all samples, unless that says otherwise."""
    given = {name: getattr(args, name) for name in ("root", "templates", "classnames", "captioned")}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    sets = tuple(args.sets or settings.sets)
    if not sets:
        raise ConfigError(f"nothing to evaluate: {args.target} names no evaluation sets (eval.sets); give --sets DIR ...")
    return dataclasses.replace(settings, **changes, sets=sets, max_samples=args.max_samples)


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


def _all_succeeded(results: Sequence[dict[str, Any]]) -> int:
    failed = [result["set"] for result in results if "error" in result]
    if failed:
        raise DataError(f"{len(failed)} of {len(results)} sets could not be evaluated: {', '.join(failed)}; see above")
    return 0


if __name__ == "__main__":
    sys.exit(main())
