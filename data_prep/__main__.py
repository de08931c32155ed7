"""Command line of the shard tools: ``unisphere shards ...``, or ``python -m data_prep ...``.

Exit codes: 0 done; 1 the data is at fault (nothing accepted, bad tars, findings); 2 the command line is; 3 and above
as the error says (``pipeline.errors``); 130 interrupted. What was asked for goes to stdout, progress and errors to
stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import guarded

if TYPE_CHECKING:
    from data_prep.build import Report

# The tools themselves are imported by the command that needs them, so that --help is immediate.


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code. Errors that a user can act on are printed, not raised."""
    args = _parser().parse_args(argv)
    return guarded(lambda: args.run(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="unisphere shards", description="Build, adopt and check WebDataset shards.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    build = commands.add_parser("build", help="write images with captions as shards", description=_BUILD)
    build.add_argument("source", metavar="SOURCE", help=".jsonl, .csv or .tsv file, folder of images, or recipe:emoji")
    build.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    build.add_argument("--shard-size", type=_positive, default=1000, metavar="N", help="samples per shard (default 1000)")
    build.add_argument("--workers", type=_positive, default=1, metavar="N", help="processes that read images (default 1)")
    build.add_argument("--force", action="store_true", help="replace an earlier build in OUT")
    build.add_argument("--dry-run", action="store_true", help="check the rows, open no image, write nothing")
    build.add_argument("--json", action="store_true", help="print the report as JSON")
    build.set_defaults(run=_build)

    index = commands.add_parser("index", help="adopt existing tars: write their index and manifest")
    index.add_argument("paths", metavar="FOLDER_OR_TAR", nargs="+", type=Path)
    index.add_argument("--skip-bad", action="store_true", help="index the good tars although there are bad ones")
    index.set_defaults(run=_index)

    verify = commands.add_parser("verify", help="compare shards with their manifest and read every sample")
    verify.add_argument("folder", metavar="FOLDER", type=Path)
    verify.set_defaults(run=_verify)

    ls = commands.add_parser("ls", help="list shards, samples and bytes")
    ls.add_argument("folder", metavar="FOLDER", type=Path)
    ls.set_defaults(run=_ls)
    return parser


_BUILD = (
    "Fields of a row: image, caption (or captions), and optionally key, split, group, label; others are kept in the "
    "json member. Rows that cannot be used are counted by cause and listed in OUT/rejects.jsonl. An interrupted build "
    "continues when the same command is run again."
)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _build(args: argparse.Namespace) -> int:
    from data_prep.build import build, survey
    from data_prep.sources import open_source

    source = open_source(args.source)
    if args.dry_run:
        report = survey(source, args.shard_size)
    else:
        report = build(source, args.out, shard_size=args.shard_size, workers=args.workers, force=args.force)
    print(json.dumps(report.as_dict(), indent=1) if args.json else _table(report, args.out, dry_run=args.dry_run))
    if not report.accepted:
        hint = "correct the source" if args.dry_run else f"see {args.out / 'rejects.jsonl'}"
        print(f"error: none of {report.num_rows} rows could be used; {hint}", file=sys.stderr)
        return 1
    return 0


def _table(report: Report, out: Path, *, dry_run: bool) -> str:
    """The report for people: what was written where, and what became of every row."""
    lines = [f"{out} was already complete, nothing to do (--force builds again)"] if report.already_complete else []
    if report.num_reused:
        lines.append(f"kept {report.num_reused} shards of an interrupted build")
    for split, sizes in report.splits.items():
        size = "would be written, images not read" if dry_run else f"{sizes['bytes']:,} bytes"
        lines.append(f"{out / split}: {sizes['shards']} shards, {sizes['samples']:,} samples, {size}")
    lines.append(f"{'input':<24}{report.num_rows:>12,}")
    lines.append(f"{'accepted':<24}{report.accepted:>12,}")
    lines.append(f"{'rejected':<24}{report.rejected.total():>12,}")
    for cause, count in sorted(report.rejected.items(), key=lambda item: (-item[1], item[0])):
        lines.append(f"  {cause:<22}{count:>12,}  e.g. {report.examples[cause][:160]}")
    return "\n".join(lines)


def _index(args: argparse.Namespace) -> int:
    from data_prep.index import adopt

    result = adopt(args.paths, skip_bad=args.skip_bad)
    for message in result.bad:
        print(f"error: {message}", file=sys.stderr)
    done = "indexed" if result.written else "not indexed, because there are bad ones (--skip-bad indexes the good ones)"
    print(f"{result.num_shards} good tars with {result.num_samples:,} samples: {done}" if result.num_shards else "no good tar")
    print(f"{len(result.bad)} bad tars; {result.num_incomplete:,} samples without an image or a text")
    return 0 if result.written else 1


def _verify(args: argparse.Namespace) -> int:
    from data_prep.verify import verify

    findings = verify(args.folder)
    for kind, count in sorted(findings.counts.items()):
        print(f"{kind:<20}{count:>10,}")
        for example in findings.examples[kind]:
            print(f"    {example[:300]}")
    verdict = f"{findings.counts.total():,} findings" if findings.counts else "all good"
    print(f"{findings.num_shards} shards, {findings.num_samples:,} samples: {verdict}")
    return 1 if findings.counts else 0


def _ls(args: argparse.Namespace) -> int:
    from data_prep.manifest import listing

    print(listing(args.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
