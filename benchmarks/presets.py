"""The small presets side by side on the bundled emoji: plain CLIP, each paper's own, UniCLIP; a table over seeds.

    python benchmarks/presets.py --tune                            # the table's settings, and those they were chosen from
    python benchmarks/presets.py                                   # the table: everything, three seeds
    python benchmarks/presets.py --seeds 0 --steps 60 --only clip uniclip
    python benchmarks/presets.py --control                         # two image towers on identical images
    python benchmarks/presets.py --crops                           # a cut at evaluation, told to UniCLIP's head and not told

Every run is `unisphere train` with a preset of configs/, on one process and thread. Runs from random weights see the same
pairs as each other (but for one that sees twice as many, which takes UniCLIP's computing time); those that fine-tune the
plain run of the same seed see the same pairs after it. A pair counts once however many views of its image a run makes; the
views are a column of their own. Learning rates and temperatures were chosen with a seed that is not in the table; the runs
that add terms to CLIP's loss take the plain runs' best. Measured on the drawing style that no run saw. Runs that are there
already are not repeated.

Columns: recall of texts among images and of images among texts, zero-shot top-1, distance of the modalities' centroids,
accuracy of a linear classifier that tells images from texts (80 % / 20 % of the pairs), uniformity of images and texts (-4 is
best), alignment (0 is best), temperature; pairs seen and views of each image (a + b: before and in the fine-tuning).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline import config
from pipeline.data.augment import normalise
from pipeline.data.evalset import EvalSet
from pipeline.data.views import ViewParams, vector
from pipeline.dist import World
from pipeline.eval import geometry
from pipeline.eval.retrieval import recalls
from pipeline.eval.target import load
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

    def but(self, *overrides: str) -> Run:
        """The same with more changes."""
        return Run(self.config, self.overrides + overrides)


RUNS = {
    "clip": Run("clip_emoji"),
    "separation": Run("latent_structures_separation_emoji"),
    "bridge": Run("latent_structures_bridge_emoji"),
    "consistency": Run("latent_structures_consistency_emoji"),
    "in-modal only": Run(
        "latent_structures_consistency_emoji", ("objective.terms={clip: {weight: 0.5}, in_modal: {weight: 0.5}}",)
    ),
    "uniclip": Run("uniclip_emoji"),
    "uniclip without f_A": Run("uniclip_emoji", ("model.heads.augmentation=null",)),
    "tuning": Run("m3mix_finetune_emoji", (CLIP_ONLY,)),
    "m3-mix": Run("m3mix_finetune_emoji"),
    "fresh": Run("cuaxu_finetune_emoji", (CLIP_ONLY,)),
    "cuaxu": Run("cuaxu_finetune_emoji"),
    "clip, twice the pairs": Run("clip_emoji", ("train.steps=500", "optim.warmup_steps=50")),
}

TUNING_SEED = 3
HALF, TWICE = "optim.lr=7.5e-4", "optim.lr=3e-3"
USUAL = "objective.init_temperature=0.07"
COLD = "objective.init_temperature=0.015"
TUNING: dict[str, list[tuple[str, ...]]] = {
    "clip": [(COLD,), (USUAL,), ("objective.init_temperature=0.2",), (HALF,), (TWICE,), (HALF, USUAL), (TWICE, USUAL)],
    "uniclip": [("objective.terms={uniclip: {image_image: own, text_text: tie, init_temperature: 0.03}}",), (HALF,), (TWICE,)],
    "tuning": [("objective.init_temperature=0.01", "optim.lr=2e-4")],
    "fresh": [("objective.init_temperature=0.05",)],
    "cuaxu": [
        ("objective.terms.cross_uniformity={}",),
        ("objective.terms.cross_uniformity={weight: 0.5}",),
    ],
}
"""Changes to the settings that the table uses, which did best of these with a seed that is not in the table."""

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


def train(name: str, run: Run, seed: int, steps: int | None, work: Path) -> Path:
    """The run's folder, trained if it is not there yet."""
    shards = work / "emoji-shards"
    folder = work / re.sub("[^a-zA-Z0-9_.-]+", "-", f"{name}-{seed}")
    if not (folder / "eval.jsonl").is_file():
        overrides = [*run.overrides, f"name={folder.name}", f"runs_dir={work}", f"seed={seed}"]
        overrides += [f"data.train={shards / 'train'}", f"eval.sets=[{shards / 'eval-style'}]", "log.tensorboard=false"]
        if steps is not None:
            length = steps * 2 // 3 if run.tuned else steps
            overrides += [f"train.steps={length}", f"optim.warmup_steps={length // 10}"]
        if run.tuned:
            start = work / f"start-{seed}"
            if not start.is_dir():
                command("pipeline.export", str(train("clip", RUNS["clip"], seed, steps, work)), str(start))
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


