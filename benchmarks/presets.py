"""The small presets side by side on the bundled emoji: plain CLIP, each paper's own, UniCLIP; a table over seeds.

    python benchmarks/presets.py                                   # everything, three seeds
    python benchmarks/presets.py --seeds 0 --steps 60 --only clip uniclip
    python benchmarks/presets.py --control                         # two image towers on identical images

Every run is `unisphere train` with a preset of configs/, on one process and thread, and sees the same number of pairs as the
others of its part of the table: runs from random weights in the first part, fine-tuning of the plain run of the same seed in
the second. Plain CLIP and plain fine-tuning are run at several learning rates and temperatures, since tuning those alone is
the fair thing to compare with. Measured on the drawing style that no run saw. Runs that are there already are not repeated.

Columns: recall of texts among images and of images among texts, zero-shot top-1, distance of the modalities' centroids,
accuracy of a linear classifier that tells images from texts (80 % / 20 % of the pairs), uniformity of images and texts (-4 is
best), alignment (0 is best), temperature.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline import config
from pipeline.eval import geometry
from pipeline.models import clip
from pipeline.trained import load_trained
from pipeline.weights import training_images

ROOT = Path(__file__).parent.parent
CLIP_ONLY = "objective.terms={clip: {}}"


@dataclass(frozen=True)
class Run:
    """A preset, and what is changed in it."""

    config: str
    overrides: tuple[str, ...] = ()

    @property
    def tuned(self) -> bool:
        """Whether it starts from the plain run of its seed."""
        return "finetune" in self.config


RUNS = {
    "clip": Run("clip_emoji"),
    "clip, lr x 0.5": Run("clip_emoji", ("optim.lr=7.5e-4",)),
    "clip, lr x 2": Run("clip_emoji", ("optim.lr=3e-3",)),
    "clip, starting at 0.03": Run("clip_emoji", ("objective.init_temperature=0.03",)),
    "clip, starting at 0.2": Run("clip_emoji", ("objective.init_temperature=0.2",)),
    "separation": Run("latent_structures_separation_emoji"),
    "bridge": Run("latent_structures_bridge_emoji"),
    "consistency": Run("latent_structures_consistency_emoji"),
    "uniclip": Run("uniclip_emoji"),
    "uniclip without f_A": Run("uniclip_emoji", ("model.heads.augmentation=null",)),
    "tuning at 0.01": Run("m3mix_finetune_emoji", (CLIP_ONLY,)),
    "tuning at 0.05": Run("m3mix_finetune_emoji", (CLIP_ONLY, "objective.init_temperature=0.05")),
    "m3-mix": Run("m3mix_finetune_emoji"),
    "m3-mix at 0.05": Run("m3mix_finetune_emoji", ("objective.init_temperature=0.05",)),
    "fresh d=64": Run("cuaxu_finetune_emoji", (CLIP_ONLY,)),
    "fresh d=64 at 0.05": Run("cuaxu_finetune_emoji", (CLIP_ONLY, "objective.init_temperature=0.05")),
    "fresh d=64, cuaxu": Run("cuaxu_finetune_emoji"),
}
COLUMNS = {
    "T2I R@1": "{:.1%}", "T2I R@5": "{:.1%}", "I2T R@1": "{:.1%}", "I2T R@5": "{:.1%}", "zero-shot": "{:.1%}",
    "centroids": "{:.2f}", "separable": "{:.0%}", "unif. image": "{:.2f}", "unif. text": "{:.2f}", "alignment": "{:.2f}",
    "temperature": "{:.3f}",
}  # fmt: skip


def command(*arguments: str) -> None:
    """Run a command of the project on one thread; its failure is ours."""
    print("+", *arguments, file=sys.stderr, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)


def train(name: str, seed: int, steps: int | None, work: Path) -> Path:
    """The run's folder, trained if it is not there yet."""
    run, shards = RUNS[name], work / "emoji-shards"
    folder = work / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
    if not (folder / "eval.jsonl").is_file():
        overrides = [*run.overrides, f"name={folder.name}", f"runs_dir={work}", f"seed={seed}"]
        overrides += [f"data.train={shards / 'train'}", f"eval.sets=[{shards / 'eval-style'}]", "log.tensorboard=false"]
        if steps is not None:
            length = steps * 2 // 3 if run.tuned else steps
            overrides += [f"train.steps={length}", f"optim.warmup_steps={length // 10}"]
        if run.tuned:
            start = work / f"start-{seed}"
            if not start.is_dir():
                command("pipeline.export", str(train("clip", seed, steps, work)), str(start))
            overrides.append(f"model.init_weights={start / 'open_clip_model.safetensors'}")
        command("pipeline.train", f"configs/{run.config}.yaml", *overrides)
    return folder


