from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.data.evalset import EvalSet
from pipeline.dist import World
from pipeline.errors import DataError
from pipeline.eval import embed
from pipeline.eval.embed import Embeddings, embed_set, embed_texts
from tests.distributed import run_ranks
from tests.eval.helpers import angle_subject, rough_subject, write_levels, write_noise, write_set

CPU = torch.device("cpu")


def bits(data: Embeddings) -> dict[str, Any]:
    """Everything in ``data``, comparable with ``==`` to the last bit."""
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in vars(data).items()}


def embed_on_ranks(world: World, folder: Path, batch_size: int) -> dict[str, Any]:
    return bits(embed_set(rough_subject(), EvalSet.open(folder), world, CPU, batch_size, progress=False))


def test_the_same_bits_for_any_number_of_ranks_and_any_batch_size(tmp_path: Path) -> None:
    folder = write_noise(tmp_path / "noise", 150)
    alone = embed_on_ranks(World(), folder, 256)
    assert len(alone["image_Nd"]) == 150
    assert len(alone["text_Md"]) == len(alone["captions"]) > 150
    for batch_size in (1, 70):
        assert embed_on_ranks(World(), folder, batch_size) == alone
    for world_size in (2, 3):
        assert all(data == alone for data in run_ranks(embed_on_ranks, world_size, folder, 64))


def test_more_ranks_than_parts(tmp_path: Path) -> None:
    folder = write_noise(tmp_path / "noise", 5)
    alone = embed_on_ranks(World(), folder, 256)
    assert run_ranks(embed_on_ranks, 3, folder, 256) == [alone] * 3


def test_rows_are_in_the_order_of_the_set(tmp_path: Path) -> None:
    levels = list(range(0, 256, 2))
    folder = write_levels(tmp_path / "levels", levels, captions_per_image=2)
    data = embed_set(angle_subject(), EvalSet.open(folder), World(), CPU, 64, progress=False)
    angle = torch.tensor(levels) * (2 * torch.pi / 256)
    expected = torch.stack([angle.cos(), angle.sin()], dim=1)
    assert torch.allclose(data.image_Nd, expected, atol=1e-6)
    assert torch.allclose(data.text_Md[::2], expected, atol=1e-6)
    assert data.captions[:3] == ("level 0", "a level 0", "level 2")
    assert data.owner_M.tolist() == [i for i in range(128) for _ in range(2)]
    assert data.label_N.tolist() == list(range(128))
    assert data.unseen_N is not None
    assert data.unseen_N.tolist() == [i % 3 == 0 for i in range(128)]
    assert data.keys[0] == "000000"
    assert len(data.keys) == 128


def test_the_forward_pass_always_has_the_same_number_of_rows(tmp_path: Path) -> None:
    seen: list[int] = []

    def counting(inputs: torch.Tensor) -> torch.Tensor:
        seen.append(len(inputs))
        return inputs.float()

    for n in (1, 63, 64):
        rows = embed.forward(counting, torch.arange(n)[:, None])
        assert rows[:, 0].tolist() == list(range(n))
    assert seen == [embed.FORWARD_ROWS] * 3


def test_equal_texts_get_equal_rows() -> None:
    texts = ["red sea", "dog", "red sea", "two dogs on a house"] * 40
    rows = embed_texts(rough_subject(), texts, World(), CPU)
    assert rows.shape == (160, 24)
    assert torch.equal(rows[0], rows[2])
    assert torch.equal(rows[:4], rows[-4:])
    assert not torch.equal(rows[0], rows[1])


def test_evaluation_leaves_no_trace(tmp_path: Path) -> None:
    folder = write_noise(tmp_path / "noise", 6)
    subject = rough_subject()
    assert isinstance(subject.model, torch.nn.Module)
    subject.model.train()
    generator_state = torch.get_rng_state()
    embed_set(subject, EvalSet.open(folder), World(), CPU, 64, progress=False)
    assert subject.model.training
    assert torch.equal(torch.get_rng_state(), generator_state)
    assert torch.is_grad_enabled()


def test_the_digest_covers_pixels_labels_and_captions(tmp_path: Path) -> None:
    first = embed_on_ranks(World(), write_noise(tmp_path / "a", 4, seed=1), 64)["sha256"]
    assert first == embed_on_ranks(World(), write_noise(tmp_path / "b", 4, seed=1), 64)["sha256"]
    assert first != embed_on_ranks(World(), write_noise(tmp_path / "c", 4, seed=2), 64)["sha256"]


def broken_on_ranks(world: World, folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        embed_set(angle_subject(), EvalSet.open(folder), world, CPU, 64, progress=False)
    return str(caught.value)


def test_a_broken_image_stops_every_rank(tmp_path: Path) -> None:
    good = (Path(__file__).parent / "helpers.py").read_bytes()  # not an image
    levels = write_levels(tmp_path / "levels", range(100))
    samples = [EvalSet.open(levels).shards.read(i) for i in range(100)]
    members = [{"png": s.image, "txt": b"level 1"} for s in samples]
    members[80]["png"] = good
    folder = write_set(tmp_path / "broken", members)
    first, second = run_ranks(broken_on_ranks, 2, folder)
    assert "000080" in second
    assert "image-undecodable" in second
    assert first == f"rank 1 of 2 failed: {second}"
