"""The command ``unisphere report RUN [RUN ...]``: one self-contained page, and the same in short as Markdown.

    unisphere report runs/x                         runs/x/report.html and report.md
    unisphere report runs/a runs/b --out compare    side by side, differences from the first run beyond noise marked

The page needs no network and no other file. ``--no-pictures`` leaves out what needs the model: the map and the findings.
"""

from __future__ import annotations

import argparse
import html
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.report.record import Run


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; returns the exit code."""
    parser = argparse.ArgumentParser(prog="unisphere report", description="A page about one or several runs.")
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folders of runs; the first is what others are compared with"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where report.html and report.md go (default: the first run's folder)"
    )
    parser.add_argument("--no-pictures", action="store_true", help="leave out what needs the model and the test set")
    args = parser.parse_args(argv)
    from pipeline.report.record import read_run
    from pipeline.report.summary import markdown

    runs = [read_run(folder) for folder in args.runs]
    out: Path = args.out or args.runs[0]
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "report.html", page(runs, "" if args.no_pictures else _pictures(runs)))
    _write(out / "report.md", markdown(runs))
    print(f"{out / 'report.html'}\n{out / 'report.md'}")
    return 0


def page(runs: Sequence[Run], gallery: str) -> str:
    """The whole page.

    Args:
        runs: one or several; the first is what others are compared with.
        gallery: pictures of what the models see, from ``show.pictures``, or nothing.
    """
    from pipeline.report import card, protocols, results, sphere, training

    parts = [
        ("glance", "At a glance", results.at_a_glance(runs)),
        ("card", "Run card", card.card(runs)),
        ("results", "Results", results.results(runs)),
        ("training", "Training", training.training(runs)),
        ("sphere", "On the sphere", gallery + sphere.geometry(runs)),
        ("detail", "Behind the rates", protocols.protocols(runs)),
        ("calibration", "Calibration", sphere.calibration(runs)),
    ]
    shown = [part for part in parts if part[2]]
    title = html.escape(", ".join(run.name for run in runs))
    links = "".join(f'<li><a href="#{key}">{heading}</a></li>' for key, heading, _ in shown)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-name"><h2 id="{key}-name">{heading}</h2>{content}</section>'
        for key, heading, content in shown
    )
    style = (resources.files("pipeline.report") / "page.css").read_text(encoding="utf-8")
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'<meta charset="utf-8">{viewport}<title>{title}</title><style>{style}</style>'
    skip = '<a class="skip" href="#main">Skip to the content</a>'
    header = f'<header><h1>{title}</h1></header><nav aria-label="Sections"><ul>{links}</ul></nav>'
    main_part = f'<main id="main" tabindex="-1">{body}</main>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{skip}{header}{main_part}</body></html>\n'


def _pictures(runs: Sequence[Run]) -> str:
    from pipeline.report.show import pictures

    return pictures(runs)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise PipelineError(f"cannot write {path}: {error}; choose another --out") from error


if __name__ == "__main__":
    from pipeline.cli import guarded

    raise SystemExit(guarded(main))
