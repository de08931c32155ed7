"""All embeddings of an evaluation set, on every rank, in the set's order, the same bits however the work was cut up.

    data = embed_set(subject, evalset, world, device, batch_size=256)
    data.image_Nd, data.label_N         # row i belongs to sample i, for any number of ranks
    data.text_Md, data.owner_M          # caption j describes sample owner_M[j]

What makes the bits the same. A matrix product takes another code path for another number of rows, so that an embedding
depends, in its last bits, on the size of its batch. Therefore

- every forward pass has exactly ``FORWARD_ROWS`` rows (a short one is padded and the padding cut off);
- the set is cut into parts of at most that many samples, by its length alone; a rank takes every W-th part, so that the
  tensor a sample is embedded in does not depend on the number of ranks W;
- texts are made unique and sorted first, and cut up in the same way; equal captions get equal embeddings;
- TF32 is off, and so is any search for the fastest kernel.

``batch_size`` says how many samples are decoded ahead and held in memory, and never what is computed. Guaranteed: equal
embeddings for equal code, hardware, and library versions. Different hardware may differ in the last bits.

Shapes: N samples, M captions, L = tokens per caption, d = embedding width.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from pipeline import dist
from pipeline.data.augment import normalise
from pipeline.data.evalset import EvalBatch, EvalSet
from pipeline.data.tokenizer import Tokenizer
from pipeline.dist import World
from pipeline.eval.together import all_or_none

FORWARD_ROWS = 64
"""Rows of every forward pass. A constant, because embeddings depend on it in their last bits."""

NOTES = ("edits", "negatives", "pair")
"""Fields of json members that ``arithmetic.py`` and ``composition.py`` read."""

MAX_THREADS = 8
"""Threads that decode images, per rank."""


class Encoder(Protocol):
    """What evaluation asks of a model. ``ClipModel`` is one."""

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels."""

    def encode_image(self, image_BCHW: Tensor) -> Tensor:
        """Normalised pixels fp32 [B, 3, H, W] to unit rows fp32 [B, d]."""

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        """Token ids int64 [B, L] to unit rows fp32 [B, d]."""


@dataclass(frozen=True)
class Subject:
    """A model with all that is needed to show it an image and a text."""

    model: Encoder
    """Whole weights on this rank, not shards of ZeRO stage 3: ranks run different numbers of forward passes."""
    tokenizer: Tokenizer
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    provenance: dict[str, Any]
    """Where the weights come from (run, step, digest); copied into every result."""
    scale: float = 100.0
    """1 / temperature that the model learned: what turns cosines into confidence."""


@dataclass(frozen=True)
class Embeddings:
    """A set as the model sees it; equal on every rank. Tensors are on the compute device."""

    image_Nd: Tensor
    text_Md: Tensor
    """One row per caption, sample by sample."""
    owner_M: Tensor
    """int64: the sample that each caption belongs to."""
    label_N: Tensor
    """int64 class indices; -1 where the set has none."""
    unseen_N: Tensor | None
    """bool: samples whose metadata say ``"seen": false``; None if no sample says anything."""
    captions: tuple[str, ...]
    keys: tuple[str, ...]
    sha256: str
    """Digest of what was evaluated: keys, labels, captions, and pixels as the model was shown them."""
    notes: tuple[dict[str, Any], ...] = ()
    """What further protocols read of each sample's json member (``NOTES``)."""


def embed_set(
    subject: Subject, evalset: EvalSet, world: World, device: torch.device, batch_size: int, progress: bool = True
) -> Embeddings:
    """Embed every image and caption of ``evalset``; all ranks call it and all get everything.

    Args:
        subject: the model, on ``device``.
        evalset: the same set on every rank.
        world: who shares the work.
        device: where the model is.
        batch_size: samples that each rank decodes ahead; changes memory use only.
        progress: show a progress bar on rank 0 when it writes to a terminal.

    Raises:
        DataError: a sample cannot be read, on any rank.
        PipelineError: any other failure on another rank.
    """
    with repeatable(subject.model):
        image_nd, rows = all_or_none(lambda: _embed_images(subject, evalset, world, device, batch_size, progress), world)
        # Small Python values of all samples; 50,000 of them are a few MB.
        all_rows = sorted((row for part in dist.all_gather_object(rows) for row in part), key=lambda row: row.index)
        index_n = torch.tensor([row.index for row in rows], dtype=torch.int64, device=device)
        order_N = dist.all_gather_rows(index_n).argsort()
        image_Nd = dist.all_gather_rows(image_nd)[order_N]
        assert [row.index for row in all_rows] == list(range(len(evalset))), "the parts do not add up to the set"
        captions = [caption for row in all_rows for caption in row.captions]
        text_Md = embed_texts(subject, captions, world, device, progress)
    seen = [row.seen for row in all_rows]
    return Embeddings(
        image_Nd=image_Nd,
        text_Md=text_Md,
        owner_M=torch.tensor([row.index for row in all_rows for _ in row.captions], dtype=torch.int64, device=device),
        label_N=torch.tensor([row.label for row in all_rows], dtype=torch.int64, device=device),
        unseen_N=None if all(s is None for s in seen) else torch.tensor([s is False for s in seen], device=device),
        captions=tuple(captions),
        keys=tuple(row.key for row in all_rows),
        notes=tuple(row.notes for row in all_rows),
        sha256=hashlib.sha256("".join(row.sha256 for row in all_rows).encode()).hexdigest(),
    )


