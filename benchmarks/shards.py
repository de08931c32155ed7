"""The shard builder beside its peers, in one run: resizing against img2dataset, packing against webdataset, 1 and 2 workers.

    make peers && python benchmarks/shards.py
    python benchmarks/shards.py --only resize --rounds 3

CPU time of one thread, ours and the peer's by turns, the fastest round counts.

resize   from JPEGs of quality 90 to a shortest side of 256 px: img2dataset's own ``Resizer`` (keep_ratio, area, quality 95),
         ours at the lowest quality from 90 on whose result is at least as near to the pristine picture, resized by Pillow's
         Lanczos filter, as theirs (PSNR). Ours leaves out what fills no whole pixel of the decoder's (683 / 2), so each is
         held against the part of the picture that it shows.
floor    what no way of resizing can save: reading the compressed bits (decoding grey at 1/8 of the size, which is little
         else), and encoding the result (from planes, without a conversion of colours)
pack     members of one sample (33 kB of image, text, json) to a file that forgets them; with SHA-256 also by the clock while
         another thread computes it
workers  whole builds of the command line, one by one: with 1 worker, with 2, and two at once with 1 worker
         and half of the rows each, which have nothing to share or to wait for: what this machine's two cores give at best
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import queue
import resource
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
SIZES = ((768, 512), (683, 512), (800, 600), (1024, 768), (1365, 1024), (2048, 1536), (2731, 2048))
SIDE = 256
IN_A_ROW = 4
NUM_SAMPLES = 500


def main() -> None:
    """Run the parts asked for, in the peers' environment."""
    if Path(sys.prefix).resolve() != PEERS_PYTHON.parent.parent.resolve():
        if not PEERS_PYTHON.exists():
            raise SystemExit("the peers are not installed; run: make peers")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONPATH": str(ROOT)}
        os.execve(PEERS_PYTHON, [str(PEERS_PYTHON), *sys.argv], environment)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"resize": _resize, "floor": _floor, "pack": _pack, "workers": _workers}
    parser.add_argument("--only", choices=parts)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    for name, part in parts.items():
        if args.only in (None, name):
            part(args.rounds)


def _fastest(rounds: int, *actions: Callable[[], Any]) -> list[float]:
    """CPU seconds of each action, in turns, the fastest of ``rounds`` turns of ``IN_A_ROW``.

    In a row as in a build: the first after another tool finds neither its code in the caches nor its memory mapped.
    """
    best = [float("inf")] * len(actions)
    for _ in range(rounds):
        for number, action in enumerate(actions):
            for _ in range(IN_A_ROW):
                began = time.thread_time()
                action()
                best[number] = min(best[number], time.thread_time() - began)
    return best


def _resize(rounds: int) -> None:
    import numpy as np
    from img2dataset.resizer import Resizer
    from PIL import Image

    from benchmarks.photos import jpeg, photo
    from data_prep.encode import dct_scale, rewrite, target_size
    from data_prep.settings import Transform

    def psnr(data: bytes, pristine: Image.Image, shown: tuple[int, int]) -> float:
        found = Image.open(io.BytesIO(data)).convert("RGB")
        exact = np.asarray(pristine.resize(found.size, Image.Resampling.LANCZOS, box=(0, 0, *shown)), float)
        return float(10 * np.log10(255**2 / ((np.asarray(found, float) - exact) ** 2).mean()))

    peer = Resizer(SIDE, "keep_ratio", True)
    print(f"{'source':>11}  {'img2dataset':>22}  {'ours':>30}   ratio")
    for width, height in SIZES:
        pristine = photo(0, width, height)
        data = jpeg(pristine)
        theirs = peer(io.BytesIO(data))[0]
        wanted = psnr(theirs, pristine, pristine.size)
        scale = dct_scale(pristine.size, target_size(pristine.size, Transform(resize=SIDE)))
        shown = width // scale * scale, height // scale * scale
        for quality in range(90, 101):
            transform = Transform(resize=SIDE, format="jpeg", quality=quality)
            ours, _ = rewrite(data, transform)
            if (found := psnr(ours, pristine, shown)) >= wanted:
                break
        old, new = _fastest(rounds, lambda d=data: peer(io.BytesIO(d)), lambda d=data, t=transform: rewrite(d, t))
        print(
            f"{width:>5} x {height:<4} {old * 1e3:6.2f} ms {wanted:5.2f} dB {len(theirs) / 1e3:3.0f} kB"
            f"   {new * 1e3:6.2f} ms {found:5.2f} dB {len(ours) / 1e3:3.0f} kB q{quality:<3}  {old / new:5.2f}x"
        )


