from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.evalset import EvalSet
from pipeline.dist import World
from pipeline.errors import DataError
from pipeline.eval.embed import Embeddings, embed_set
from pipeline.eval.sheet import SHOWN, choose, search, write_summary
from tests.eval.helpers import angle_subject, rough_subject, write_levels, write_noise

CPU = torch.device("cpu")


def test_half_hits_half_misses() -> None:
    ranks = [1] * 20 + [2, 3, 4, 5] * 3 + [9, 30] * 4
    margins = [0.5 - 0.02 * i for i in range(20)] + [-0.01 * i for i in range(20)]
    chosen = choose(ranks, margins, 12)
    assert len(set(chosen)) == 12
    assert chosen == choose(ranks, margins, 12)
    groups = [1 if ranks[q] == 1 else 2 if ranks[q] <= SHOWN else 3 for q in chosen]
    assert groups == [1] * 6 + [2] * 3 + [3] * 3
    hits = [margins[q] for q in chosen[:6]]
    assert hits == sorted(hits, reverse=True)
    assert hits[0] - hits[-1] > 0.2


@pytest.mark.parametrize(("ranks", "expected"), [([1] * 30, 12), ([7] * 30, 12), ([1, 2, 9], 3), ([1] + [3] * 20, 12), ([], 0)])
def test_what_one_group_lacks_the_others_give(ranks: list[int], expected: int) -> None:
    chosen = choose(ranks, [0.1 * i for i in range(len(ranks))], 12)
    assert len(chosen) == len(set(chosen)) == expected


def test_search_agrees_with_the_model() -> None:
    def circle(step_40: torch.Tensor) -> torch.Tensor:
        angle_40 = step_40 * (2 * torch.pi / 40)
        return torch.stack([angle_40.cos(), angle_40.sin()], dim=1)

    # Captions lie a little nearer to the next image than to their own: each finds that one first and its own second.
    rows, text = circle(torch.arange(40)), circle(torch.arange(40) + 0.6)
    captions = tuple(f"level {i}" for i in range(40))
    data = Embeddings(rows, text, torch.arange(40), torch.full((40,), -1), None, captions, captions, "")
    found, recall = search(data, 8)
    assert recall == {1: 0.0, 5: 1.0, 10: 1.0}
    assert len(found) == 8
    for query in found:
        assert query.caption == f"level {query.owner}"
        assert query.rank == 2
        assert query.images[:2] == ((query.owner + 1) % 40, query.owner)


def write_metrics(run_dir: Path) -> None:
    lines: list[dict[str, object]] = [
        {"step": step, "loss": 5 / step, "lr": 1e-4, "logit_scale": 14.0, "grad_norm": 1.0} for step in range(1, 20)
    ]
    lines.insert(10, {"event": "resume", "step": 10})
    run_dir.mkdir()
    (run_dir / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + '\n{"cut')


def test_the_summary_is_one_picture_and_always_the_same(tmp_path: Path) -> None:
    folder = write_noise(tmp_path / "noise", 30)
    write_metrics(tmp_path / "run")
    evalset = EvalSet.open(folder)
    data = embed_set(rough_subject(), evalset, World(), CPU, 64, progress=False)
    for name in ("a.png", "b.png"):
        write_summary(tmp_path / "run", evalset, data, tmp_path / "pictures" / name)
    first, second = (tmp_path / "pictures" / name for name in ("a.png", "b.png"))
    with Image.open(first) as picture:
        assert picture.width == 1650
        assert 1000 < picture.height < 1300
        greens = (np.asarray(picture.convert("RGB")) == (31, 157, 85)).all(axis=2).sum()
    assert greens > 500  # frames around the right images
    assert first.read_bytes() == second.read_bytes()


def test_what_is_missing_for_a_picture_is_said(tmp_path: Path) -> None:
    folder = write_levels(tmp_path / "levels", range(0, 30, 3))
    evalset = EvalSet.open(folder)
    data = embed_set(angle_subject(), evalset, World(), CPU, 64, progress=False)
    with pytest.raises(DataError, match="metrics.jsonl is missing or holds no training steps"):
        write_summary(tmp_path / "run", evalset, data, tmp_path / "summary.png")
    assert not (tmp_path / "summary.png").exists()
    without = Embeddings(data.image_Nd, data.text_Md[:0], data.owner_M[:0], data.label_N, None, (), data.keys, "")
    with pytest.raises(DataError, match="has no captions"):
        search(without)
