"""``unisphere smoke``: the main job once, small and for real, on this machine.

    bundled emoji -> shards -> two training processes (one per GPU where there are GPUs) under DeepSpeed ZeRO-1, killed
    half-way and resumed -> zero-shot classification and retrieval on a drawing style never trained on -> export ->
    reloaded by open_clip -> a summary, and a picture

Every stage is the command that a user would type, in a process of its own. The exit code is 0 only if every stage held and
every figure is in the range that README promises.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import config
from pipeline.cli import guarded
from pipeline.config import RunConfig
from pipeline.errors import PipelineError
from slurm.job import LAUNCH_VARIABLES

CONFIG = Path(__file__).parent.parent / "configs" / "emoji_smoke.yaml"

PROMISED = {
    "text_to_image recall@1": (0.05, 1.0),
    "text_to_image recall@5": (0.18, 1.0),
    "image_to_text recall@1": (0.04, 1.0),
    "image_to_text recall@5": (0.15, 1.0),
    "zero_shot accuracy@1": (0.08, 1.0),
}
"""Ranges of the figures; README shows the same ones. Wide enough for other processors' rounding, far above chance."""

STALL_SECONDS = 300
"""A training that writes no new record for so long is taken for hung."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run all stages; returns the exit code."""
    parser = argparse.ArgumentParser(prog="unisphere smoke", description="Train, evaluate and export a tiny model.")
    parser.add_argument("--work", type=Path, default=Path("runs"), metavar="DIR", help="folder to write (default: runs)")
    args = parser.parse_args(argv)
    started = time.monotonic()
    shards = args.work / "emoji-shards"
    # The paths of the configuration, moved under --work.
    overrides = [f"runs_dir={args.work}", f"data.train={shards / 'train'}", f"eval.sets=[{shards / 'eval-style'}]"]
    cfg = config.load(CONFIG, overrides)
    shutil.rmtree(cfg.run_dir, ignore_errors=True)

    _say("1/5  bundled images -> shards")
    _run("-m", "data_prep", "build", "recipe:emoji", str(shards), "--force")
    _say("2/5  training, to be killed half-way")
    lost = _train_and_kill(cfg, overrides)
    _say("3/5  training, resumed")
    _run(*_training(cfg, overrides))
    replayed = _check_replay(cfg, lost)
    _say("4/5  export, reloaded by open_clip")
    export = args.work / "emoji-export"
    _run("-m", "pipeline.export", str(cfg.run_dir), str(export))
    difference = _reload(cfg.run_dir, export, shards / "eval-style")
    _say("5/5  summary")
    picture = _draw(cfg.run_dir, shards / "eval-style")
    result = json.loads((cfg.run_dir / "eval.jsonl").read_text().splitlines()[-1])
    within = _report(cfg, result, replayed, difference, time.monotonic() - started)
    print(f"\nmodel    {export}\npicture  {picture}")
    if not within:
        raise PipelineError("the smoke run finished, but a figure is outside its promised range; see the table above")
    return 0


def _say(text: str) -> None:
    print(f"\n=== {text} ===", flush=True)


def _run(*arguments: str) -> None:
    """Run this Python with ``arguments``; its failure is ours."""
    result = subprocess.run([sys.executable, *arguments], env=_environment())
    if result.returncode:
        raise PipelineError(f"`python {' '.join(arguments)}` failed with exit code {result.returncode}; its output is above")


def _environment() -> dict[str, str]:
    """One thread per process on the CPU, where the processes share the cores; nothing of an outer launch."""
    kept = {name: v for name, v in os.environ.items() if name not in LAUNCH_VARIABLES and not name.startswith("SLURM_")}
    return {**kept, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def _training(cfg: RunConfig, overrides: Sequence[str]) -> list[str]:
    """The training command: one process per GPU (as many as divide the batch evenly), or two on the CPU."""
    import torch

    available = torch.cuda.device_count() or 2
    processes = max(count for count in range(1, available + 1) if cfg.train.global_batch_size % count == 0)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*launcher, "-m", "pipeline.train", str(CONFIG), *overrides]


def _train_and_kill(cfg: RunConfig, overrides: Sequence[str]) -> dict[int, float]:
    """Train until past the half and past a checkpoint, then kill every process; returns the losses that were lost."""
    every = cfg.checkpoint.every_steps
    kill_at = cfg.train.steps // 2 // every * every + 4 * cfg.log.every_steps
    process = subprocess.Popen([sys.executable, *_training(cfg, overrides)], env=_environment())
    try:
        last, since = -1, time.monotonic()
        while (step := _last_step(cfg.run_dir)) < kill_at:
            if process.poll() is not None:
                raise PipelineError(f"training ended by itself at step {step} (exit code {process.returncode}), see above")
            if step != last:
                last, since = step, time.monotonic()
            if time.monotonic() - since > STALL_SECONDS:
                raise PipelineError(f"training wrote nothing for {STALL_SECONDS} s after step {step}; it hangs")
            time.sleep(0.1)
    finally:
        _kill_tree(process)
    saved = _newest_step(cfg)
    losses = {step: loss for step, loss in _losses(cfg.run_dir).items() if step > saved}
    print(
        f"\nkilled all processes at step {_last_step(cfg.run_dir)}; the newest checkpoint is of step {saved}",
        flush=True,
    )
    return losses


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the launcher and everything below it: torchrun's ranks are sessions of their own and would go on."""
    import psutil

    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        member.kill()
    process.wait()
    psutil.wait_procs(family, timeout=30)


