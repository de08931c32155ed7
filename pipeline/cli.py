"""The ``unisphere`` command: a table of subcommands, each loaded only when it is named.

    unisphere --help                 one line per subcommand, without importing any of them
    unisphere train configs/x.yaml   imports pipeline.train and calls its main(["configs/x.yaml"])
    unisphere trian                  error: unknown command 'trian'; did you mean 'train'?

Exit codes: 0 done, 1 or more as ``PipelineError.exit_code`` says, 2 for a command line that cannot be read, 130 for
Ctrl-C. A new subcommand is one line in ``COMMANDS``; its module has ``main(argv) -> int``, and builds its argument parser
before it imports anything heavy.
"""

from __future__ import annotations

import difflib
import importlib
import os
import select
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import NamedTuple

from pipeline.errors import PipelineError


class Command(NamedTuple):
    """Where a subcommand lives, and the line that ``--help`` shows for it."""

    module: str
    summary: str


COMMANDS = {
    "shards": Command("data_prep.__main__", "build, index, verify and look into WebDataset shards"),
    "train": Command("pipeline.train", "pretrain a model from a YAML file"),
    "eval": Command("pipeline.eval.run", "zero-shot classification and retrieval of a run, checkpoint or export"),
    "embed": Command("pipeline.vectors", "shards to embedding files that faiss and clip-retrieval read"),
    "search": Command("pipeline.search", "find images by text among embedded shards"),
    "report": Command("pipeline.report.main", "a page about one or several runs: curves, results, geometry, pictures"),
    "export": Command("pipeline.export", "write a trained model for open_clip, transformers and onnxruntime"),
    "weights": Command("pipeline.weights", "make files of weights to start a run from"),
    "bench-loader": Command("pipeline.bench_loader", "measure how fast a core makes a run's batches, and if that is enough"),
    "launch": Command("slurm.launch", "start a training on several processes here, or on a Slurm cluster"),
    "doctor": Command("pipeline.doctor", "check this machine, its packages, the ranks and the data of a run"),
    "smoke": Command("pipeline.smoke", "train, evaluate and export a tiny model on the CPU"),
}


def usage() -> str:
    """The text of ``unisphere --help``."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name.ljust(width)}  {command.summary}" for name, command in COMMANDS.items()]
    head = "usage: unisphere COMMAND [ARGUMENT ...]   (unisphere COMMAND --help explains one)"
    return "\n".join([head, "", *rows, "", "  --version  print the version"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code; ``argv`` defaults to the process's arguments."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        print(usage(), file=sys.stderr)
        return 2
    name, rest = arguments[0], arguments[1:]
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"unisphere {_version()}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"the commands are: {', '.join(COMMANDS)}"
        print(f"error: unknown command {name!r}; {hint}", file=sys.stderr)
        return 2
    return guarded(lambda: importlib.import_module(COMMANDS[name].module).main(rest))


def guarded(command: Callable[[], int]) -> int:
    """Call ``command`` and return its exit code, turning what a user can act on into one line on stderr.

    Every entry point ends in it, so ``python -m pipeline.train`` and ``unisphere train`` fail alike. Other exceptions
    are defects of the project and keep their traceback.
    """
    try:
        code = command()
        sys.stdout.flush()
        return code
    except PipelineError as error:
        print(f"{error.label}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not _nobody_reads(sys.stdout.fileno()):
            raise  # some other connection
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or flushing at exit would fail again
        return 0


def _nobody_reads(descriptor: int) -> bool:
    """Whether the other end of a pipe is closed: ``head``, for example, has seen enough, which is no error."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _version() -> str:
    try:
        return metadata.version("unisphere")
    except metadata.PackageNotFoundError:
        return "(a checkout that is not installed)"
