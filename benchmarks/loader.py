"""From tars to batches, beside its peers: images per second and core, with 1, 2 and 3 views, interleaved in one run.

    make peers && python benchmarks/loader.py
    python benchmarks/loader.py --samples 256 --rounds 1 --recipe weak

Reads 683 x 512 photo-like JPEGs (``photos.py``) with captions and makes 224-pixel views:

    this project           ``train_batches`` in the calling process: uint8 views leave it, the device normalises
      .. and normalised    the same, and normalised on the same core
      .. canvases          ``augment.on_device``: what a worker does where the device makes the views
    open_clip              ``open_clip_train.data.get_wds_dataset``, its own transform, once per view
    webdataset             stock ``WebDataset(...).decode("pil")`` with torchvision's transforms, once per view
    DataLoader             torch's over ``torchvision.datasets.ImageFolder``, with the same transforms; no captions

Recipes: ``weak`` is open_clip's default, a crop of 90 to 100 % of the area, for every view. ``strong`` has a crop from 50 %
and for further views SimCLR's: crops from 8 %, colour jitter, grayscale, blur, flip. Every loader runs in a process of its
own with one thread and no workers, and is timed by CPU time over whole batches; the fastest of the rounds counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SIZE, BATCH, SHARD = 224, 32, 64
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
OURS = ("this project", "this project, normalised", "this project, canvases")
PEERS = ("open_clip", "webdataset", "DataLoader")


def main() -> None:
    """Write the data, let every loader take its turns, print the table; or, in a child process, time one loader."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recipe", choices=("weak", "strong", "both"), default="both")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, folder, views, recipe = args.child
        print(json.dumps(_timed(LOADERS[name](Path(folder), int(views), recipe))))
        return
    if not PEERS_PYTHON.exists():
        raise SystemExit("the peers are not installed; run: make peers")
    with tempfile.TemporaryDirectory() as folder:
        num_bytes = _write(Path(folder), args.samples)
        print(f"{args.samples} JPEGs of 683 x 512 pixels, {num_bytes / 1000:.0f} KB each; {SIZE}-pixel views, batch {BATCH}")
        for recipe in ("weak", "strong") if args.recipe == "both" else (args.recipe,):
            _compare(Path(folder), recipe, args.rounds)


def _compare(folder: Path, recipe: str, rounds: int) -> None:
    best: dict[tuple[str, int], float] = {}
    for _ in range(rounds):
        for views in (1, 2, 3):
            for name in (*OURS, *PEERS):
                found = _in_child(name, folder, views, recipe)
                best[name, views] = max(found, best.get((name, views), 0.0))
    print(f"\nrecipe {recipe}: images (not views) per second and core, best of {rounds} rounds; x = times open_clip's")
    print(f"{'':28}" + "".join(f"{views} view{'s' * (views > 1):5}".rjust(18) for views in (1, 2, 3)))
    for name in (*OURS, *PEERS):
        cells = [f"{best[name, views]:8.0f} {best[name, views] / best['open_clip', views]:7.2f}x" for views in (1, 2, 3)]
        print(f"{name:28}" + "".join(cell.rjust(18) for cell in cells))


def _in_child(name: str, folder: Path, views: int, recipe: str) -> float:
    python = sys.executable if name in OURS else str(PEERS_PYTHON)
    command = [python, __file__, "--child", name, str(folder), str(views), recipe]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def _timed(batches: Iterator[int]) -> float:
    """Images per second of CPU time, all batches but the first, which pays for imports and tables."""
    import torch

    torch.set_num_threads(1)
    next(batches)
    start, count = time.process_time(), 0
    for size in batches:
        count += size
    return count / (time.process_time() - start)


def _write(folder: Path, count: int) -> float:
    """Shards with a manifest, and the same pictures in an image folder; returns the mean size of a picture in bytes."""
    from benchmarks.photos import jpeg, photo
    from pipeline.data import tar
    from tests.data.on_disk import write_manifest

    (folder / "shards").mkdir()
    (folder / "images" / "all").mkdir(parents=True)
    total = 0
    for start in range(0, count, SHARD):
        body = b""
        for number in range(start, min(start + SHARD, count)):
            data = jpeg(photo(number))
            caption = f"a photo of thing number {number} on a table beside the window, seen from above in the morning"
            body += tar.member_bytes(f"{number:06d}.jpg", data) + tar.member_bytes(f"{number:06d}.txt", caption.encode())
            (folder / "images" / "all" / f"{number:06d}.jpg").write_bytes(data)
            total += len(data)
        (folder / "shards" / f"{start // SHARD:06d}.tar").write_bytes(body + tar.END_OF_ARCHIVE)
    write_manifest(folder / "shards")
    return total / count


def _braces(folder: Path) -> str:
    last = len(list((folder / "shards").glob("*.tar"))) - 1
    return f"{folder}/shards/{{000000..{last:06d}}}.tar"


STRONG = {
    "crop_scale": (0.08, 1.0),
    "flip_probability": 0.5,
    "jitter_probability": 0.8,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "jitter_order": "random",
    "grayscale_probability": 0.2,
    "blur_probability": 0.5,
}


