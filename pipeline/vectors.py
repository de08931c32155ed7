"""``unisphere embed MODEL SHARDS OUT``: shards to embedding files, in the layout that clip-retrieval and autofaiss read.

    OUT/img_emb/img_emb_0.npy         float16 or float32 [n, d], unit rows; one file per shard, in order
    OUT/text_emb/text_emb_0.npy       of each sample's first caption
    OUT/metadata/metadata_0.parquet   key (also as image_path), shard, caption; .jsonl where pyarrow is not installed
    OUT/rejects/rejects_0.jsonl       samples that could not be used, with the reason; only of shards that have some
    OUT/embed.json                    which model, which shards

Numbers have as many digits as the last one needs, so that the order of names is the order of rows. A shard's files appear under
their final names when they are complete, the metadata last; a shard whose metadata is there is not embedded again, so a run
that was killed at any moment continues, and leaves the same bytes. Ranks take every W-th shard and never wait for each other.

    unisphere search OUT "a red car" --model MODEL        the images that lie nearest to a text
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError, PipelineError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from pipeline.data.samples import ShardSet
    from pipeline.eval.embed import Subject

DTYPES = ("float16", "float32")
MAX_IMAGE_PIXELS = 64_000_000


def main(argv: Sequence[str] | None = None) -> int:
    """Embed shards; returns the exit code."""
    parser = argparse.ArgumentParser(prog="unisphere embed", description="Embed the images and captions of shards.")
    parser.add_argument("model", type=Path, help="run, checkpoint, or export folder")
    parser.add_argument("shards", help="folder, brace pattern, or one .tar")
    parser.add_argument("out", type=Path, help="folder to write; an interrupted run continues there")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="default: float16")
    args = parser.parse_args(argv)
    from pipeline import dist
    from pipeline.data.samples import ShardSet
    from pipeline.eval.target import load

    world = dist.World.from_env(os.environ)
    device = dist.pick_device(world.local_rank)
    subject = load(args.model, device).subject
    shards = ShardSet.open(args.shards)
    shards.preflight()
    claim(args.out, {**subject.provenance, "shards": list(shards.sources), "dtype": args.dtype})
    for number in range(world.rank, len(shards.sources), world.size):
        done = embed_shard(subject, shards, number, args.out, device, args.dtype)
        print(f"shard {number + 1} of {len(shards.sources)}: {done}", file=sys.stderr)
    return 0


def claim(out: Path, what: dict[str, Any]) -> None:
    """Make ``out`` the folder of these vectors.

    Raises:
        DataError: it holds those of another model, other shards, or another number format.
    """
    path = out / "embed.json"
    for name in ("img_emb", "text_emb", "metadata"):
        (out / name).mkdir(parents=True, exist_ok=True)
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        differing = [key for key in what if found.get(key) != what[key]]
        if differing:
            raise DataError(f"{out} holds other embeddings ({', '.join(differing)} differ, see {path}); choose another folder")
        return
    _publish(path, json.dumps(what, indent=1).encode() + b"\n", str(os.getpid()))  # ranks may write it at the same time


def embed_shard(subject: Subject, shards: ShardSet, number: int, out: Path, device: torch.device, dtype: str) -> str:
    """Write one shard's vectors and metadata unless they are there; returns a line for people."""
    import numpy as np

    digits = f"{number:0{len(str(len(shards.sources) - 1))}}"
    if any((out / "metadata" / f"metadata_{digits}{suffix}").exists() for suffix in (".parquet", ".jsonl")):
        return "done before"
    first = int(shards.counts[:number].sum())
    batch = _Batch(subject, device)
    rejected = []
    for index in range(first, first + int(shards.counts[number])):
        if (reason := batch.add(shards, index)) is not None:
            rejected.append(reason)
    image_nd, text_nd = batch.vectors()
    for name, rows_nd in (("img_emb", image_nd), ("text_emb", text_nd)):
        _publish(out / name / f"{name}_{digits}.npy", _npy(rows_nd.astype(np.dtype(dtype))))
    if rejected:
        (out / "rejects").mkdir(exist_ok=True)
        lines = "".join(json.dumps(reason) + "\n" for reason in rejected)
        _publish(out / "rejects" / f"rejects_{digits}.jsonl", lines.encode())
    _write_metadata(out / "metadata" / f"metadata_{digits}", batch.rows)
    return f"{len(batch.rows)} samples" + (f", {len(rejected)} could not be used (rejects/)" if rejected else "")


