"""Reading shards without decoding, beside webdataset's iteration, and the wait for data where epochs meet.

    python benchmarks/loader_read.py                        # both parts, on shards that it builds in a temporary folder
    python benchmarks/loader_read.py --kilobytes 129 --rounds 7

Reading: CPU time of one thread per sample, from the page cache, every sample as a dictionary of its members. The readers take
turns and the smallest of the rounds counts: other work on the machine only ever adds. The order of a shuffled epoch is what
training reads; webdataset can only go from front to end.

Epochs: one worker, batches that a training step takes a fixed time for; the wait for the first batches of an epoch beside the
median wait. Wall time, so a busy machine shows in it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline.config import AugmentConfig, DataConfig
from pipeline.data import plan, tar
from pipeline.data.files import LocalFiles
from pipeline.data.loader import train_batches
from pipeline.data.samples import ShardSet
from pipeline.data.shards import resolve

NUM_SHARDS = 8


def main() -> None:
    """Measure both parts and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=8000)
    parser.add_argument("--kilobytes", type=int, nargs="*", default=[33, 129], help="sizes of the image member")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step-milliseconds", type=float, default=50.0)
    args = parser.parse_args()
    for kilobytes in args.kilobytes:
        with tempfile.TemporaryDirectory() as folder:
            noise = np.random.default_rng(0).bytes(kilobytes * 1000)
            write(Path(folder), args.samples, lambda number, noise=noise: {"jpg": noise, "txt": b"a caption of some words"})
            reading(Path(folder), args.rounds, f"{args.samples} samples of {kilobytes} KB + caption, {NUM_SHARDS} shards")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), 640, lambda number: {"png": picture(number), "txt": b"x"})
        boundaries(folder, args.step_milliseconds / 1000)
    planning()


def write(folder: Path, num_samples: int, members: Callable[[int], dict[str, bytes]]) -> None:
    """Shards with manifest and indexes, as the shard tools write them."""
    rows = []
    for shard in range(NUM_SHARDS):
        path = folder / f"x-{shard:06d}.tar"
        with path.open("wb") as file, (folder / f"x-{shard:06d}.index.jsonl").open("w") as index:
            numbers = range(num_samples * shard // NUM_SHARDS, num_samples * (shard + 1) // NUM_SHARDS)
            for number in numbers:
                start = file.tell()
                file.writelines(tar.member_bytes(f"{number:09d}.{name}", data) for name, data in members(number).items())
                line = {"key": f"{number:09d}", "offset": start, "size": file.tell() - start}
                index.write(json.dumps(line) + "\n")
            file.write(tar.END_OF_ARCHIVE)
        row = {"shard": path.name, "count": len(numbers), "bytes": path.stat().st_size, "index": index.name.rpartition("/")[2]}
        rows.append(json.dumps(row) + "\n")
        reread(path)
    (folder / "manifest.jsonl").write_text("".join(rows))


def reread(path: Path) -> None:
    """Leave a shard in the page cache as reading it from the disk leaves it, in large pages, and not as writing it in small
    pieces does: copying from those takes the system twice as long."""
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(1 << 20):
            pass


def picture(number: int) -> bytes:
    """A small PNG, different for every number."""
    pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def reading(folder: Path, rounds: int, title: str) -> None:
    """CPU time per sample of each reader, interleaved."""
    shards = resolve(str(folder))
    counts = [shard.count for shard in shards]
    copied, mapped = ShardSet(shards), ShardSet(shards, LocalFiles(mapped=True))
    stored = list(range(len(copied)))
    local, places = LocalFiles(), [byte_range(copied, i) for i in stored]
    order = plan.EpochOrder(counts, seed=0, epoch=0, shuffle_window=2000)
    shuffled = order.take(0, len(copied)).tolist()
    readers: dict[str, Callable[[], Iterable[object]]] = {
        "webdataset, stored order": lambda: webdataset_samples(folder),
        "this project, stored order": lambda: map(copied.members, stored),
        "this project, stored order, map_files": lambda: map(mapped.members, stored),
        "this project, a shuffled epoch": lambda: map(copied.members, shuffled),
        "this project, a shuffled epoch, map_files": lambda: map(mapped.members, shuffled),
        "the system's part of it (pread alone)": lambda: (local.read(*place) for place in places),
    }
    best = dict.fromkeys(readers, float("inf"))
    for _ in range(rounds):
        for name, reader in readers.items():
            start = time.process_time()
            count = sum(1 for _ in reader())
            best[name] = min(best[name], (time.process_time() - start) / count)
            assert count == len(copied), f"{name} read {count} of {len(copied)} samples"
    peer = best["webdataset, stored order"]
    print(f"{title}, one thread, best of {rounds} interleaved rounds\n")
    print(f"{'':44} {'CPU us/sample':>14} {'samples/s':>10} {'times faster':>13}")
    for name, seconds in best.items():
        print(f"{name:44} {seconds * 1e6:14.1f} {1 / seconds:10.0f} {peer / seconds:13.1f}")
    print()


def byte_range(samples: ShardSet, i: int) -> tuple[str, int, int]:
    """Path, offset and size of a sample."""
    shard, index, row = samples._locate(i)
    return shard.path, index.offset.item(row), index.size.item(row)


def webdataset_samples(folder: Path) -> Iterable[object]:
    """The peer's own iteration over the same tars, nothing decoded."""
    import webdataset

    return webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False, empty_check=False)


def boundaries(folder: str, step_seconds: float) -> None:
    """The wait for data at the first steps of each epoch beside that of all steps."""
    batch, epochs = 64, 30
    steps = 640 // batch
    data = DataConfig(folder, workers_per_rank=1, prefetch_batches=2)
    options = {"image_size": 32, "world_rank": 0, "world_size": 1, "global_batch_size": batch, "seed": 0, "start_step": 0}
    waits = []
    asked = time.perf_counter()
    for _ in train_batches(data, AugmentConfig(), tokenizer=no_tokens, total_steps=epochs * steps, **options):
        waits.append(time.perf_counter() - asked)
        time.sleep(step_seconds)
        asked = time.perf_counter()
    inner = [wait for step, wait in enumerate(waits) if step % steps and step > steps]
    first = [wait for step, wait in enumerate(waits) if step % steps == 0 and step >= steps]
    print(f"{epochs} epochs of {steps} steps of {step_seconds * 1000:.0f} ms, one worker; wait in ms, median (largest)\n")
    for name, found in (("first step of an epoch", first), ("all other steps", inner)):
        print(f"{name:24} {statistics.median(found) * 1000:6.2f} ({max(found) * 1000:.2f})")


def planning() -> None:
    """CPU time of the training process for the order of one step: a billion samples, batches of 32,768."""
    order = plan.EpochOrder([10_000] * 100_000, seed=0, epoch=0, shuffle_window=1_000_000)
    print("\norder of one step of 32,768 from 100,000 shards of 10,000: CPU ms, mean of 500 steps\n")
    for name, columns in (("all of it", None), ("what one of 128 ranks reads", plan.rank_columns(32_768, 77, 128))):
        start = time.process_time()
        for step in range(500):
            order.take(step * 32_768, (step + 1) * 32_768, columns)
        print(f"{name:28} {(time.process_time() - start) * 2:6.3f}")


def no_tokens(texts: list[str]) -> torch.Tensor:
    """Stands for a tokenizer that takes no time."""
    return torch.zeros(len(texts), 1, dtype=torch.int64)


if __name__ == "__main__":
    main()