def _ours(*, normalised: bool = False, on_device: bool = False) -> Callable[[Path, int, str], Iterator[int]]:
    def batches(folder: Path, views: int, recipe: str) -> Iterator[int]:
        from pipeline.config import AugmentConfig, DataConfig, ViewConfig
        from pipeline.data import tokenizer
        from pipeline.data.augment import normalise
        from pipeline.data.loader import train_batches

        more = ViewConfig(**STRONG) if recipe == "strong" else ViewConfig()
        scale = (0.5, 1.0) if recipe == "strong" else (0.9, 1.0)
        augment = AugmentConfig(crop_scale=scale, more_views=(more,) * (views - 1), on_device=on_device)
        count = len(list((folder / "images" / "all").iterdir()))
        stream = train_batches(
            DataConfig(str(folder / "shards"), workers_per_rank=0),
            augment,
            image_size=SIZE,
            tokenizer=tokenizer.build({}, trim=True),
            world_rank=0,
            world_size=1,
            global_batch_size=BATCH,
            seed=0,
            start_step=0,
            total_steps=count // BATCH,
        )
        for batch in stream:
            if normalised:
                normalise(batch.image_VBCHW, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
            yield len(batch.keys)

    return batches


def _open_clip(folder: Path, views: int, recipe: str) -> Iterator[int]:
    import open_clip
    from open_clip_train.data import get_wds_dataset

    if recipe == "weak":
        once = open_clip.image_transform(SIZE, is_train=True)
        transforms = [once] * views
    else:
        transforms = _strong_transforms(views)
    args = SimpleNamespace(
        train_data=_braces(folder),
        train_num_samples=len(list((folder / "images" / "all").iterdir())),
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        batch_size=BATCH,
        workers=0,
        world_size=1,
        seed=0,
    )
    data = get_wds_dataset(args, _several(transforms), is_train=True, tokenizer=open_clip.get_tokenizer("ViT-B-32"))
    for images, _ in data.dataloader:
        yield len(images)


def _webdataset(folder: Path, views: int, recipe: str) -> Iterator[int]:
    import open_clip
    import webdataset

    tokenize = open_clip.get_tokenizer("ViT-B-32")
    transform = _several(_strong_transforms(views) if recipe == "strong" else _weak_transforms(views))
    dataset = webdataset.WebDataset(_braces(folder), shardshuffle=100).shuffle(1000).decode("pil").to_tuple("jpg", "txt")
    dataset = dataset.map_tuple(transform, lambda text: tokenize(text)[0]).batched(BATCH, partial=False)
    for images, _ in webdataset.WebLoader(dataset, batch_size=None, num_workers=0):
        yield len(images)


def _image_folder(folder: Path, views: int, recipe: str) -> Iterator[int]:
    import torchvision
    from torch.utils.data import DataLoader

    transform = _several(_strong_transforms(views) if recipe == "strong" else _weak_transforms(views))
    dataset = torchvision.datasets.ImageFolder(str(folder / "images"), transform)
    for images, _ in DataLoader(dataset, BATCH, shuffle=True, drop_last=True):
        yield len(images)


def _several(transforms: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """One transform per view; the picture is decoded once, on first use."""
    import torch

    return transforms[0] if len(transforms) == 1 else lambda image: torch.stack([transform(image) for transform in transforms])


def _finish() -> list[Any]:
    from torchvision import transforms as t

    return [t.ToTensor(), t.Normalize((0.48, 0.46, 0.41), (0.27, 0.26, 0.28))]


def _weak_transforms(views: int, scale: tuple[float, float] = (0.9, 1.0)) -> list[Any]:
    from torchvision import transforms as t

    crop = t.RandomResizedCrop(SIZE, scale, interpolation=t.InterpolationMode.BICUBIC)
    return [t.Compose([crop, *_finish()])] * views


def _strong_transforms(views: int) -> list[Any]:
    """A weak crop, then SimCLR's views; the blur is Pillow's, faster than torchvision's."""
    import random

    from PIL import ImageFilter
    from torchvision import transforms as t

    crop = t.RandomResizedCrop(SIZE, (0.08, 1.0), interpolation=t.InterpolationMode.BICUBIC)
    jitter = t.RandomApply([t.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8)
    blur = t.RandomApply([t.Lambda(lambda image: image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2))))], 0.5)
    strong = t.Compose([crop, t.RandomHorizontalFlip(), jitter, t.RandomGrayscale(0.2), blur, *_finish()])
    return [*_weak_transforms(1, (0.5, 1.0)), *[strong] * (views - 1)]


LOADERS: dict[str, Callable[[Path, int, str], Iterator[int]]] = {
    "this project": _ours(),
    "this project, normalised": _ours(normalised=True),
    "this project, canvases": _ours(on_device=True),
    "open_clip": _open_clip,
    "webdataset": _webdataset,
    "DataLoader": _image_folder,
}

if __name__ == "__main__":
    main()
