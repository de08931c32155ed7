"""The loss beside its peers: CPU time of forward and backward on one thread, and peak memory, interleaved in one run.

    python benchmarks/objective.py                       # InfoNCE against open_clip's ClipLoss; all terms against autograd
    python benchmarks/objective.py --batch 8192 --width 512 --rounds 5 --only InfoNCE

Each measurement runs in a process of its own, peers taking turns, and the smallest of the rounds counts: other work on the
machine only ever adds. Time is CPU time of the process (``process_time``), memory the growth of its peak resident set.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

ALL_TERMS = {
    "uniclip": {"image_image": "own", "text_text": "tie"},
    "alignment": {},
    "uniformity": {},
    "cross_uniformity": {},
    "m2_mix": {},
}
"""The batch-coupled terms of the papers on two views and one caption, and alignment."""


def main() -> None:
    """Measure every variant in turn and print the table; or, in a child process, one variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--scale", type=float, default=14.3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("InfoNCE", "all terms"), help="one of the two comparisons")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        print(json.dumps(_measure(VARIANTS[args.variant](args.batch, args.width, args.scale))))
        return
    best: dict[str, dict[str, float]] = {}
    for _ in range(args.rounds):
        for name in (name for name in VARIANTS if name.startswith(args.only or "")):
            found = _in_child(name, args)
            best[name] = {key: min(value, best.get(name, found)[key]) for key, value in found.items()}
    print(
        f"B = {args.batch}, d = {args.width}, scale {args.scale}, fp32, one thread, best of {args.rounds} interleaved rounds\n"
    )
    print(f"{'':34} {'CPU ms':>8} {'peak MB':>8} {'time':>7} {'memory':>7}")
    for ours, peer in (
        ("InfoNCE: this project", "InfoNCE: open_clip ClipLoss"),
        ("all terms: this project", "all terms: autograd"),
    ):
        for name in (name for name in (peer, ours) if name in best):
            row = best[name]
            ratios = f"{best[peer]['ms'] / row['ms']:6.2f}x {best[peer]['mb'] / row['mb']:6.1f}x"
            print(f"{name:34} {row['ms']:8.0f} {row['mb']:8.0f} {ratios}")


def _in_child(name: str, args: argparse.Namespace) -> dict[str, float]:
    sizes = [f"--batch={args.batch}", f"--width={args.width}", f"--scale={args.scale}"]
    command = [sys.executable, __file__, f"--variant={name}", *sizes]
    # Small freed blocks go back to the system, so that the peak is what was in use.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


def _measure(step: Callable[[], None]) -> dict[str, float]:
    small = _peak_mb()
    step()  # also warms up
    peak = _peak_mb() - small
    start = time.process_time()
    step()
    return {"ms": (time.process_time() - start) * 1000, "mb": peak}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _rows(batch: int, width: int, names: tuple[str, ...]):  # type: ignore[no-untyped-def]
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = {name: F.normalize(torch.randn(batch, width), dim=1).requires_grad_() for name in names}
    # Everything that is imported or allocated once is in place before memory is read.
    (torch.randn(64, 64, requires_grad=True) @ torch.randn(64, 64)).exp().sum().backward()
    return rows, torch.arange(batch)


def _open_clip(batch: int, width: int, scale: float) -> Callable[[], None]:
    import torch
    from open_clip.loss import ClipLoss

    rows, _ = _rows(batch, width, ("image", "text"))
    loss, logit_scale = ClipLoss(), torch.tensor(scale, requires_grad=True)
    return lambda: loss(rows["image"], rows["text"], logit_scale).backward()


def _objective(terms: dict, names: tuple[str, ...]) -> Callable[[int, int, float], Callable[[], None]]:  # type: ignore[type-arg]
    def build(batch: int, width: int, scale: float) -> Callable[[], None]:
        import torch

        from pipeline.config import ObjectiveConfig
        from pipeline.features import Features
        from pipeline.losses import Objective

        rows, group_B = _rows(batch, width, names)
        objective = Objective(ObjectiveConfig(terms=terms), seed=0, total_steps=1)
        numbers = {"scale": scale, **{name: scalar.init for name, scalar in objective.scalars().items()}}
        scalars = {name: torch.tensor(value, requires_grad=True) for name, value in numbers.items()}
        return lambda: objective(Features(rows, scalars, group_B), step=0).total.backward()

    return build


def _autograd(batch: int, width: int, scale: float) -> Callable[[], None]:
    """The same terms as anybody would write them: the reference formulas, each with matrices of its own."""
    import torch

    from pipeline.losses import reference

    z, group_B = _rows(batch, width, ("image", "image_2", "text"))
    log_tau, offset = torch.full((3,), -2.66, requires_grad=True), torch.zeros(3, requires_grad=True)

    def step() -> None:
        views = torch.stack([z["image"], z["image_2"]])
        loss = reference.mp_nce(views, z["text"][None], log_tau, offset, group_B)
        loss = loss + reference.alignment(z["image"], z["text"])
        loss = loss + (reference.uniformity(z["image"], group_B) + reference.uniformity(z["text"], group_B)) / 2
        loss = loss + reference.cross_uniformity(z["image"], z["text"], group_B)
        lam_B = torch.full((batch,), 0.3)
        (loss + reference.m2_mix(z["image"], z["text"], lam_B, torch.tensor(1 / 0.07), group_B)).backward()

    return step


VARIANTS = {
    "InfoNCE: open_clip ClipLoss": _open_clip,
    "InfoNCE: this project": _objective({"clip": {}}, ("image", "text")),
    "all terms: autograd": _autograd,
    "all terms: this project": _objective(ALL_TERMS, ("image", "image_2", "text")),
}

if __name__ == "__main__":
    main()
