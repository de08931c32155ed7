"""Command line of ``unisphere shards build``: its options, and its report as a table for people."""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from data_prep.settings import DUPLICATES, FORMATS, MAX_NEAR_DISTANCE, RESIZE_MODES, SUBSAMPLINGS, Filters, Settings, Transform

if TYPE_CHECKING:
    from data_prep.commit import Report
    from data_prep.rows import Source

DESCRIPTION = (
    "Fields of a row: image (or url), caption (or captions), and optionally key, split, group, label; others are kept in "
    "the json member. Rows that cannot be used are counted by cause and listed in OUT/rejects.jsonl. An interrupted build "
    "continues when the same command is run again. SOURCE, OUT and every image may be local, or a URL that fsspec knows."
)
SOURCE = (
    ".csv, .tsv, .jsonl or .parquet table, folder of images with .txt beside them, .tar shards or a folder of them "
    "(img2dataset's too), or recipe:NAME"
)


def add_parser(commands: Any) -> None:
    """Add ``build`` to the subparsers object ``commands``."""
    build = commands.add_parser("build", help="write images with captions as shards", description=DESCRIPTION)
    build.add_argument("source", metavar="SOURCE", help=SOURCE)
    build.add_argument("out", metavar="OUT", help="folder or URL to write to")
    build.add_argument("--name", metavar="NAME", help="of the shards: NAME-000000.tar (default: after SOURCE)")
    build.add_argument("--shard-size", type=positive, default=1000, metavar="N", help="samples per shard (default 1000)")
    _add_image_options(build.add_argument_group("images (default: every image keeps its bytes)"))
    _add_filter_options(build.add_argument_group("filters: rows that fail one are rejected and counted"))
    _add_run_options(build.add_argument_group("the run"))
    build.set_defaults(run=run)


def _add_image_options(group: Any) -> None:
    group.add_argument("--resize", type=positive, metavar="PX", help="shortest side in pixels")
    group.add_argument(
        "--resize-mode",
        dest="mode",
        choices=RESIZE_MODES,
        default="larger",
        help="larger: only images that are larger (default); shortest: all; exact: square, cropped in the middle",
    )
    group.add_argument("--format", choices=FORMATS, default="keep", help="encode images that are not in this one")
    group.add_argument("--quality", type=positive, default=92, metavar="Q", help="of JPEG and WebP, 1 to 100 (default 92)")
    group.add_argument("--subsampling", choices=SUBSAMPLINGS, default="4:2:0", help="of JPEG's colours (default 4:2:0)")


def _add_filter_options(group: Any) -> None:
    group.add_argument("--min-side", type=positive, metavar="PX", help="shorter side in pixels")
    group.add_argument("--max-aspect", type=float, metavar="R", help="longer side / shorter side")
    group.add_argument("--min-pixels", type=positive, metavar="N", help="width x height")
    group.add_argument("--max-pixels", type=positive, metavar="N", help="width x height")
    group.add_argument("--min-chars", type=positive, metavar="N", help="characters of a caption")
    group.add_argument("--max-chars", type=positive, metavar="N", help="characters of a caption")
    group.add_argument("--keep-matching", metavar="REGEX", help=r"captions must match, anywhere; \p{Han} and the like work")
    group.add_argument("--drop-matching", metavar="REGEX", help="captions must not match")
    group.add_argument("--drop-placeholders", action="store_true", help='no "untitled", "IMG_0042.jpg", bare URLs, ...')
    group.add_argument(
        "--duplicates",
        choices=DUPLICATES,
        default="keep",
        help="exact: of images with equal bytes the first stays; near: of equal-looking ones too",
    )
    group.add_argument(
        "--near-distance",
        type=int,
        default=3,
        metavar="BITS",
        help=f"how far hashes of equal-looking images may differ, 0 to {MAX_NEAR_DISTANCE} of 64 bits (default 3)",
    )
    group.add_argument(
        "--exclude-hashes",
        action="append",
        default=[],
        metavar="FILE",
        help="keep these images out: hashes.jsonl of another build, or SHA-256 sums; may be given again",
    )