def measure(folder: Path) -> dict[str, float]:
    """The figures of a finished run."""
    result = json.loads((folder / "eval.jsonl").read_text().splitlines()[-1])
    found, sphere = result["retrieval"], result["geometry"]
    figures = {
        f"{short} R@{k}": found[direction][f"recall@{k}"]
        for short, direction in (("T2I", "text_to_image"), ("I2T", "image_to_text"))
        for k in (1, 5)
    }
    return {
        **figures,
        "zero-shot": result["zero_shot"]["accuracy@1"],
        "centroids": sphere["centroid_distance"],
        "separable": sphere["linear_separability"],
        "unif. image": sphere["uniformity_image"],
        "unif. text": sphere["uniformity_text"],
        "alignment": sphere["alignment"],
        "temperature": 1 / load_trained(folder)[2].logit_scale().item(),
    }


def row(name: str, runs: list[dict[str, float]]) -> str:
    """A line of the table: the mean over seeds, and half the range between them."""
    cells = []
    for column, form in COLUMNS.items():
        values = [run[column] for run in runs]
        middle, spread = sum(values) / len(values), (max(values) - min(values)) / 2
        cells.append(form.format(middle) + (f" ± {form.format(spread)}" if len(runs) > 1 else ""))
    return f"| {name} | " + " | ".join(cells) + " |"


def control(work: Path, steps: int | None) -> None:
    """Two image towers on identical images: distance and separability of the two, before and after training."""
    path, start = "configs/two_encoders_emoji.yaml", work / "two-encoders-start.safetensors"
    overrides = [f"data.train={work / 'emoji-shards' / 'train'}", f"runs_dir={work}", "log.tensorboard=false"]
    overrides += [f"train.steps={steps}"] if steps is not None else []
    command("pipeline.weights", "align", path, str(start), *overrides)
    overrides.append(f"model.init_weights={start}")
    cfg = config.load(ROOT / path, overrides)
    if not (cfg.run_dir / "checkpoints").is_dir():
        command("pipeline.train", path, *overrides)
    print("| | centroids | separable | matched cosine |\n|---|---|---|---|")
    for when, model in (
        ("aligned, before", clip.build(cfg.model, cfg.objective).eval()),
        ("after", load_trained(cfg.run_dir)[2]),
    ):
        with torch.no_grad():
            pairs = [
                (model.encode_image(image), model.encode_text(image)) for image in training_images(cfg, model.image_size, 32)
            ]
        found = geometry.measure(*(torch.cat(rows) for rows in zip(*pairs, strict=True)))
        distance, separable, cosine = (found[key] for key in ("centroid_distance", "linear_separability", "matched_cosine"))
        print(f"| {when} | {distance:.2f} | {separable:.0%} | {cosine:.2f} |")


def main() -> None:
    """Train what is asked for, and print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--steps", type=int, help="steps from random weights (fine-tuning takes two thirds); default: the presets'"
    )
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="RUN", help=", ".join(RUNS))
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "presets")
    parser.add_argument("--control", action="store_true", help="the experiment with two image towers, and nothing else")
    args = parser.parse_args()
    if not (args.work / "emoji-shards").is_dir():
        command("data_prep", "build", "recipe:emoji", str(args.work / "emoji-shards"))
    if args.control:
        return control(args.work, args.steps)
    print("| run | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 1))
    for name in args.only:
        print(row(name, [measure(train(name, seed, args.steps, args.work)) for seed in args.seeds]), flush=True)


if __name__ == "__main__":
    main()
