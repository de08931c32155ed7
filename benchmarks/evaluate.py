"""An evaluation of 10,000 images, beside CLIP_benchmark's command, and on one and two processes.

    make peers
    python benchmarks/evaluate.py                                # 10,000 JPEGs of 224 pixels, a model of the smoke run's size
    python benchmarks/evaluate.py --samples 2000 --rounds 1      # a quick look

Ours is one command for zero-shot, calibration, retrieval both ways, its calibration, and geometry. CLIP_benchmark takes a
command for classification and one for retrieval, and reads and embeds the images in each. All run on one core with one thread,
by turns; the smallest of the rounds counts. CPU seconds are user and system time of the command with all processes it
started: other work on the machine hardly changes them. Wall seconds say something on a quiet machine only.

The second table runs ours on one process on one core and on two on two; the results must be equal.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline.data import tar
from pipeline.export import export
from tests.eval.trained import write_run
from tests.peers import peer_command

ROOT = Path(__file__).parent.parent
SHARDS, CLASSES, SIDE = 10, 100, 224
WORDS = (
    "a",
    "red",
    "blue",
    "green",
    "dog",
    "cat",
    "house",
    "tree",
    "on",
    "under",
    "beside",
    "two",
    "small",
    "old",
    "road",
    "boat",
)
MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 128, "layers": 4, "head_width": 32, "pool_type": "avg"},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
    "custom_text": True,
}


class Cost(NamedTuple):
    """What a command took: seconds of all its processes' CPU time, and of the clock."""

    cpu: float
    wall: float


def main() -> None:
    """Build the set and the model, measure, print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_sets(work, args.samples)
        cfg, _ = write_run(work / "runs", {"inline": MODEL})
        export(cfg.run_dir, work / "export")
        compare(work, args.samples, args.rounds)


def compare(work: Path, samples: int, rounds: int) -> None:
    """Every command in every round; the smallest of each."""
    commands = {
        "ours: classification, calibration": ours(work, "classification"),
        "CLIP_benchmark: classification": theirs(work, "classification"),
        "ours: retrieval, calibration, geometry": ours(work, "retrieval"),
        "CLIP_benchmark: retrieval": theirs(work, "retrieval"),
        "ours: all in one": ours(work, "everything"),
    }
    costs: dict[str, list[Cost]] = {}
    for _ in range(rounds):
        for name, command in commands.items():
            costs.setdefault(name, []).append(run(name, command, cores="0"))
        for name, processes, cores in (("1 process", 1, "0"), ("2 processes", 2, "0,1")):
            costs.setdefault(name, []).append(run(name, ours(work, "everything", processes), cores=cores))
    best = {name: Cost(min(cost.cpu for cost in found), min(cost.wall for cost in found)) for name, found in costs.items()}
    print(f"{samples:,} JPEGs of {SIDE} pixels, {CLASSES} classes, one caption each; one core, one thread; best of {rounds}\n")
    print("| command | CPU s | wall s |\n|---|---|---|")
    both = [best[name] for name in commands if name.startswith("CLIP")]
    best["CLIP_benchmark: both"] = Cost(sum(cost.cpu for cost in both), sum(cost.wall for cost in both))
    for name in (*commands, "CLIP_benchmark: both"):
        print(f"| {name} | {best[name].cpu:.1f} | {best[name].wall:.1f} |")
    one, two = best["1 process"], best["2 processes"]
    print("\n| ours | CPU s of all | CPU s per process | wall s |\n|---|---|---|---|")
    print(f"| 1 process, 1 core | {one.cpu:.1f} | {one.cpu:.1f} | {one.wall:.1f} |")
    print(f"| 2 processes, 2 cores | {two.cpu:.1f} | {two.cpu / 2:.1f} | {two.wall:.1f} |")
    per_process, clock = one.cpu / (two.cpu / 2), one.wall / two.wall
    print(f"\n1 -> 2 processes: {per_process:.2f}x less CPU time per process, {clock:.2f}x less wall time")
    check(work, samples)


def check(work: Path, samples: int) -> None:
    """Equal numbers on one and two processes, and the judge's accuracy."""
    kept = ("samples", "zero_shot", "retrieval", "geometry", "calibration", "retrieval_calibration")
    one, two = (json.loads((work / f"everything-{n}.jsonl").read_text().splitlines()[-1]) for n in (1, 2))
    assert all(one[key] == two[key] for key in kept), "two processes found other numbers than one"
    assert one["samples"] == samples
    found = {task: json.loads((work / f"{task}.json").read_text())["metrics"] for task in ("classification", "retrieval")}
    rows = [
        ("top-1", one["zero_shot"]["accuracy@1"], found["classification"]["acc1"]),
        ("text to image R@5", one["retrieval"]["text_to_image"]["recall@5"], found["retrieval"]["image_retrieval_recall@5"]),
    ]
    for name, mine, other in rows:
        print(f"{name}: ours {mine:.6f}, CLIP_benchmark {other:.6f}")


