"""What bf16 gains on this CPU for the smoke run's towers: forward and backward, CPU time on one thread.

python benchmarks/precision.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline import config
from pipeline.models import clip

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Print milliseconds by batch size, precision and tower."""
    torch.set_num_threads(1)
    cfg = config.load(ROOT / "configs" / "emoji_smoke.yaml")
    print(f"{'batch':>5} {'precision':10} {'image ms':>9} {'text ms':>8}")
    for batch in (64, 128):
        image_BCHW, tokens_BL = torch.randn(batch, 3, 32, 32), torch.randint(1, 49_000, (batch, 16))
        for precision in ("fp32", "autocast", "bf16"):
            model = clip.build(cfg.model, cfg.objective)
            model = model.bfloat16() if precision == "bf16" else model
            image = measure(model, lambda m: m.encode_image(image_BCHW), precision == "autocast")  # noqa: B023  # called at once
            text = measure(model, lambda m: m.encode_text(tokens_BL), precision == "autocast")  # noqa: B023  # called at once
            print(f"{batch:5} {precision:10} {image:9.0f} {text:8.0f}")


def measure(model: clip.ClipModel, encode: Callable[[clip.ClipModel], torch.Tensor], autocast: bool, rounds: int = 8) -> float:
    """Best milliseconds of forward and backward."""
    best = float("inf")
    for _ in range(rounds):
        model.zero_grad(set_to_none=True)
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            embeddings = encode(model)
        embeddings.sum().backward()
        best = min(best, (time.process_time() - start) * 1000)
    return best


if __name__ == "__main__":
    main()
