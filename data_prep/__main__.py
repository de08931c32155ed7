"""Command line of the shard tools: ``unisphere shards ...``, or ``python -m data_prep ...``.

Exit codes: 0 done; 1 the data is at fault (nothing accepted, bad tars); 2 the command line is; 3 to 9 as the error says
(``pipeline.errors``); 10 to 59 the gravest finding of ``verify`` (``data_prep.findings``); 130 interrupted. What was asked
for goes to stdout, progress and errors to stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from data_prep import build_command, check_commands, recipe_command, select_commands
from pipeline.cli import guarded

# The tools themselves are imported by the command that needs them, so that --help is immediate.


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code. Errors that a user can act on are printed, not raised."""
    args = _parser().parse_args(argv)
    return guarded(lambda: args.run(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="unisphere shards", description="Build, adopt and check WebDataset shards.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    build_command.add_parser(commands)
    check_commands.add_parsers(commands)
    select_commands.add_parsers(commands)
    recipe_command.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
