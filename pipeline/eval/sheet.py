"""One picture that says how a run went: its curves, and what its captions found among the images of a test set.

    data = embed_set(subject, evalset, World(), device, batch_size=256)
    write_summary(Path("runs/emoji"), evalset, data, Path("runs/emoji/summary.png"))

Half of the queries shown are hits (the right image came first), half are misses where the right image came second to
fifth, or later. Which ones is decided by ranks and margins alone, so the same weights give the same picture. Nothing
is drawn with pyplot: no window system, no global state.

Shapes: Q queries (captions), N images, K = 5 images shown per query.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.data.augment import decode, eval_view
from pipeline.data.evalset import MAX_IMAGE_PIXELS, EvalSet
from pipeline.errors import DataError
from pipeline.eval.embed import Embeddings
from pipeline.eval.retrieval import CUTOFFS, owner_ranks
from pipeline.eval.scores import to_grid
from pipeline.logs import METRICS, read_metrics

SHOWN = 5
COLUMNS, ROWS = 2, 6
THUMBNAIL_PIXELS = 96
DPI = 110
# Lengths in inches.
WIDTH, MARGIN, GUTTER = 15.0, 0.55, 0.7
CURVES_HEIGHT, ROW_HEIGHT, IMAGE_SIZE, IMAGE_GAP = 1.55, 0.98, 0.80, 0.08
INK, MUTED, FAINT, GREEN, RED, BLUE = "#1d1d1f", "#7c7c82", "#d9d9de", "#1f9d55", "#c8473a", "#2f62b5"


@dataclass(frozen=True)
class Found:
    """One caption, the images it found (best first), and the rank of the right one."""

    caption: str
    owner: int
    rank: int
    images: tuple[int, ...]


def choose(rank_Q: Sequence[int], margin_Q: Sequence[float], count: int) -> list[int]:
    """Which queries to show: hits from sure to narrow, then near misses, then far ones; spread evenly, no randomness.

    Args:
        rank_Q: rank of the right image, 1 = first.
        margin_Q: score of the right image minus that of the best other one.
        count: how many to choose; fewer come back only if there are fewer queries.
    """
    by_margin = sorted(range(len(rank_Q)), key=lambda q: (-margin_Q[q], q))
    groups = [
        [q for q in by_margin if rank_Q[q] == 1],
        [q for q in by_margin if 1 < rank_Q[q] <= SHOWN],
        [q for q in by_margin if rank_Q[q] > SHOWN],
    ]
    wanted = [count - count // 2, count // 2 - count // 4, count // 4]
    for _ in groups:  # what one group lacks, the others give
        missing = count - sum(min(w, len(group)) for w, group in zip(wanted, groups, strict=True))
        for i, group in enumerate(groups):
            extra = min(missing, max(0, len(group) - wanted[i]))
            wanted[i], missing = wanted[i] + extra, missing - extra
    return [q for group, n in zip(groups, wanted, strict=True) for q in _spread(group, n)]


def _spread(items: Sequence[int], n: int) -> list[int]:
    """``n`` items (or all) at even distances: the middles of n equal stretches."""
    n = min(n, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * n)] for i in range(n)]


def search(data: Embeddings, count: int = COLUMNS * ROWS) -> tuple[list[Found], dict[int, float]]:
    """What chosen captions find among all images, and text-to-image recall at 1, 5, 10 over all captions.

    Raises:
        DataError: the set has no captions.
    """
    if not data.captions:
        raise DataError("this evaluation set has no captions, so that there is nothing to search with")
    image_Nd, text_Qd = to_grid(data.image_Nd), to_grid(data.text_Md)
    owner_N = torch.arange(len(image_Nd), device=image_Nd.device)
    rank_Q = owner_ranks(text_Qd, data.owner_M, image_Nd, owner_N)
    # The margin of a query needs only the best two images: the right one's own score is known without a search.
    margins: list[float] = []
    for start in range(0, len(text_Qd), 1024):
        owner_q = data.owner_M[start : start + 1024]
        score_qN = text_Qd[start : start + 1024] @ image_Nd.T
        own_q = score_qN.gather(1, owner_q[:, None])[:, 0]
        margins += (own_q - score_qN.scatter(1, owner_q[:, None], -torch.inf).amax(dim=1)).tolist()
    ranks: list[int] = rank_Q.tolist()
    found = []
    for q in choose(ranks, margins, count):
        owner = int(data.owner_M[q])
        score_N = (image_Nd @ text_Qd[q]).tolist()
        order = sorted(range(len(score_N)), key=lambda i: (-score_N[i], i == owner, i))  # ties: the right one last
        found.append(Found(data.captions[q], owner, ranks[q], tuple(order[:SHOWN])))
    return found, {k: sum(rank <= k for rank in ranks) / len(ranks) for k in CUTOFFS}


def retrieval_sheet(figure: Any, evalset: EvalSet, found: Sequence[Found], top: float) -> None:
    """Draw the queries into ``figure`` (matplotlib), column by column, downwards from ``top`` inches."""
    column_width = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GUTTER) / COLUMNS
    text_width = column_width - SHOWN * (IMAGE_SIZE + IMAGE_GAP) + IMAGE_GAP
    for place, query in enumerate(found):
        left = MARGIN + (place // ROWS) * (column_width + GUTTER)
        bottom = top - (place % ROWS) * ROW_HEIGHT - IMAGE_SIZE
        middle = bottom + IMAGE_SIZE / 2
        first = query.rank == 1
        verdict = "found first" if first else f"right one is number {query.rank:,}"
        _text(figure, left, middle + 0.02, _wrapped(query.caption, text_width - 0.2), size=11.5, va="bottom")
        _text(figure, left, middle - 0.08, verdict, size=8.5, color=GREEN if first else RED, va="top")
        for i, image in enumerate(query.images):
            at = left + text_width + i * (IMAGE_SIZE + IMAGE_GAP)
            axes = _axes(figure, at, bottom, IMAGE_SIZE, IMAGE_SIZE)
            axes.imshow(_thumbnail(evalset, image), interpolation="lanczos")
            axes.set(xticks=[], yticks=[])
            right = image == query.owner
            for spine in axes.spines.values():
                spine.set(color=GREEN if right else FAINT, linewidth=2.6 if right else 0.8)


def loss_curves(figure: Any, metrics: Path, bottom: float) -> None:
    """Draw loss, logit scale, learning rate and gradient norm over steps, with a mark where the run was resumed.

    Raises:
        DataError: ``metrics`` is missing or holds no steps.
    """
    log = read_metrics(metrics) if metrics.is_file() else []
    records = [record for record in log if "event" not in record and "step" in record]
    resumed = [int(record.get("step", 0)) for record in log if record.get("event") == "resume"]
    if not records:
        raise DataError(f"{metrics} is missing or holds no training steps; there are no curves to draw")
    first_step, last_step = min(r["step"] for r in records), max(r["step"] for r in records)
    panels = [("loss", "loss"), ("logit_scale", "logit scale"), ("lr", "learning rate"), ("grad_norm", "gradient norm")]
    width = (WIDTH - 2 * MARGIN - 3 * GUTTER) / 4
    for i, (key, title) in enumerate(panels):
        axes = _axes(figure, MARGIN + i * (width + GUTTER), bottom, width, CURVES_HEIGHT)
        points = [(record["step"], record[key]) for record in records if isinstance(record.get(key), (int, float))]
        points = [(step, value) for step, value in points if math.isfinite(value)]
        for step in resumed:
            axes.axvline(step, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1)
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, color=BLUE, linewidth=1.6, zorder=2, solid_capstyle="round")
            axes.set_title(title, loc="left", fontsize=10, color=INK, pad=7)
            axes.set_title(f"{values[-1]:.4g}", loc="right", fontsize=10, color=BLUE, pad=7)
        axes.set_xlim(first_step, max(last_step, first_step + 1))
        axes.tick_params(labelsize=8, colors=MUTED, length=0, pad=4)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.locator_params(axis="both", nbins=4)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_facecolor("none")
        for name, spine in axes.spines.items():
            spine.set_visible(name == "bottom")
            spine.set_color(FAINT)
    note = "over training steps; the last value is above each curve"
    if resumed:
        note += f"; dashed: resumed from the checkpoint at step {', '.join(f'{step:,}' for step in resumed)}"
    _text(figure, MARGIN, bottom - 0.45, note, size=8.5, color=MUTED)


def write_summary(run_dir: Path, evalset: EvalSet, data: Embeddings, out: Path) -> None:
    """Write the picture of a run as PNG.

    Args:
        run_dir: the run's folder; its ``metrics.jsonl`` gives the curves, its name the title.
        evalset: a set with captions.
        data: its embeddings under the run's weights.
        out: the file to write; replaced if it exists.

    Raises:
        DataError: no captions, no metrics, or an image that cannot be read.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found, recall = search(data)
    # From the bottom up: the sheet, its heading, the curves, the title.
    sheet_top = MARGIN + ROW_HEIGHT * min(ROWS, len(found)) - (ROW_HEIGHT - IMAGE_SIZE)
    heading, curves = sheet_top + 0.33, sheet_top + 1.55
    height = curves + CURVES_HEIGHT + 1.15
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    _text(figure, MARGIN, height - 0.65, run_dir.name, size=19, weight="bold")
    loss_curves(figure, run_dir / METRICS, curves)
    _text(figure, MARGIN, heading, f"What captions find in {evalset.name}", size=13.5, weight="bold")
    recalls = "".join(f"      recall@{k}  {value:.1%}" for k, value in recall.items())
    scope = f"{len(data.captions):,} captions search {len(data.keys):,} images{recalls}"
    _text(figure, WIDTH - MARGIN, heading, scope, size=10, color=MUTED, ha="right")
    retrieval_sheet(figure, evalset, found, sheet_top)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=DPI)


def _axes(figure: Any, left: float, bottom: float, width: float, height: float) -> Any:
    """Axes placed in inches."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, bottom / h, width / w, height / h))


def _text(figure: Any, x: float, y: float, text: str, **style: Any) -> None:
    """Text placed in inches; dollar signs are text, not mathematics."""
    w, h = figure.get_size_inches()
    figure.text(x / w, y / h, text, **{"color": INK, "parse_math": False, **style})


def _wrapped(text: str, width_inches: float) -> str:
    """At most two lines of about this width at 11.5 points, cut with an ellipsis."""
    import textwrap

    return "\n".join(textwrap.wrap(text, max(8, int(width_inches / 0.097)), max_lines=2, placeholder=" …"))


def _thumbnail(evalset: EvalSet, index: int) -> npt.NDArray[np.uint8]:
    """The image [H, W, 3] as the evaluation view shows it, larger than the model sees it."""
    image = decode(evalset.shards.read(index).image, MAX_IMAGE_PIXELS)
    return eval_view(image, THUMBNAIL_PIXELS).transpose(1, 2, 0)