def seen(folder: Path) -> list[str]:
    """What a run saw: pairs, and views of each image."""
    cfg = config.load(folder / "config.yaml")
    own = f"{cfg.train.steps * cfg.train.global_batch_size:,}", f"{len(cfg.augment.views)}"
    if cfg.model.init_weights is None:
        return list(own)
    return [f"{first} + {second}" for first, second in zip(seen(folder.parent / f"clip-{cfg.seed}"), own, strict=True)]


def row(name: str, folders: list[Path]) -> str:
    """A line of the table: the mean over seeds, and half the range between them."""
    runs = [measure(folder) for folder in folders]
    cells = []
    for column, form in COLUMNS.items():
        values = [run[column] for run in runs]
        middle, spread = sum(values) / len(values), (max(values) - min(values)) / 2
        cells.append(form.format(middle) + (f" ± {form.format(spread)}" if len(runs) > 1 else ""))
    return f"| {name} | " + " | ".join(cells + seen(folders[0])) + " |"


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


def crops(folder: Path, shards: Path) -> None:
    """Recall where evaluation shows the middle square of 3:2 pictures: the head is told nothing of the cut, or the truth."""
    subject = load(folder, torch.device("cpu")).subject
    found: dict[str, list[torch.Tensor]] = {"whole pictures": [], "cut, not told": [], "cut, told": []}
    texts, owners = [], []
    wide = vector(ViewParams((96, 64), (16, 0, 80, 64)))
    for batch in EvalSet.open(shards / "eval-style").rank_batches(rank=0, size=1, batch_size=256, image_size=96):
        whole, cut = (
            normalise(F.interpolate(pixels, 32, mode="bicubic", antialias=True), subject.image_mean, subject.image_std)
            for pixels in (batch.image_BCHW, batch.image_BCHW[:, :, 16:80, 16:80])
        )
        told = torch.from_numpy(wide).expand(len(cut), -1)
        with torch.no_grad():
            for rows, arguments in zip(found.values(), [(whole,), (cut,), (cut, told)], strict=True):
                rows.append(subject.model.encode_image(*arguments))
            texts += [subject.model.encode_text(subject.tokenizer(list(captions))) for captions in batch.captions]
        owners += [int(i) for i, captions in zip(batch.index_B, batch.captions, strict=True) for _ in captions]
    print("| | T2I R@5 | I2T R@5 |\n|---|---|---|")
    for name, rows in found.items():
        both = recalls(torch.cat(rows), torch.cat(texts), torch.tensor(owners), World())
        print(f"| {name} | " + " | ".join(f"{both[way]['recall@5']:.1%}" for way in ("text_to_image", "image_to_text")) + " |")


def main() -> None:
    """Train what is asked for, and print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--steps", type=int, help="steps from random weights (fine-tuning takes two thirds); default: the presets'"
    )
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="RUN", help=", ".join(RUNS))
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "presets")
    parser.add_argument("--tune", action="store_true", help=f"what the table's settings were chosen from, seed {TUNING_SEED}")
    parser.add_argument("--control", action="store_true", help="the experiment with two image towers, and nothing else")
    parser.add_argument("--crops", action="store_true", help="the cut at evaluation, told and not, and nothing else")
    args = parser.parse_args()
    if not (args.work / "emoji-shards").is_dir():
        command("data_prep", "build", "recipe:emoji", str(args.work / "emoji-shards"))
    if args.control:
        return control(args.work, args.steps)
    if args.crops:
        return crops(train("uniclip", RUNS["uniclip"], args.seeds[0], args.steps, args.work), args.work / "emoji-shards")
    columns = ["run", *COLUMNS, "pairs", "views"]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    if args.tune:
        for name in args.only:
            for changes in [(), *TUNING.get(name, [])]:
                label = " ".join([name, *changes])
                folder = train(label, RUNS[name].but(*changes), TUNING_SEED, args.steps, args.work)
                print(row(label, [folder]), flush=True)
        return
    # All runs of a seed before the next seed: what is interrupted leaves whole seeds to compare.
    folders = [{name: train(name, RUNS[name], seed, args.steps, args.work) for name in args.only} for seed in args.seeds]
    for name in args.only:
        print(row(name, [by_name[name] for by_name in folders]))


if __name__ == "__main__":
    main()
