"""Evaluation sets small enough to reason about, and models whose right answers are known without running them.

``AngleModel`` knows one thing: an image of grey level v and the text "level v" both lie at the angle 2 pi v / 256 on
the unit circle. So on ``write_levels`` every answer is right by construction, and every count is exact.
"""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.eval.embed import Subject

SIZE = 16
NO_MEAN, NO_STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


class AngleModel(torch.nn.Module):
    """Grey level or "level v" -> (cos, sin) of 2 pi v / 256."""

    image_size = SIZE

    def encode_image(self, image_BCHW: Tensor) -> Tensor:
        return _circle(image_BCHW.mean(dim=(1, 2, 3)) * 255)

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        return _circle(tokens_BL[:, 0])


def _circle(level_B: Tensor) -> Tensor:
    angle_B = level_B.double().round() * (2 * math.pi / 256)
    return torch.stack([angle_B.cos(), angle_B.sin()], dim=1).float()


def read_level(texts: list[str]) -> Tensor:
    """The tokenizer of ``AngleModel``: the last word of a text as its only token."""
    return torch.tensor([[int(text.split()[-1]) if text else 0] for text in texts])


def angle_subject() -> Subject:
    return Subject(AngleModel(), read_level, NO_MEAN, NO_STD, {"run": "angles", "step": 7})


class RoughModel(torch.nn.Module):
    """Two small random towers: scores without structure, and matrix products whose last bits depend on their shape."""

    image_size = SIZE

    def __init__(self) -> None:
        super().__init__()
        self.visual = torch.nn.Sequential(torch.nn.Flatten(), _mlp(3 * SIZE * SIZE))
        self.text = torch.nn.Sequential(torch.nn.Embedding(256, 16), torch.nn.Flatten(), _mlp(16 * 24))

    def encode_image(self, image_BCHW: Tensor) -> Tensor:
        return torch.nn.functional.normalize(self.visual(image_BCHW), dim=1)

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        return torch.nn.functional.normalize(self.text(tokens_BL), dim=1)


def _mlp(width: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(width, 256), torch.nn.GELU(), torch.nn.Linear(256, 24))


def read_letters(texts: list[str]) -> Tensor:
    """The tokenizer of ``RoughModel``: the first 24 bytes."""
    return torch.tensor([list(text.encode()[:24].ljust(24)) for text in texts])


def rough_subject() -> Subject:
    torch.manual_seed(0)
    return Subject(RoughModel().eval(), read_letters, NO_MEAN, NO_STD, {"run": "rough", "step": 0})


def write_set(
    folder: Path,
    samples: Sequence[Mapping[str, bytes]],
    classnames: Sequence[str] = (),
    templates: Sequence[str] = ("{c}",),
    shards: int = 2,
) -> Path:
    """A set in CLIP_benchmark's layout from members by extension; samples in order over ``shards`` tars."""
    (folder / "test").mkdir(parents=True)
    if classnames:
        (folder / "classnames.txt").write_text("\n".join(classnames) + "\n")
        (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
    (folder / "test" / "nshards.txt").write_text(str(shards))
    for shard in range(shards):
        first, last = len(samples) * shard // shards, len(samples) * (shard + 1) // shards
        with tarfile.open(folder / "test" / f"{shard}.tar", "w") as tar:
            for i in range(first, last):
                for extension, data in samples[i].items():
                    member = tarfile.TarInfo(f"{i:06d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


def png(pixels: Any) -> bytes:
    """uint8 [H, W, 3] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_levels(folder: Path, levels: Sequence[int], captions_per_image: int = 1) -> Path:
    """Grey images with captions "level v", classes "level v" in order, and every third concept marked as unseen."""
    samples = []
    for place, level in enumerate(levels):
        captions = [" ".join(["a"] * n + ["level", str(level)]) for n in range(captions_per_image)]
        samples.append(
            {
                "png": png(np.full((SIZE, SIZE, 3), level)),
                "cls": str(place).encode(),
                "json": json.dumps({"captions": captions, "seen": place % 3 != 0}).encode(),
            }
        )
    return write_set(folder, samples, [f"level {level}" for level in levels], ["{c}", "a level {c}"])


def write_noise(folder: Path, count: int, seed: int = 0) -> Path:
    """Random images; captions from few words, so that some are equal; one to three captions per image.

    Their json members bring false captions, edits that lead to the next image, and, for the first ten, pairs.
    """
    rng, chance = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    words = ["red", "dog", "sea", "house", "two", "on"]
    samples = []
    for i in range(count):
        old, new, other = (str(word) for word in chance.choice(words, 3, replace=False))
        notes: dict[str, Any] = {
            "negatives": [f"{old} {new}", {"caption": f"{new} {other}", "kind": "swap"}],
            "edits": [{"from": old, "to": new, "right": [f"{(i + 1) % count:06d}"], "kind": old, "weight": 1 + i % 3}],
        }
        if i < min(10, count - count % 2):
            notes["pair"] = i // 2
        captions = [" ".join(rng.choice(words, 2)) for _ in range(rng.integers(1, 4))]
        pixels = rng.integers(0, 256, (SIZE + 5, SIZE, 3))
        samples.append(
            {
                "png": png(pixels),
                "cls": str(rng.integers(0, len(words))).encode(),
                "txt": "\n".join(captions).encode(),
                "json": json.dumps(notes).encode(),
            }
        )
    return write_set(folder, samples, words, ["{c}", "a photo of a {c}."])
