"""Small shard folders for the tests of this room: real tars with real images, written as the shard tools write them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.data import tar
from pipeline.data.samples import ShardSet

Members = Mapping[str, bytes]


def picture(number: int, side: int = 24) -> Image.Image:
    """An RGB image that differs from that of any other number, and from its own mirror image."""
    pixels = np.random.Generator(np.random.PCG64(number)).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pair(number: int) -> dict[str, bytes]:
    """The members of a good sample."""
    return {"png": encoded(picture(number)), "txt": f"caption {number}".encode()}


def json_pair(number: int, meta: Mapping[str, object]) -> dict[str, bytes]:
    """The members of a good sample with a JSON member."""
    return {**pair(number), "json": json.dumps(meta).encode()}


def tar_bytes(samples: Mapping[str, Members]) -> bytes:
    body = b"".join(
        tar.member_bytes(f"{key}.{extension}", data) for key, members in samples.items() for extension, data in members.items()
    )
    return body + tar.END_OF_ARCHIVE


def write_manifest(folder: Path, *, sha256: bool = False) -> None:
    """Manifest and indexes for the tars of a folder."""
    rows = []
    for path in sorted(folder.glob("*.tar")):
        with path.open("rb") as stream:
            spans = list(tar.iter_samples(stream))
        lines = [json.dumps({"key": span.key, "offset": span.offset, "size": span.size}) for span in spans]
        index = path.with_suffix(".index.jsonl")
        index.write_text("".join(line + "\n" for line in lines))
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if sha256 else ""
        row = {"shard": path.name, "count": len(spans), "bytes": path.stat().st_size, "sha256": digest, "index": index.name}
        rows.append(json.dumps(row))
    (folder / "manifest.jsonl").write_text("".join(row + "\n" for row in rows))


def write_set(
    folder: Path,
    counts: Iterable[int],
    *,
    manifest: bool = True,
    sha256: bool = False,
    replace: Mapping[int, Members] | None = None,
) -> Path:
    """Shards x-000000.tar, ... with these many good samples; ``replace`` gives other members to some sample numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for shard, count in enumerate(counts):
        numbers = range(number, number + count)
        samples = {f"{n:06d}": (replace or {}).get(n) or pair(n) for n in numbers}
        (folder / f"x-{shard:06d}.tar").write_bytes(tar_bytes(samples))
        number += count
    if manifest:
        write_manifest(folder, sha256=sha256)
    return folder


def one_sample(tmp_path: Path, members: Members) -> ShardSet:
    """A set of one shard with one sample, key "k"."""
    path = tmp_path / "one.tar"
    path.write_bytes(tar_bytes({"k": members}))
    return ShardSet.open(str(path), max_member_bytes=1_000_000)


def letters(texts: list[str]) -> torch.Tensor:
    """A tokenizer for tests: the code points of each text, padded to 16."""
    tokens = torch.zeros(len(texts), 16, dtype=torch.int64)
    for row, text in enumerate(texts):
        codes = [ord(letter) for letter in text[:16]]
        tokens[row, : len(codes)] = torch.tensor(codes)
    return tokens