def _newest_step(cfg: RunConfig) -> int:
    from pipeline import checkpoint

    folder = checkpoint.newest(cfg.run_dir)
    return checkpoint.read_state(folder).step if folder else 0


def _losses(run_dir: Path) -> dict[int, float]:
    from pipeline import logs

    path = run_dir / logs.METRICS
    return {r["step"]: r["loss"] for r in logs.read_metrics(path) if "loss" in r} if path.exists() else {}


def _last_step(run_dir: Path) -> int:
    return max(_losses(run_dir), default=0)


def _check_replay(cfg: RunConfig, lost: dict[int, float]) -> int:
    """The steps that were computed, lost, and computed again must have had the same losses, bit for bit on the CPU."""
    import torch

    losses = _losses(cfg.run_dir)
    if max(losses, default=0) != cfg.train.steps:
        raise PipelineError(f"the resumed training ended at step {max(losses, default=0)} of {cfg.train.steps}")
    tolerance = 1e-3 if torch.cuda.is_available() else 0.0
    wrong = {step: (loss, losses.get(step)) for step, loss in lost.items() if abs(loss - losses[step]) > tolerance}
    if wrong or not lost:
        raise PipelineError(f"after the resume these steps had other losses than before the kill: {wrong or 'none to compare'}")
    return len(lost)


def _reload(run_dir: Path, export: Path, evalset: Path) -> float:
    """Largest difference between features of the trained model and of the export as open_clip loads it, on real images."""
    import open_clip
    import torch

    from pipeline.data.evalset import EvalSet
    from pipeline.eval.target import load

    ours = load(run_dir, torch.device("cpu")).subject
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{export}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{export}")
    theirs.eval()
    shards = EvalSet.open(evalset).shards
    samples = [shards.read(index) for index in range(0, len(shards), len(shards) // 32)]
    with torch.no_grad():
        pixels = torch.stack([preprocess(_picture(sample.image)) for sample in samples])
        tokens = tokenize([sample.captions[0] for sample in samples])
        pairs = [
            (ours.model.encode_image(pixels), theirs.encode_image(pixels, normalize=True)),
            (ours.model.encode_text(tokens), theirs.encode_text(tokens, normalize=True)),
        ]
    difference = max(float((mine - other).abs().max()) for mine, other in pairs)
    if difference > 1e-5:
        raise PipelineError(f"open_clip computes other features from {export}: they differ by up to {difference:.1e}")
    return difference


def _picture(image: bytes | memoryview) -> Any:
    from pipeline.data.augment import decode

    return decode(image, max_pixels=1_000_000)


def _draw(run_dir: Path, folder: Path) -> Path:
    import torch

    from pipeline.data.evalset import EvalSet
    from pipeline.dist import World
    from pipeline.eval.embed import embed_set
    from pipeline.eval.sheet import write_summary
    from pipeline.eval.target import load

    device, evalset = torch.device("cpu"), EvalSet.open(folder)
    data = embed_set(load(run_dir, device).subject, evalset, World(), device, batch_size=256)
    write_summary(run_dir, evalset, data, run_dir / "summary.png")
    return run_dir / "summary.png"


def _report(cfg: RunConfig, result: dict[str, Any], replayed: int, difference: float, seconds: float) -> bool:
    """Print the table of figures; True if each is in its promised range."""
    recall, zero = result["retrieval"], result["zero_shot"]
    found = {"zero_shot accuracy@1": zero["accuracy@1"]}
    for direction in ("text_to_image", "image_to_text"):
        found |= {f"{direction} recall@{k}": recall[direction][f"recall@{k}"] for k in (1, 5)}
    chance = {name: 1 / zero["classes"] if "zero" in name else int(name[-1]) / result["samples"] for name in PROMISED}
    losses = _losses(cfg.run_dir)
    steps = f"{cfg.train.steps} steps of {cfg.train.global_batch_size}"
    print(f"seed {cfg.seed} · {steps} · loss at the end {losses[max(losses)]:.3f}")
    print(f"held-out style: {result['samples']} images and captions, {zero['classes']} classes")
    print(f"resume: {replayed} logged steps computed twice, with equal losses")
    print(f"open_clip: features of the export equal within {difference:.0e}")
    print(f"time: {seconds:.0f} s\n")
    print(f"{'figure':26} {'found':>8} {'chance':>8} {'promised':>10}")
    held = True
    for name, (low, high) in PROMISED.items():
        within = low <= found[name] <= high
        held &= within
        print(
            f"{name:26} {found[name]:8.2%} {chance[name]:8.2%} {'>= ' + format(low, '.0%'):>10}{'' if within else '  MISSED'}"
        )
    return held


if __name__ == "__main__":
    raise SystemExit(guarded(main))