def embed_texts(subject: Subject, texts: Sequence[str], world: World, device: torch.device, progress: bool = True) -> Tensor:
    """Unit embeddings [len(texts), d] of ``texts``, the same on every rank. Equal texts are embedded once."""
    unique = sorted(set(texts))
    chunks = [unique[start : start + FORWARD_ROWS] for start in range(0, len(unique), FORWARD_ROWS)]

    def mine() -> Tensor:
        rows = []
        for chunk in _bar(chunks[world.rank :: world.size], "texts", world, progress):
            rows.append(forward(subject.model.encode_text, subject.tokenizer(chunk).to(device)))
        return _concatenate(rows, subject, device)

    with repeatable(subject.model):
        row_ud = all_or_none(mine, world)
        # Rank order is chunk order modulo the world size: undo that.
        by_rank = [text for rank in range(world.size) for chunk in chunks[rank :: world.size] for text in chunk]
        row_of = {text: row for row, text in enumerate(by_rank)}
        index_M = torch.tensor([row_of[text] for text in texts], dtype=torch.int64, device=device)
        return dist.all_gather_rows(row_ud)[index_M]


@dataclass(frozen=True)
class _Row:
    """What is kept of a sample beside its embedding."""

    index: int
    key: str
    label: int
    captions: tuple[str, ...]
    seen: bool | None
    notes: dict[str, Any]
    sha256: str


def _embed_images(
    subject: Subject, evalset: EvalSet, world: World, device: torch.device, batch_size: int, progress: bool
) -> tuple[Tensor, list[_Row]]:
    """This rank's parts: embeddings [n, d] and as many rows."""
    num_parts = -(-len(evalset) // FORWARD_ROWS)

    def read(own: EvalSet, part: int) -> list[EvalBatch]:
        return list(own.rank_batches(part, num_parts, FORWARD_ROWS, subject.model.image_size))

    parts = range(world.rank, num_parts, world.size)
    embeddings: list[Tensor] = []
    rows: list[_Row] = []
    ahead = max(1, batch_size // FORWARD_ROWS)
    reader = _read_ahead(read, evalset, parts, ahead)
    for batches in _bar(reader, evalset.name, world, progress, total=len(parts)):
        for batch in batches:
            pixels = normalise(batch.image_BCHW.to(device), subject.image_mean, subject.image_std)
            embeddings.append(forward(subject.model.encode_image, pixels))
            rows += _rows(batch)
    return _concatenate(embeddings, subject, device), rows


def _read_ahead(
    read: Callable[[EvalSet, int], list[EvalBatch]], evalset: EvalSet, parts: Sequence[int], ahead: int
) -> Iterator[list[EvalBatch]]:
    """``read`` each part in order, up to ``ahead`` of them in background threads: decoding runs without Python's lock.

    An open set serves one thread at a time, so each thread reads through a twin of its own.
    """
    own = threading.local()

    def start() -> None:
        own.evalset = evalset.twin()

    with ThreadPoolExecutor(max_workers=min(ahead, MAX_THREADS), initializer=start) as pool:
        waiting: deque[Future[list[EvalBatch]]] = deque()
        try:
            for part in parts:
                waiting.append(pool.submit(lambda part: read(own.evalset, part), part))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _rows(batch: EvalBatch) -> list[_Row]:
    rows = []
    for i, key in enumerate(batch.keys):
        label, captions, seen = int(batch.label_B[i]), tuple(batch.captions[i]), batch.meta[i].get("seen")
        notes = {name: batch.meta[i][name] for name in NOTES if name in batch.meta[i]}
        text = json.dumps([key, label, captions, *([notes] if notes else [])], ensure_ascii=True)
        digest = hashlib.sha256(text.encode() + batch.image_BCHW[i].numpy().tobytes()).hexdigest()
        rows.append(_Row(int(batch.index_B[i]), key, label, captions, None if seen is None else bool(seen), notes, digest))
    return rows


def forward(encode: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """``encode`` in one pass of exactly ``FORWARD_ROWS`` rows; the padding repeats the first row."""
    n = len(inputs)
    assert 0 < n <= FORWARD_ROWS, f"{n} rows in one part; a part has 1 to {FORWARD_ROWS}"
    padded = torch.cat([inputs, inputs[:1].expand(FORWARD_ROWS - n, *inputs.shape[1:])])
    return encode(padded)[:n].float()


def _concatenate(rows: list[Tensor], subject: Subject, device: torch.device) -> Tensor:
    """Rows [n, d]; a rank without any work still has to know d for the gather."""
    if rows:
        return torch.cat(rows)
    return forward(subject.model.encode_text, subject.tokenizer([""]).to(device))[:0]


def _bar(items: Any, what: str, world: World, progress: bool, total: int | None = None) -> Any:
    shown = world.is_main and progress
    return tqdm(items, desc=what, total=total, unit="part", leave=False, disable=None if shown else True)


@contextlib.contextmanager
def repeatable(model: Encoder) -> Iterator[None]:
    """Evaluation mode, no gradients, full fp32 products, no kernel search; what was set before comes back."""
    training = isinstance(model, torch.nn.Module) and model.training
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        # fork_rng: data loaders draw a seed from torch's generator, which training may be using as well.
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            if training:
                model.eval()  # type: ignore[attr-defined]
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        if training:
            model.train()  # type: ignore[attr-defined]
