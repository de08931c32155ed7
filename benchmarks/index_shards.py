"""How fast existing shards are indexed, beside the work that cannot be avoided: reading and hashing every byte.

    python benchmarks/index_shards.py --samples 3000

CPU seconds of one thread, the three interleaved, the best of some rounds; ``tarfile`` reads headers only, without hashes,
sizes of images, or a check of what lies between the headers.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.index import adopt
from pipeline.data.tar import END_OF_ARCHIVE, member_bytes


def write_shard(path: Path, num_samples: int) -> None:
    """A shard of photo-like JPEGs of 640 x 480, about 100 kB each, with captions and a json member."""
    noise = np.random.Generator(np.random.Philox(0)).integers(0, 256, (80, 80, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=90)
    with open(path, "wb") as handle:
        for number in range(num_samples):
            for name, data in (("jpg", encoded.getvalue()), ("txt", b"a caption of some words"), ("json", b'{"width": 640}')):
                handle.write(member_bytes(f"{number:08d}.{name}", data))
        handle.write(END_OF_ARCHIVE)


def hash_only(path: Path) -> None:
    """SHA-256 of the file."""
    with open(path, "rb") as handle:
        hashlib.file_digest(handle, "sha256")


def headers_only(path: Path) -> None:
    """Python's own reader over all members."""
    with tarfile.open(path) as archive:
        for _ in archive:
            pass


def main() -> None:
    """Print MB of shard per CPU second for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        write_shard(path, args.samples)
        ways: dict[str, Callable[[], object]] = {
            "unisphere shards index": lambda: adopt([str(path)]),
            "sha256 alone": lambda: hash_only(path),
            "tarfile, headers only": lambda: headers_only(path),
        }
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(args.rounds):
            for name, way in ways.items():
                start = time.process_time()
                way()
                best[name] = min(best[name], time.process_time() - start)
        for name, seconds in best.items():
            megabytes = path.stat().st_size / 1e6
            print(f"{name:<24}{megabytes / seconds:>8,.0f} MB/s {args.samples / seconds:>10,.0f} samples/s")


if __name__ == "__main__":
    main()