def _floor(rounds: int) -> None:
    import numpy as np
    import simplejpeg
    from img2dataset.resizer import Resizer
    from PIL import Image

    from benchmarks.photos import jpeg, photo
    from data_prep.encode import rewrite
    from data_prep.settings import Transform

    peer, transform = Resizer(SIDE, "keep_ratio", True), Transform(resize=SIDE, format="jpeg", quality=95)
    print(f"{'source':>11}  img2dataset  reading bits   encoding   best ratio   ours")
    for width, height in SIZES:
        data = jpeg(photo(0, width, height))
        result = Image.open(io.BytesIO(rewrite(data, transform)[0])).convert("YCbCr")
        planes = [np.ascontiguousarray(np.asarray(result)[:: 1 + (n > 0), :: 1 + (n > 0), n]) for n in range(3)]
        old, new, bits, encoding = _fastest(
            rounds,
            lambda d=data: peer(io.BytesIO(d)),
            lambda d=data: rewrite(d, transform),
            lambda d=data: simplejpeg.decode_jpeg(d, "GRAY", min_height=1, min_width=1, min_factor=8),
            lambda p=planes: simplejpeg.encode_jpeg_yuv_planes(*p, 95, fastdct=False),
        )
        print(
            f"{width:>5} x {height:<4} {old * 1e3:8.2f} ms {bits * 1e3:9.2f} ms {encoding * 1e3:7.2f} ms "
            f"{old / (bits + encoding):10.2f}x {old / new:7.2f}x"
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

    def beside() -> None:
        """With the hash in another thread, which gets a megabyte at a time: OpenSSL works without the interpreter's lock."""
        digest, waiting, out = hashlib.sha256(), queue.SimpleQueue[bytes | None](), _Forgets()

        def work() -> None:
            while (data := waiting.get()) is not None:
                digest.update(data)

        thread = threading.Thread(target=work)
        thread.start()
        ready: list[bytes] = []
        for number in range(NUM_SAMPLES):
            members = (("jpg", image), ("txt", text), ("json", meta))
            ready.append(b"".join(member_bytes(f"{number:09d}.{name}", content) for name, content in members))
            out.write(ready[-1])
            if len(ready) == 30:
                waiting.put(b"".join(ready))
                ready = []
        waiting.put(b"".join(ready))
        waiting.put(None)
        thread.join()

    peer, plain, hashed, alone = _fastest(
        rounds, theirs, ours, lambda: ours(hashlib.sha256()), lambda: hashlib.sha256(image * NUM_SAMPLES)
    )
    for name, seconds in (("webdataset.TarWriter", peer), ("ours", plain), ("ours, with SHA-256", hashed)):
        print(f"{name:<22}{NUM_SAMPLES / seconds:>10,.0f} samples/s   {peer / seconds:5.1f}x")
    print(f"SHA-256 alone {len(image) * NUM_SAMPLES / alone / 1e9:.2f} GB/s, {alone / hashed:.0%} of packing with it")
    clock = [min(_clock(action) for _ in range(4 * rounds)) for action in (theirs, lambda: ours(hashlib.sha256()), beside)]
    print(f"by the clock: with SHA-256 {clock[0] / clock[1]:.1f}x, with SHA-256 in a second thread {clock[0] / clock[2]:.1f}x")


def _clock(action: Callable[[], Any]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


def _workers(rounds: int) -> None:
    from benchmarks.photos import jpeg, photo

    number, options = 2000, ["--shard-size", "50", "--resize", str(SIDE), "--format", "jpeg"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        originals = [jpeg(photo(seed, 1024, 768)) for seed in range(6)]
        for row in range(number):
            (folder / f"{row}.jpg").write_bytes(originals[row % 6])
        lines = [f"{row}.jpg,caption {row}\n" for row in range(number)]
        for table, rows in (("all", lines), ("left", lines[: number // 2]), ("right", lines[number // 2 :])):
            (folder / f"{table}.csv").write_text("image,caption\n" + "".join(rows))

        def timed(workers: int, *tables: str) -> tuple[float, float]:
            """(seconds by the clock, CPU seconds) of a build per table, all at once."""
            began, cpu = time.monotonic(), _cpu_seconds()
            commands = (
                [
                    sys.executable,
                    "-m",
                    "data_prep",
                    "build",
                    folder / f"{table}.csv",
                    folder / "out" / table,
                    "--force",
                    *options,
                ]
                for table in tables
            )
            running = [
                subprocess.Popen(
                    [*map(str, command), "--workers", str(workers)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
                for command in commands
            ]
            if any(process.wait() for process in running):
                raise SystemExit("a build failed")
            return time.monotonic() - began, _cpu_seconds() - cpu

        cases = {"1 worker": (1, "all"), "2 workers": (2, "all"), "2 builds of one half": (1, "left", "right")}
        spent = {case: (float("inf"), float("inf")) for case in cases}
        for _ in range(max(1, rounds // 3)):
            for case, (workers, *tables) in cases.items():
                spent[case] = min(spent[case], timed(workers, *tables))
        for case, (clock, cpu) in spent.items():
            print(f"{case:<22}{clock:6.2f} s by the clock, {cpu:6.2f} CPU seconds   {spent['1 worker'][0] / clock:5.2f}x")


def _cpu_seconds() -> float:
    """User and system time of this process's children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
