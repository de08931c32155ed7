"""Command line of ``stats``, ``preview``, ``split``, ``reshard``, ``subset`` and ``mix``: looking at shards, and choosing."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.build_command import positive
from data_prep.check_commands import SHARDS_HELP, printable

if TYPE_CHECKING:
    from data_prep.reshard import Copied


BY_HELP = "what stays together: all captions, groups and images; group (else first caption) and image; or nothing but the key"


def add_parsers(commands: Any) -> None:
    """Add the six commands to the subparsers object ``commands``."""
    stats = commands.add_parser("stats", help="sizes, aspect, caption lengths in tokens, duplicates, frequent words")
    stats.add_argument("shards", metavar="SHARDS", nargs="+", help=SHARDS_HELP)
    stats.add_argument("--workers", type=positive, default=1, metavar="N", help="processes, one shard each (default 1)")
    stats.add_argument("--json", action="store_true", help="print everything as JSON, histograms too")
    stats.add_argument("--picture", type=Path, metavar="FILE", help="draw the distributions, as .png, .svg or .pdf")
    stats.set_defaults(run=run_stats)

    preview = commands.add_parser("preview", help="one HTML page of thumbnails with captions")
    preview.add_argument("shards", metavar="SHARDS", nargs="+", help=SHARDS_HELP)
    preview.add_argument("out", metavar="PAGE.html", type=Path, help="file to write")
    preview.add_argument("--count", type=positive, default=100, metavar="N", help="samples to show (default 100)")
    preview.add_argument("--seed", type=int, default=0, metavar="N", help="another seed shows other samples")
    preview.set_defaults(run=run_preview)

    split = commands.add_parser("split", help="parts that share no caption, group or image")
    _add_copying(split)
    split.add_argument(
        "--parts", default="train=0.9,val=0.05,test=0.05", metavar="P", help="default train=0.9,val=0.05,test=0.05"
    )
    split.add_argument("--by", choices=("content", "group", "key"), default="content", help=BY_HELP)
    split.add_argument("--near", type=int, metavar="BITS", help="also keep images together that look alike, within 0 to 7 bits")
    split.add_argument("--seed", type=int, default=0, metavar="N", help="another seed gives other parts")
    split.set_defaults(run=run_split)

    reshard = commands.add_parser("reshard", help="the same samples in shards of another size")
    _add_copying(reshard)
    reshard.add_argument(
        "--shard-bytes", type=positive, default=0, metavar="N", help="end a shard after this many bytes instead"
    )
    reshard.add_argument("--shuffle", type=int, metavar="SEED", help="put the samples in a random order")
    reshard.set_defaults(run=run_reshard)

    subset = commands.add_parser("subset", help="the samples that fulfil every condition")
    _add_copying(subset)
    subset.add_argument("--keys", type=Path, metavar="FILE", help="one key per line: these")
    subset.add_argument("--without-keys", type=Path, metavar="FILE", help="one key per line: not these")
    subset.add_argument("--key-match", metavar="REGEX", help="found in the key")
    subset.add_argument("--caption-match", metavar="REGEX", help="found in one of the captions")
    subset.add_argument("--where", action="append", default=[], metavar="COND", help="on a json field: width>=256; repeatable")
    subset.add_argument("--fraction", type=float, metavar="F", help="this part of all, by a hash of the key")
    subset.add_argument("--max-per-caption", type=positive, metavar="N", help="of equal first captions the first N")
    subset.add_argument("--count", type=positive, metavar="N", help="stop after N")
    subset.set_defaults(run=run_subset)

    mix = commands.add_parser("mix", help="one set out of several, in fixed proportions")
    mix.add_argument("sources", metavar="SHARDS=WEIGHT", nargs="+", help="as in shards/photos=0.7 shards/icons=0.3")
    _add_output(mix)
    mix.add_argument("--count", type=positive, metavar="N", help="samples to write; without it, until one source has no more")
    mix.add_argument("--repeat", action="store_true", help="begin a source again that has no more")
    mix.set_defaults(run=run_mix)


def _add_copying(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", metavar="SHARDS", nargs="+", help=SHARDS_HELP)
    _add_output(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="new folder or URL")
    parser.add_argument("--shard-size", type=positive, default=1000, metavar="N", help="samples per shard (default 1000)")
    parser.add_argument("--force", action="store_true", help="replace the shards in OUT")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run_stats(args: argparse.Namespace) -> int:
    """Print what shards hold, and draw it."""
    from data_prep.stats import DISTRIBUTIONS, draw, formats, stats

    report = stats(args.shards, workers=args.workers).as_dict()
    if args.picture:
        draw(report, args.picture)
    if args.json:
        print(json.dumps(report, indent=1))
        return 0
    print(
        f"{report['num_shards']:,} shards, {report['num_samples']:,} samples, {report['num_bytes']:,} bytes; {formats(report)}"
    )
    names = ("min", "p05", "median", "p95", "max", "mean")
    print(f"{'':<20}" + "".join(f"{name:>12}" for name in names))
    for name in DISTRIBUTIONS:
        print(f"{name:<20}" + "".join(f"{report[name].get(place, '-'):>12}" for place in names))
    without = f"{report['num_without_image']:,} without an image, {report['num_without_caption']:,} without a caption"
    print(f"{without}; {report['num_captions_over_77_tokens']:,} captions of more than 77 tokens")
    for what, found in report["duplicates"].items():
        print(f"{what.replace('_', ' ')}: {found['distinct']:,} distinct, {found['surplus']:,} repeat an earlier one", end=", ")
        print(f"the most frequent {found['most']:,} times")
    print(printable("frequent words: " + ", ".join(f"{word} {count:,}" for word, count in report["top_words"][:15])))
    print(printable("frequent captions: " + ", ".join(f"{text!r} {count:,}" for text, count in report["top_captions"][:8])))
    return 0


def run_preview(args: argparse.Namespace) -> int:
    """Write the page."""
    from data_prep.files import write_text
    from data_prep.preview import preview

    page = preview(args.shards, count=args.count, seed=args.seed)
    write_text(args.out, page)
    print(f"{args.out}: {len(page.encode()):,} bytes")
    return 0


def run_split(args: argparse.Namespace) -> int:
    """Write the parts and say how large they are."""
    from data_prep.split import split

    options = {"by": args.by, "near": args.near, "seed": args.seed, "shard_size": args.shard_size, "force": args.force}
    report = split(args.shards, args.out, _weights(args.parts.split(",")), **options)
    if args.json:
        print(json.dumps(asdict(report), indent=1))
        return 0
    print(
        f"{report.num_samples:,} samples in {report.num_components:,} components, the largest of {report.largest_component:,}"
    )
    for name, count in report.parts.items():
        print(f"  {name:<12}{count:>12,}  {count / max(1, report.num_samples):.2%}")
    return 0


def run_reshard(args: argparse.Namespace) -> int:
    """Write the same samples into other shards."""
    from data_prep.reshard import reshard

    size = 0 if args.shard_bytes else args.shard_size
    options = {"shard_size": size, "shard_bytes": args.shard_bytes, "shuffle_seed": args.shuffle, "force": args.force}
    return _print_copied(reshard(args.shards, args.out, **options), args)


def run_subset(args: argparse.Namespace) -> int:
    """Write the samples that were asked for."""
    from data_prep.subset import Conditions, Where, subset

    keep = Conditions(
        keys=_key_list(args.keys) if args.keys else None,
        without_keys=_key_list(args.without_keys) if args.without_keys else frozenset(),
        key_pattern=args.key_match,
        caption_pattern=args.caption_match,
        where=tuple(map(Where.parse, args.where)),
        fraction=args.fraction,
        max_per_caption=args.max_per_caption,
        count=args.count,
    )
    return _print_copied(subset(args.shards, args.out, keep, shard_size=args.shard_size, force=args.force), args)


def run_mix(args: argparse.Namespace) -> int:
    """Write the mixture."""
    from data_prep.mix import mix

    options = {"count": args.count, "repeat": args.repeat, "shard_size": args.shard_size, "force": args.force}
    return _print_copied(mix(_weights(args.sources), args.out, **options), args)


def _weights(texts: list[str]) -> dict[str, float]:
    from pipeline.errors import ConfigError

    weights: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            weights[name] = float(number)
        except ValueError as error:
            raise ConfigError(f"{text!r} must be a name, '=' and a number") from error
    return weights


def _key_list(path: Path) -> frozenset[str]:
    from pipeline.errors import ConfigError

    try:
        return frozenset(line for line in path.read_text(encoding="utf-8").splitlines() if line)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the list of keys {path} cannot be read: {error}") from error


def _print_copied(report: Copied, args: argparse.Namespace) -> int:
    if args.json:
        print(json.dumps(asdict(report), indent=1))
        return 0
    print(f"{args.out}: {report.num_shards:,} shards, {report.num_written:,} of {report.num_samples:,} samples that were read")
    if report.num_renamed:
        print(f"{report.num_renamed:,} keys were changed: too long for a tar header, or the shard had them already")
    for kind, count in sorted(report.left_out.items()):
        print(f"left out: {kind} ({count:,})", file=sys.stderr)
    return 0
