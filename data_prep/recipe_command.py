"""Command line of ``unisphere shards recipe``: lists the recipes, or makes one of them into shards."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from data_prep.build_command import positive


def add_parser(commands: Any) -> None:
    """Add ``recipe`` to the subparsers object ``commands``."""
    recipe = commands.add_parser("recipe", help="known public data sets: list them, or make one into shards")
    recipe.add_argument("name", metavar="NAME", nargs="?", help="which one; without it, they are listed")
    recipe.add_argument("out", metavar="OUT", nargs="?", help="folder to write")
    recipe.add_argument("--limit", type=positive, metavar="N", help="at most about N samples of each part")
    recipe.add_argument("--side", type=positive, default=64, metavar="PX", help="of images that are drawn (default 64)")
    recipe.add_argument("--workers", type=positive, default=1, metavar="N", help="processes (default 1)")
    recipe.add_argument("--shard-size", type=positive, default=1000, metavar="N", help="samples per shard (default 1000)")
    recipe.add_argument("--cache", type=Path, metavar="FOLDER", help="where downloads are kept (default: the user's cache)")
    recipe.add_argument("--cache-gb", type=float, default=4.0, metavar="GB", help="bound of that folder (default 4)")
    recipe.add_argument("--force", action="store_true", help="replace an earlier build in OUT")
    recipe.add_argument("--json", action="store_true", help="print the report as JSON")
    recipe.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List, or build."""
    from data_prep.recipes import RECIPES, Options, open_recipe
    from data_prep.recipes.packages import default_cache
    from pipeline.errors import ConfigError

    if args.name is None:
        for name, recipe in RECIPES.items():
            size = f"{recipe.download_mb} MB" if recipe.download_mb else "bundled"
            print(f"{name:<14}{size:>8}  {recipe.summary}  ({recipe.terms})")
        return 0
    if args.out is None:
        raise ConfigError(f"recipe {args.name} needs a folder to write: unisphere shards recipe {args.name} OUT")
    options = Options(args.cache or default_cache(), int(args.cache_gb * 1e9), args.limit, args.side, args.workers)
    return build_recipe(open_recipe(args.name, options), args)


def build_recipe(source: Any, args: argparse.Namespace) -> int:
    """Build the rows of ``source`` into ``args.out`` and print the report; 1 when no row was accepted."""
    from data_prep.build import build
    from data_prep.build_command import table

    report = build(source, args.out, shard_size=args.shard_size, workers=args.workers, force=args.force)
    print(json.dumps(report.as_dict(), indent=1) if args.json else table(report, args.out, dry_run=False))
    if not report.accepted:
        print(f"error: none of {report.num_rows} rows could be used; see {args.out}/rejects.jsonl", file=sys.stderr)
        return 1
    return 0
