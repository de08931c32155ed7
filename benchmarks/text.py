"""Captions beside their peers: token ids per second, and the text tower without padding against 77 tokens, in one run.

    make peers && python benchmarks/text.py
    python benchmarks/text.py --captions 256 --rounds 1

Captions are sentences about ImageNet classes by a language model (CuPL, as clip-benchmark ships them), drawn with a fixed
seed: 14 tokens on average, 99 % under 36; alternative texts of web images have 17 and 34. CPU time of one thread, peers taking
turns; the fastest of the rounds counts. The tower is ViT-B-32's (12 layers, width 512), forward and backward, at random
weights; the ids and, to 1e-6, the unit features are checked to be equal on the way.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"

CUPL = "import clip_benchmark, pathlib; print(pathlib.Path(clip_benchmark.__file__).parent / 'datasets' / 'cupl_prompts.json')"
NUM_TOKENISED = 20_000


def main() -> None:
    """Compare tokenizers, then towers, and print both tables."""
    os.environ["OMP_NUM_THREADS"] = "1"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=64, help="captions in a batch of the tower (default 64)")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    captions = _captions()
    _tokenizers(captions, args.rounds)
    _towers(captions[: args.captions], args.rounds)


def _captions() -> list[str]:
    if not PEERS_PYTHON.exists():
        raise SystemExit("the peers are not installed; run: make peers")
    path = subprocess.run([str(PEERS_PYTHON), "-c", CUPL], capture_output=True, text=True, check=True).stdout.strip()
    found = sorted(set(_sentences(json.loads(Path(path).read_text(encoding="utf-8")))))
    random.Random(0).shuffle(found)
    return found[:NUM_TOKENISED]


def _sentences(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _sentences(child)


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def _tokenizers(captions: list[str], rounds: int) -> None:
    import open_clip
    import torch

    from pipeline.data import tokenizer

    peers = {"open_clip SimpleTokenizer": open_clip.tokenizer.SimpleTokenizer(), "this project": tokenizer.build({})}
    best: dict[str, float] = {}
    ids = {}
    for _ in range(rounds + 1):  # the first round fills the tables of both
        for name, tokenize in peers.items():
            seconds, parts = _timed(
                lambda tokenize=tokenize: [tokenize(captions[n : n + 500]) for n in range(0, len(captions), 500)]
            )
            best[name] = min(seconds, best.get(name, seconds))
            ids[name] = torch.cat(parts)
    first, second = ids.values()
    assert torch.equal(first, second)
    print(f"{len(captions)} captions, {(first > 0).sum(1).float().mean():.1f} tokens on average; all ids are equal")
    for name, seconds in best.items():
        print(f"{name:28} {len(captions) / seconds:9.0f} captions/s {best['open_clip SimpleTokenizer'] / seconds:7.1f}x")


def _towers(captions: list[str], rounds: int) -> None:
    import torch

    from pipeline.data import tokenizer
    from pipeline.models import text

    torch.set_num_threads(1)
    torch.manual_seed(0)
    tower = _tower()
    text.accept_any_length(tower)
    padded_BL = tokenizer.build({})(captions)
    trimmed_BL = tokenizer.build({}, trim=True)(captions)
    ways: dict[str, Callable[[], Any]] = {
        "77 tokens": lambda: tower(padded_BL),
        "this project": lambda: text.encode(tower, trimmed_BL),
    }
    best: dict[str, float] = {}
    features = {}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds, features[name] = _timed(lambda way=way: _forward_and_backward(way))
            best[name] = min(seconds, best.get(name, seconds))
    first, second = (torch.nn.functional.normalize(found, dim=1) for found in features.values())
    difference = float((first - second).abs().max())
    assert difference < 1e-6
    print(f"\ntext tower of ViT-B-32, {len(captions)} captions, forward and backward; unit features differ by {difference:.1e}")
    for name, seconds in best.items():
        print(f"{name:28} {len(captions) / seconds:9.1f} captions/s {best['77 tokens'] / seconds:7.2f}x")


def _tower() -> Any:
    import open_clip

    config = open_clip.get_model_config("ViT-B-32")
    return open_clip.CustomTextCLIP(config["embed_dim"], {**config["vision_cfg"], "layers": 1}, config["text_cfg"]).text


def _forward_and_backward(forward: Callable[[], Any]) -> Any:
    output = forward()
    output.square().sum().backward()
    return output.detach()


if __name__ == "__main__":
    main()
