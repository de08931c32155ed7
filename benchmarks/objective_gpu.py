"""The loss on one GPU: time, peak memory and achieved TFLOP/s beside the usual formula, and how far off bf16 gradients are.

    make bench-gpu                                           # b = 4096 rows against 32768 columns, d = 512, as one of 8 ranks
    python benchmarks/objective_gpu.py --rows 262144 --ranks 1
    python benchmarks/objective_gpu.py --device cpu --rows 256 --ranks 2 --width 64 --tiles 64      # does the script work?

One process plays one rank of many: its rows are real, the other ranks' columns are copies of them under other group ids, and
collectives are answered on the spot, so what is measured is one rank's computation without the network. Times are medians of
device events. TFLOP/s count the matrix products that a method needs: four for each pair of domains here (cosines twice, two
gradients), six for the usual formula, which makes a matrix for each direction.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.objective import ALL_TERMS
from pipeline.config import ObjectiveConfig
from pipeline.features import Features
from pipeline.losses import Objective, gather, reference

PAIRS = {"InfoNCE": 1, "all terms": 6}
"""Pairs of domains whose cosines the terms need; image-image, image-text and so on of two views and one caption."""
Step = Callable[[], None]


def main() -> None:
    """Print the two tables, or say that there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096, help="this rank's rows, b")
    parser.add_argument("--ranks", type=int, default=8, help="W; there are b W columns")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--scale", type=float, default=50.0)
    parser.add_argument("--tiles", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here that torch can use: run this on a machine with a CUDA device")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    print(f"{name}, torch {torch.__version__}: {args.rows} rows, {args.rows * args.ranks} columns, d = {args.width}\n")
    gradient_errors(device)
    pretend_ranks(args.ranks, args.rows)
    print(f"\n{'':40} {'ms':>9} {'TFLOP/s':>8} {'peak MB':>8}")
    unit = 2 * args.rows * args.rows * args.ranks * args.width / 1e12
    rows = {view: unit_rows(args.rows, args.width, device) for view in ("image", "image_2", "text")}
    print_row("InfoNCE: the usual formula, autocast", usual(rows, args), 6 * unit, args.rounds, device)
    for label, terms in (("InfoNCE", {"clip": {}}), ("all terms", ALL_TERMS)):
        for dtype in ("fp32", "bf16"):
            for tile in args.tiles:
                title = f"{label}: this project, {dtype}, tile {tile}"
                print_row(title, ours(terms, rows, args, dtype, tile), 4 * PAIRS[label] * unit, args.rounds, device)


def print_row(title: str, step: Step, tera_flop: float, rounds: int, device: torch.device) -> None:
    """One line of the table; a method that does not fit says so."""
    try:
        seconds, mb = measure(step, rounds, device)
    except torch.cuda.OutOfMemoryError:
        print(f"{title:40} out of memory")
        return
    print(f"{title:40} {seconds * 1000:9.2f} {tera_flop / seconds:8.1f} {mb:8.0f}")


def measure(step: Step, rounds: int, device: torch.device) -> tuple[float, float]:
    """Median seconds of a step, and how much memory it needs on top of what lies there already, in MB."""
    if device.type != "cuda":
        step()
        start = time.process_time()
        step()
        return time.process_time() - start, float("nan")
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(rounds):
        start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start_event.record()
        step()
        end_event.record()
        torch.cuda.synchronize()
        times.append(start_event.elapsed_time(end_event) / 1000)
    return statistics.median(times), (torch.cuda.max_memory_allocated() - before) / 2**20


def unit_rows(rows: int, width: int, device: torch.device) -> Tensor:
    """Random unit rows [b, d] that want a gradient."""
    return F.normalize(torch.randn(rows, width, device=device), dim=1).requires_grad_()


def pretend_ranks(size: int, rows: int) -> None:
    """From now on this process is rank 0 of ``size``, all of which hold the same embeddings of different samples."""
    if size == 1:
        return
    starts = torch.arange(size).repeat_interleave(rows) * rows
    gather.world_size = lambda: size
    gather.local_count = lambda count: count // size
    gather.gather_rows = lambda own: own.repeat(size, *[1] * (own.ndim - 1))
    gather.gather_ids = lambda own: gather.gather_rows(own) + starts.to(own.device).view(-1, *[1] * (own.ndim - 1))
    gather.scatter_sum = lambda columns: columns[:rows] * size
    gather.reduce_sum = lambda values: values * size


def usual(rows: dict[str, Tensor], args: argparse.Namespace) -> Step:
    """Both directions' cross-entropies, as open_clip's local loss with gathered gradients computes them under autocast."""
    image, text = rows["image"], rows["text"]
    scale = torch.tensor(args.scale, device=image.device, requires_grad=True)
    target = torch.arange(len(image), device=image.device)

    def step() -> None:
        with torch.autocast(image.device.type, torch.bfloat16):
            logits = [scale * own @ gather.gather_rows(other).T for own, other in ((image, text), (text, image))]
            loss = sum(F.cross_entropy(logits_bB, target) for logits_bB in logits) / 2
        loss.backward()  # type: ignore[union-attr]

    return step


def ours(terms: dict, rows: dict[str, Tensor], args: argparse.Namespace, dtype: str, tile: int) -> Step:  # type: ignore[type-arg]
    """The same by the tile engine, with embeddings on the wire in the precision of its products."""
    cfg = ObjectiveConfig(terms=terms, tile=tile, gather_dtype=dtype, product_dtype=dtype)  # type: ignore[arg-type]
    objective = Objective(cfg, seed=0, total_steps=1)
    image = rows["image"]
    numbers = {"scale": args.scale, **{name: scalar.init for name, scalar in objective.scalars().items()}}
    scalars = {name: torch.tensor(value, device=image.device, requires_grad=True) for name, value in numbers.items()}
    used = rows if len(terms) > 1 else {name: rows[name] for name in ("image", "text")}
    features = Features(used, scalars, torch.arange(len(image), device=image.device))
    return lambda: objective(features, step=0).total.backward()


def gradient_errors(device: torch.device, batch: int = 2048, width: int = 512) -> None:
    """Relative error of the embeddings' gradients against float64, at three scales."""
    print(
        f"{'relative error of InfoNCE gradients':40} " + " ".join(f"{f'scale {scale:g}':>10}" for scale in (14.3, 50.0, 100.0))
    )
    generator = torch.Generator().manual_seed(1)
    image, noise = (torch.randn(batch, width, generator=generator).to(device) for _ in range(2))
    pairs = F.normalize(image, dim=1), F.normalize(image + 3.7 * noise, dim=1)
    groups = torch.arange(batch, device=device)
    for dtype in ("fp32", "bf16"):
        errors = []
        for scale in (14.3, 50.0, 100.0):
            exact = [rows.double().requires_grad_() for rows in pairs]
            reference.info_nce(*exact, torch.tensor(scale, dtype=torch.float64, device=device), groups).backward()
            found = [rows.clone().requires_grad_() for rows in pairs]
            objective = Objective(ObjectiveConfig(product_dtype=dtype), seed=0, total_steps=1)  # type: ignore[arg-type]
            scalars = {"scale": torch.tensor(scale, device=device)}
            objective(Features(dict(zip(("image", "text"), found, strict=True)), scalars, groups), step=0).total.backward()
            true, ours = (torch.cat([rows.grad for rows in both]) for both in (exact, found))  # type: ignore[misc]
            errors.append(float((ours - true).norm() / true.norm()))
        print(f"{f'this project, {dtype} products':40} " + " ".join(f"{error:10.1e}" for error in errors))


if __name__ == "__main__":
    main()