class _Batch:
    """The samples of a shard on their way through the model, some at a time."""

    def __init__(self, subject: Subject, device: torch.device) -> None:
        self._subject, self._device = subject, device
        self._views: list[Any] = []
        self._captions: list[str] = []
        self._parts: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = []
        self.rows: list[dict[str, str]] = []

    def add(self, shards: ShardSet, index: int) -> dict[str, str] | None:
        """Take a sample; or say why it cannot be used."""
        from pipeline.data.augment import decode, eval_view
        from pipeline.data.drops import BadSample
        from pipeline.eval.embed import FORWARD_ROWS

        try:
            sample = shards.read(index)
            self._views.append(eval_view(decode(sample.image, MAX_IMAGE_PIXELS), self._subject.model.image_size))
        except BadSample as bad:
            shard, key = shards.locate(index)
            return {"shard": shard, "key": key, "cause": bad.drop.cause, "detail": bad.drop.detail}
        caption = sample.captions[0] if sample.captions else ""
        self._captions.append(caption)
        self.rows.append({"image_path": sample.key, "key": sample.key, "shard": sample.shard, "caption": caption})
        if len(self._views) == FORWARD_ROWS:
            self._run()
        return None

    def vectors(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """All rows so far."""
        import numpy as np

        if self._views:
            self._run()
        if not self._parts:
            raise DataError("no sample of a shard could be used; check it with `unisphere shards verify`")
        return np.concatenate([image for image, _ in self._parts]), np.concatenate([text for _, text in self._parts])

    def _run(self) -> None:
        import numpy as np
        import torch

        from pipeline.data.augment import normalise
        from pipeline.eval.embed import forward

        with torch.inference_mode():
            image_BCHW = torch.from_numpy(np.stack(self._views)).to(self._device)
            pixels = normalise(image_BCHW, self._subject.image_mean, self._subject.image_std)
            image_Bd = forward(self._subject.model.encode_image, pixels)
            text_Bd = forward(self._subject.model.encode_text, self._subject.tokenizer(self._captions).to(self._device))
        self._parts.append((image_Bd.cpu().numpy(), text_Bd.cpu().numpy()))
        self._views, self._captions = [], []


@dataclass(frozen=True)
class Hit:
    """One image that a text found."""

    cosine: float
    key: str
    shard: str
    caption: str


def search(out: Path, query_d: npt.NDArray[np.float32], count: int) -> list[Hit]:
    """The ``count`` images nearest to a unit vector, best first; files are read one at a time.

    Raises:
        DataError: the folder holds no complete shard.
    """
    import numpy as np

    best: list[tuple[float, str, int]] = []
    numbers = sorted((path.stem.rpartition("_")[2] for path in (out / "metadata").glob("metadata_*.*")), key=int)
    if not numbers:
        raise DataError(f"{out} holds no embeddings; make them with: unisphere embed MODEL SHARDS {out}")
    for number in numbers:
        rows_nd = np.load(out / "img_emb" / f"img_emb_{number}.npy", mmap_mode="r", allow_pickle=False)
        score_n = rows_nd.astype(np.float32) @ query_d
        nearest = np.argsort(-score_n, kind="stable")[:count]
        best = sorted([*best, *((-float(score_n[row]), number, int(row)) for row in nearest)], key=_by_score)[:count]
    hits = []
    for score, number, row in best:
        known = read_metadata(out, number)[row]
        hits.append(Hit(-score, known["key"], known["shard"], known["caption"]))
    return hits


def _by_score(found: tuple[float, str, int]) -> tuple[float, int, int]:
    score, number, row = found
    return score, int(number), row


def read_metadata(out: Path, number: str) -> list[dict[str, str]]:
    """Key, shard and caption of each row of one shard; ``number`` as the files' names have it."""
    path = out / "metadata" / f"metadata_{number}.parquet"
    if path.exists():
        import pyarrow.parquet

        rows: list[dict[str, str]] = pyarrow.parquet.read_table(path).to_pylist()
        return rows
    return [json.loads(line) for line in path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]


def _write_metadata(stem: Path, rows: Sequence[dict[str, str]]) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        _publish(stem.with_suffix(".jsonl"), "".join(json.dumps(row) + "\n" for row in rows).encode())
        return
    with _partial(stem.with_suffix(".parquet")) as path:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


def _npy(rows_nd: npt.NDArray[Any]) -> bytes:
    import io

    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, rows_nd, allow_pickle=False)
    return buffer.getvalue()


def _publish(path: Path, data: bytes, writer: str = "partial") -> None:
    with _partial(path, writer) as partial:
        partial.write_bytes(data)


@contextlib.contextmanager
def _partial(path: Path, writer: str = "partial") -> Iterator[Path]:
    """A file to write; it gets its final name when it is complete. What a killed run left is written over."""
    partial = path.with_name(f".{path.name}-{writer}")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise PipelineError(f"cannot write {path}: {error}") from error


if __name__ == "__main__":
    from pipeline.cli import guarded

    raise SystemExit(guarded(main))
