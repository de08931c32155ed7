"""The command ``unisphere report RUN [RUN ...]``: one self-contained page, and the same in short as Markdown.

    unisphere report runs/x                         runs/x/report.html and report.md
    unisphere report runs/a runs/b --out compare    side by side, differences from the first run beyond noise marked

The page needs no network and no other file. ``--no-pictures`` leaves out what needs the model: the map and the findings.
"""

from __future__ import annotations

import argparse
import html
import os
import sys
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

    runs = [read_run(folder) for folder in args.runs]
    out: Path = args.out or args.runs[0]
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "report.html", page(runs, "" if args.no_pictures else pictures(runs)))
    _write(out / "report.md", markdown(runs))
    print(f"{out / 'report.html'}\n{out / 'report.md'}")
    return 0


def page(runs: Sequence[Run], gallery: str) -> str:
    """The whole page."""
    from pipeline.report import sections

    parts = [
        ("results", "Results", sections.results(runs)),
        ("training", "Training", sections.training(runs)),
        ("sphere", "On the sphere", gallery + sections.geometry(runs)),
        ("calibration", "Calibration", sections.calibration(runs)),
        ("origin", "Where the numbers come from", sections.provenance(runs)),
    ]
    shown = [part for part in parts if part[2]]
    title = html.escape(", ".join(run.name for run in runs))
    links = "".join(f'<li><a href="#{key}">{heading}</a></li>' for key, heading, _ in shown)
    body = "".join(f'<section id="{key}"><h2>{heading}</h2>{content}</section>' for key, heading, content in shown)
    style = (resources.files("pipeline.report") / "page.css").read_text(encoding="utf-8")
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'<meta charset="utf-8">{viewport}<title>{title}</title><style>{style}</style>'
    header = f'<header><h1>{title}</h1><nav aria-label="Sections"><ul>{links}</ul></nav></header>'
    main_part = f"<main>{sections.at_a_glance(runs)}{body}</main>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{header}{main_part}</body></html>\n'


def pictures(runs: Sequence[Run]) -> str:
    """Maps of the first and last checkpoint there are, and findings, of each run on its first set; needs the models."""
    from pipeline import dist
    from pipeline.checkpoint.find import complete_steps
    from pipeline.report.gallery import findings, look, sphere_map

    world, device, parts = dist.World(), dist.pick_device(0), []
    for run in runs:
        folders = complete_steps(run.folder / "checkpoints")
        sets = [folder for folder in run.settings.get("eval", {}).get("sets", []) if Path(folder).is_dir()]
        if not folders or not sets:
            print(f"{run.folder}: no checkpoint or no evaluation set here, so no pictures", file=sys.stderr)
            continue
        seen = [look(folders[step], sets[0], world, device) for step in sorted({min(folders), max(folders)})]
        if not seen[-1].data.captions:
            continue
        maps = "".join(sphere_map(one) for one in seen)
        heading = f"What captions find: {html.escape(seen[-1].title)}, {html.escape(Path(sets[0]).name)}"
        parts.append(f'<div class="maps">{maps}</div><h3>{heading}</h3>{findings(seen[-1])}')
    return "".join(parts)


def markdown(runs: Sequence[Run]) -> str:
    """The results as a table for a README or a pull request."""
    from pipeline.eval.follow import COLUMNS

    lines = ["| run | set | step | " + " | ".join(COLUMNS) + " | centroid distance |", "|" + "---|" * (len(COLUMNS) + 4)]
    for run in runs:
        for name in run.sets():
            result = run.newest(name) or {}
            values = [column(result) for column in COLUMNS.values()]
            cells = [f"{value:.2%}" if value is not None else "" for value in values]
            distance = result.get("geometry", {}).get("centroid_distance")
            lines.append(
                f"| {run.name} | {name} | {result.get('step')} | {' | '.join(cells)} | {'' if distance is None else distance} |"
            )
    return "\n".join(lines) + "\n"


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