def ours(work: Path, name: str, processes: int = 1) -> list[str]:
    """Our command on so many processes."""
    launch = [sys.executable, "-m"]
    if processes > 1:
        launch += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    given = [str(work / "export"), "--sets", str(work / name), "--out", str(work / f"{name}-{processes}.jsonl"), "--force"]
    return [*launch, "pipeline.eval.run", *given]


def theirs(work: Path, task: str) -> list[str]:
    """CLIP_benchmark's command for one task; images are decoded in the process itself, as one core has no room for another."""
    given = {
        "dataset": f"wds/{task}",
        "dataset_root": str(work / task),
        "task": f"zeroshot_{task}",
        "model": f"local-dir:{work / 'export'}",
        "pretrained": "",
        "batch_size": "64",
        "num_workers": "0",
        "output": str(work / f"{task}.json"),
    }
    words = [word for key, value in given.items() for word in (f"--{key}", value)]
    return [peer_command("clip_benchmark"), "eval", *words, "--no_amp"]


def run(name: str, command: list[str], cores: str) -> Cost:
    """Run a command on these cores with one thread a process; what it took also goes to stderr."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        process = subprocess.Popen(
            ["taskset", "-c", cores, *command], cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        if status:
            said.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{said.read().decode()[-3000:]}")
    cost = Cost(usage.ru_utime + usage.ru_stime, wall)
    print(f"{name}: {cost.cpu:.1f} s CPU, {cost.wall:.1f} s", file=sys.stderr)
    return cost


def write_sets(work: Path, samples: int) -> None:
    """The same images with classes, with captions, and with both."""
    rng = np.random.default_rng(0)
    sets = {"classification": ("jpg", "cls"), "retrieval": ("jpg", "txt"), "everything": ("jpg", "txt", "cls")}
    for name, members in sets.items():
        (work / name / "test").mkdir(parents=True)
        (work / name / "test" / "nshards.txt").write_text(f"{SHARDS}\n")
        if "cls" in members:
            (work / name / "classnames.txt").write_text("".join(f"thing {c}\n" for c in range(CLASSES)))
            templates = "a photo of {c}.\na drawing of {c}.\nmany {c}.\n"
            (work / name / "zeroshot_classification_templates.txt").write_text(templates)
        else:
            (work / name / "dataset_type.txt").write_text("retrieval\n")
    for shard in range(SHARDS):
        with contextlib.ExitStack() as opened:
            files = {name: opened.enter_context((work / name / "test" / f"{shard}.tar").open("wb")) for name in sets}
            for i in range(samples * shard // SHARDS, samples * (shard + 1) // SHARDS):
                caption = " ".join(rng.choice(WORDS, 8)) + f" {i}"
                found = {"jpg": picture(rng), "txt": caption.encode(), "cls": str(i % CLASSES).encode()}
                for name, members in sets.items():
                    for member in members:
                        files[name].write(tar.member_bytes(f"{i:06d}.{member}", found[member]))
            for file in files.values():
                file.write(tar.END_OF_ARCHIVE)


def picture(rng: np.random.Generator) -> bytes:
    """A JPEG with the structure of a photograph, roughly: blobs of colour and some grain."""
    blobs = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 6, (SIDE, SIDE, 1))
    pixels = np.clip(np.asarray(blobs, np.float32) + grain, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
