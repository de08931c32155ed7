"""The shard builder beside its peers, in one run: resizing against img2dataset, packing against webdataset, 1 and 2 workers.

    make peers && python benchmarks/shards.py
    python benchmarks/shards.py --only resize --rounds 3

CPU time of one thread, ours and the peer's by turns, the fastest round counts. Resizing is from JPEGs of quality 90 to a
shortest side of 256 px: img2dataset's own ``Resizer`` (keep_ratio, area, quality 95), ours at the lowest quality from 95 on
whose result is at least as near to the pristine picture, resized by Pillow's Lanczos filter, as theirs (PSNR). Packing is
members of one sample (33 kB of image, text, json) to a file that forgets them. Workers are whole builds, timed in CPU seconds
of all processes: what two cost more than one is what they lose to each other; wall time says the same on idle cores only.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
SIZES = ((768, 512), (683, 512), (1024, 768), (1365, 1024), (2048, 1536), (2731, 2048))
SIDE = 256
NUM_SAMPLES = 500


def main() -> None:
    """Run the parts asked for, in the peers' environment."""
    if Path(sys.prefix).resolve() != PEERS_PYTHON.parent.parent.resolve():
        if not PEERS_PYTHON.exists():
            raise SystemExit("the peers are not installed; run: make peers")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONPATH": str(ROOT)}
        os.execve(PEERS_PYTHON, [str(PEERS_PYTHON), *sys.argv], environment)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"resize": _resize, "pack": _pack, "workers": _workers}
    parser.add_argument("--only", choices=parts)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    for name, part in parts.items():
        if args.only in (None, name):
            part(args.rounds)


def _fastest(rounds: int, *actions: Callable[[], Any]) -> list[float]:
    """CPU seconds of each action, in turns, the fastest of ``rounds``."""
    best = [float("inf")] * len(actions)
    for _ in range(rounds):
        for number, action in enumerate(actions):
            began = time.thread_time()
            action()
            best[number] = min(best[number], time.thread_time() - began)
    return best


def _resize(rounds: int) -> None:
    import numpy as np
    from img2dataset.resizer import Resizer
    from PIL import Image

    from benchmarks.photos import jpeg, photo
    from data_prep.encode import rewrite
    from data_prep.settings import Transform

    def psnr(data: bytes, pristine: Image.Image) -> float:
        found = Image.open(io.BytesIO(data)).convert("RGB")
        exact = np.asarray(pristine.resize(found.size, Image.Resampling.LANCZOS), float)
        return float(10 * np.log10(255**2 / ((np.asarray(found, float) - exact) ** 2).mean()))

    peer = Resizer(SIDE, "keep_ratio", True)
    print(f"{'source':>11}  {'img2dataset':>22}  {'ours':>30}   ratio")
    for width, height in SIZES:
        pristine = photo(0, width, height)
        data = jpeg(pristine)
        theirs = peer(io.BytesIO(data))[0]
        wanted = psnr(theirs, pristine)
        for quality in range(95, 101):
            transform = Transform(resize=SIDE, format="jpeg", quality=quality)
            ours, _ = rewrite(data, transform)
            if psnr(ours, pristine) >= wanted:
                break
        old, new = _fastest(rounds, lambda d=data: peer(io.BytesIO(d)), lambda d=data, t=transform: rewrite(d, t))
        print(
            f"{width:>5} x {height:<4} {old * 1e3:6.2f} ms {wanted:5.2f} dB {len(theirs) / 1e3:3.0f} kB"
            f"   {new * 1e3:6.2f} ms {psnr(ours, pristine):5.2f} dB {len(ours) / 1e3:3.0f} kB q{quality:<3}  {old / new:5.2f}x"
        )


class _Forgets(io.RawIOBase):
    """A file that takes everything and keeps nothing."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        return len(data)


def _pack(rounds: int) -> None:
    import webdataset

    from pipeline.data.tar import member_bytes

    image, text, meta = os.urandom(33_000), b"a caption of some words", json.dumps({"captions": ["a caption"]}).encode()

    def ours(digest: Any = None) -> None:
        out = _Forgets()
        for number in range(NUM_SAMPLES):
            members = (("jpg", image), ("txt", text), ("json", meta))
            data = b"".join(member_bytes(f"{number:09d}.{name}", content) for name, content in members)
            out.write(data)
            if digest is not None:
                digest.update(data)

    def theirs() -> None:
        writer = webdataset.TarWriter(_Forgets(), encoder=False)
        for number in range(NUM_SAMPLES):
            writer.write({"__key__": f"{number:09d}", "jpg": image, "txt": text, "json": meta})
        writer.close()

    peer, plain, hashed = _fastest(rounds, theirs, ours, lambda: ours(hashlib.sha256()))
    for name, seconds in (("webdataset.TarWriter", peer), ("ours", plain), ("ours, with SHA-256", hashed)):
        print(f"{name:<22}{NUM_SAMPLES / seconds:>10,.0f} samples/s   {peer / seconds:5.1f}x")


def _workers(rounds: int) -> None:
    from benchmarks.photos import jpeg, photo
    from data_prep.build import build
    from data_prep.settings import Settings, Transform
    from data_prep.sources import open_source

    number = 2000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        originals = [jpeg(photo(seed, 1024, 768)) for seed in range(6)]
        for row in range(number):
            (folder / f"{row}.jpg").write_bytes(originals[row % 6])
        (folder / "set.csv").write_text("image,caption\n" + "".join(f"{row}.jpg,caption {row}\n" for row in range(number)))
        source, settings = open_source(str(folder / "set.csv")), Settings(50, Transform(resize=SIDE, format="jpeg"))
        spent: dict[int, float] = {}
        for turn in range(1 if rounds < 20 else 3):
            for workers in (1, 2):
                began, wall = _cpu_seconds(), time.monotonic()
                build(source, folder / f"out-{turn}-{workers}", settings=settings, workers=workers)
                cpu = _cpu_seconds() - began
                spent[workers] = min(cpu, spent.get(workers, cpu))
                print(f"{workers} workers: {cpu:5.2f} CPU seconds, {time.monotonic() - wall:5.2f} s by the clock")
    extra = spent[2] / spent[1]
    print(f"2 workers spend {extra:.2f} times the CPU of 1 (starting them included): {2 / extra:.2f}x on two idle cores")


def _cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main()
