"""Command line of ``index``, ``verify``, ``repair``, ``ls`` and ``cat``: adopting, checking and opening shards."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from data_prep.build_command import positive

SHARDS_HELP = "folders, .tar files, URLs (s3://, https://, ...), or names with braces"

VERIFY_EPILOG = (
    "Exit code: 0 for nothing found; 10 to 59 for the gravest kind found, see `unisphere shards verify --kinds`; below 10 the "
    "command could not do its work."
)


def add_parsers(commands: Any) -> None:
    """Add the five commands to the subparsers object ``commands``."""
    index = commands.add_parser("index", help="adopt existing tars: write their index and manifest")
    index.add_argument("shards", metavar="SHARDS", nargs="+", help=SHARDS_HELP)
    index.add_argument("--skip-bad", action="store_true", help="index the good tars although there are bad ones")
    index.add_argument("--out", type=Path, metavar="FOLDER", help="write there, for shards in a place that is read-only")
    _add_workers_and_json(index)
    index.set_defaults(run=run_index)

    verify = commands.add_parser("verify", help="check shards and every sample in them", epilog=VERIFY_EPILOG)
    verify.add_argument("shards", metavar="SHARDS", nargs="*", help=SHARDS_HELP)
    verify.add_argument("--allow", action="append", default=[], metavar="EXT", help="extension that is no finding; repeatable")
    verify.add_argument("--no-decode", action="store_true", help="do not decode the images: sizes, hashes and members only")
    verify.add_argument("--kinds", action="store_true", help="print every kind of finding with its exit code, and end")
    _add_workers_and_json(verify)
    verify.set_defaults(run=run_verify)

    repair = commands.add_parser("repair", help="write a clean copy of damaged shards, and list what was left out")
    repair.add_argument("shards", metavar="SHARDS", nargs="+", help=SHARDS_HELP)
    repair.add_argument("out", metavar="OUT", help="new folder or URL")
    repair.add_argument("--allow", action="append", default=[], metavar="EXT", help="further extension to keep; repeatable")
    repair.add_argument("--no-decode", action="store_true", help="do not decode the images")
    repair.add_argument("--force", action="store_true", help="replace the shards in OUT")
    repair.add_argument("--json", action="store_true", help="print the result as JSON")
    repair.set_defaults(run=run_repair)

    ls = commands.add_parser("ls", help="list shards, or the samples of tars")
    ls.add_argument("shards", metavar="SHARDS", nargs="+", help=SHARDS_HELP)
    ls.add_argument("--samples", "-s", action="store_true", help="list samples: key, bytes, width x height, members")
    ls.add_argument("--json", action="store_true", help="one JSON object per line")
    ls.set_defaults(run=run_ls)

    cat = commands.add_parser("cat", help="write one sample or one member to stdout")
    cat.add_argument("shards", metavar="SHARDS", nargs="+", help=SHARDS_HELP)
    cat.add_argument("what", metavar="KEY[.EXT]", help="with an extension that member's bytes, without it the sample as JSON")
    cat.add_argument("--tar", action="store_true", help="write the sample as a tar of its own")
    cat.add_argument("--force", action="store_true", help="write binary data although stdout is a terminal")
    cat.set_defaults(run=run_cat)


def _add_workers_and_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="processes, one shard each (default 1)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run_index(args: argparse.Namespace) -> int:
    """Adopt tars; 1 when there are bad ones and nothing was written."""
    from dataclasses import asdict

    from data_prep.index import adopt

    result = adopt(args.shards, skip_bad=args.skip_bad, workers=args.workers, out=args.out)
    if args.json:
        print(json.dumps(asdict(result), indent=1))
        return 0 if result.written else 1
    for message in result.bad:
        print(f"error: {message}", file=sys.stderr)
    done = "indexed" if result.written else "not indexed, because there are bad ones (--skip-bad indexes the good ones)"
    print(f"{result.num_shards} good tars with {result.num_samples:,} samples: {done}" if result.num_shards else "no good tar")
    print(f"{len(result.bad)} bad tars; {result.num_incomplete:,} samples without an image or a text")
    return 0 if result.written else 1


def run_verify(args: argparse.Namespace) -> int:
    """Check shards; the exit code is that of the gravest kind found."""
    from data_prep.findings import KINDS
    from data_prep.lint import Rules
    from data_prep.verify import verify
    from pipeline.errors import ConfigError

    if args.kinds:
        print("\n".join(f"{kind.exit_code:>3}  {name:<26}{kind.meaning}" for name, kind in KINDS.items()))
        return 0
    if not args.shards:
        raise ConfigError("verify needs SHARDS: folders, .tar files or URLs")
    rules = Rules(frozenset(name.lower().lstrip(".") for name in args.allow), decode=not args.no_decode)
    findings = verify(args.shards, workers=args.workers, rules=rules)
    report = findings.as_dict()
    if args.json:
        print(json.dumps(report, indent=1))
        return findings.exit_code
    for kind, found in report["findings"].items():
        print(f"{kind:<26}{found['count']:>10,}")
        for example in found["examples"]:
            print(f"    {printable(example[:300])}")
    verdict = f"{findings.counts.total():,} findings" if findings.counts else "all good"
    print(f"{findings.num_shards} shards, {findings.num_samples:,} samples: {verdict}")
    return findings.exit_code


def run_repair(args: argparse.Namespace) -> int:
    """Write a clean copy and say what was left out."""
    from data_prep.lint import Rules
    from data_prep.repair import repair

    rules = Rules(frozenset(name.lower().lstrip(".") for name in args.allow), decode=not args.no_decode)
    report = repair(args.shards, args.out, rules=rules, force=args.force)
    if args.json:
        print(json.dumps(report.as_dict(), indent=1))
        return 0
    counts = f"{report.num_kept:,} kept, {report.num_dropped:,} dropped"
    print(f"{report.num_shards} shards, {report.num_samples:,} samples: {counts}")
    for cause, count in sorted(report.causes.items(), key=lambda item: (-item[1], item[0])):
        print(f"  {cause:<26}{count:>10,}")
    print(f"{args.out}/rejects.jsonl lists each" if report.causes else "nothing was wrong")
    return 0


def run_ls(args: argparse.Namespace) -> int:
    """List shards with their counts, or samples."""
    from data_prep.listing import sample_rows, shard_rows, table

    if args.json:
        for row in sample_rows(args.shards) if args.samples else shard_rows(args.shards):
            print(json.dumps(row))
    elif args.samples:
        for row in sample_rows(args.shards):
            size = f"{row['width']}x{row['height']}" if "width" in row else "-"
            print(printable(f"{row['bytes']:>12,}  {size:>11}  {row['key']}  {' '.join(row['members'])}"))
    else:
        print(printable(table(list(shard_rows(args.shards)))))
    return 0


def run_cat(args: argparse.Namespace) -> int:
    """Write one sample or one member. Text for a terminal is shown without its control characters."""
    from data_prep.listing import as_json, as_tar, find_sample
    from pipeline.errors import DataError

    sample, extension = find_sample(args.shards, args.what)
    if extension is None and not args.tar:
        print(as_json(sample))
        return 0
    data = as_tar(sample) if args.tar else sample.members[extension or ""]
    if not sys.stdout.isatty() or args.force:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return 0
    try:
        print(printable(data.decode("utf-8")))
    except UnicodeDecodeError as error:
        raise DataError("this member is no text; send it to a file or a viewer, or pass --force") from error
    return 0


def printable(text: str) -> str:
    """``text`` without what could steer a terminal: control characters but line ends and tabs become ``?``."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in text)