def _add_run_options(group: Any) -> None:
    group.add_argument("--workers", type=positive, default=1, metavar="N", help="processes that read images (default 1)")
    group.add_argument(
        "--part",
        type=part,
        metavar="I/N",
        help="for job arrays: pack the I-th of N parts (from 0); afterwards run once without --part",
    )
    group.add_argument("--download", metavar="DIR", help="fetch SOURCE's URLs into DIR with img2dataset first")
    group.add_argument("--retry-failed", action="store_true", help="read the rejected images of a finished build again")
    group.add_argument("--force", action="store_true", help="replace an earlier build in OUT")
    group.add_argument("--dry-run", action="store_true", help="check the rows, open no image, write nothing")
    group.add_argument("--json", action="store_true", help="print the report as JSON")


def positive(text: str) -> int:
    """An argument that must be a whole number from 1. Raises argparse's error otherwise."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def part(text: str) -> tuple[int, int]:
    """``I/N`` with 0 <= I < N. Raises argparse's error otherwise."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"must be I/N with I from 0 to N - 1, got {text!r}")
    return int(match[1]), int(match[2])


def settings_from(args: argparse.Namespace) -> Settings:
    """The settings that the options say. Raises DataError when they contradict each other."""
    transform = Transform(**{field.name: getattr(args, field.name) for field in fields(Transform)})
    filters = Filters(**{field.name: getattr(args, field.name) for field in fields(Filters)})
    return Settings(args.shard_size, transform, filters, args.duplicates, args.near_distance)


def run(args: argparse.Namespace) -> int:
    """Build, or with ``--dry-run`` only plan; print the report; 1 when no row was accepted."""
    from data_prep.build import build, survey

    settings = settings_from(args)
    source = _source(args)
    if args.dry_run:
        report = survey(source, settings)
    else:
        report = build(
            source,
            args.out,
            settings=settings,
            exclude=args.exclude_hashes,
            workers=args.workers,
            part=args.part,
            force=args.force,
            retry_failed=args.retry_failed,
        )
    print(json.dumps(report.as_dict(), indent=1) if args.json else table(report, args.out, dry_run=args.dry_run))
    if not report.accepted and not report.part:
        hint = "correct the source" if args.dry_run else f"see {args.out}/rejects.jsonl"
        print(f"error: none of {report.num_rows} rows could be used; {hint}", file=sys.stderr)
        return 1
    return 0


def _source(args: argparse.Namespace) -> Source:
    from data_prep.sources import open_source

    if args.download:
        from data_prep.download import download

        source = download(args.source, args.download, args.workers)
    else:
        source = open_source(args.source)
    return replace(source, name=_shard_prefix(args.name)) if args.name else source


def _shard_prefix(name: str) -> str:
    from pipeline.errors import DataError

    if not re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name):
        raise DataError(f"--name {name!r} cannot begin the name of a shard; use up to 60 letters, digits, '-', '_'")
    return name


def table(report: Report, out: str, *, dry_run: bool) -> str:
    """The report for people: what was written where, and what became of every row."""
    lines = [f"{out} was already complete, nothing to do (--force builds again)"] if report.already_complete else []
    if report.num_reused:
        lines.append(f"kept {report.num_reused} shards of an earlier run")
    for split, sizes in report.splits.items():
        size = "would be written, images not read" if dry_run else f"{sizes['bytes']:,} bytes"
        lines.append(
            f"{out.rstrip('/')}/{split}".rstrip("/") + f": {sizes['shards']} shards, {sizes['samples']:,} samples, {size}"
        )
    if report.part:
        lines.append(f"part {report.part} is packed; when all parts are, run the same command without --part")
    lines.append(f"{'input':<24}{report.num_rows:>12,}")
    lines.append(f"{'accepted':<24}{report.accepted:>12,}")
    lines.append(f"{'rejected':<24}{report.rejected.total():>12,}")
    for cause, count in sorted(report.rejected.items(), key=lambda item: (-item[1], item[0])):
        lines.append(f"  {cause:<22}{count:>12,}  e.g. {report.examples[cause][:160]}")
    for cause, count in sorted(report.left_out.items()):
        lines.append(f"  {cause:<22}{count:>12,}  left out of accepted rows")
    return "\n".join(lines)
