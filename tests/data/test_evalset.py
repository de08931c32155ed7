"""Test sets: read completely, exactly once, in order, whatever the number of ranks; anything missing is an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.augment import decode, eval_view
from pipeline.data.evalset import CLASSNAMES, TEMPLATES, EvalSet
from pipeline.errors import DataError, TruncatedTar
from tests.data.on_disk import encoded, pair, picture, tar_bytes, write_manifest

COUNTS = (4, 0, 3)


def classification(folder: Path, *, replace: dict[int, dict[str, bytes]] | None = None) -> Path:
    (folder / "test").mkdir(parents=True)
    (folder / CLASSNAMES).write_text("red apple\ncafé\n\n", encoding="utf-8")
    (folder / TEMPLATES).write_text("a photo of a {c}.\n{c}\n")
    (folder / "test" / "nshards.txt").write_text(f"{len(COUNTS)}\n")
    number = 0
    for shard, count in enumerate(COUNTS):
        samples = {}
        for n in range(number, number + count):
            samples[f"s{n}"] = {"webp": encoded(picture(n), "WEBP", lossless=True), "cls": str(n % 2).encode()}
            samples[f"s{n}"] = (replace or {}).get(n, samples[f"s{n}"])
        (folder / "test" / f"{shard}.tar").write_bytes(tar_bytes(samples))
        number += count
    return folder


def retrieval(folder: Path) -> Path:
    (folder / "test").mkdir(parents=True)
    members = {"png": encoded(picture(0)), "txt": b"first caption\nsecond one\n\n", "json": b'{"seen": false}'}
    (folder / "test" / "0.tar").write_bytes(tar_bytes({"a": members, "b": pair(1)}))
    return folder


def test_a_classification_set(tmp_path):
    data = EvalSet.open(classification(tmp_path / "c"))
    assert data.has_labels
    assert data.classnames == ("red apple", "café")
    assert data.templates == ("a photo of a {c}.", "{c}")
    assert len(data) == 7
    (batch,) = data.rank_batches(0, 1, 100, 16)
    assert batch.index_B.tolist() == list(range(7))
    assert batch.label_B.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert batch.label_B.dtype == batch.index_B.dtype == torch.int64
    assert batch.keys == [f"s{n}" for n in range(7)]
    assert batch.captions == [()] * 7
    expected = eval_view(decode(encoded(picture(5)), 10**6), 16)
    assert np.array_equal(batch.image_BCHW[5].numpy(), expected)


def test_a_retrieval_set_has_one_caption_per_line(tmp_path):
    data = EvalSet.open(retrieval(tmp_path / "r"))
    assert not data.has_labels
    assert data.classnames == data.templates == ()
    (batch,) = data.rank_batches(0, 1, 8, 16)
    assert batch.captions == [("first caption", "second one"), ("caption 1",)]
    assert batch.label_B.tolist() == [-1, -1]
    assert batch.meta == [{"seen": False}, {}]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_all_ranks_together_read_each_sample_once_in_order(tmp_path, size, batch_size):
    data = EvalSet.open(classification(tmp_path / "c"))
    whole = torch.cat([batch.image_BCHW for batch in data.rank_batches(0, 1, 7, 8)])
    batches = [list(data.rank_batches(rank, size, batch_size, 8)) for rank in range(size)]
    flat = [batch for own in batches for batch in own]
    assert torch.cat([batch.index_B for batch in flat]).tolist() == list(range(7))
    assert torch.equal(torch.cat([batch.image_BCHW for batch in flat]), whole)
    assert all(len(batch.index_B) <= batch_size for batch in flat)
    sizes = [sum(len(batch.index_B) for batch in own) for own in batches]
    assert max(sizes) - min(sizes) <= 1


def test_a_manifest_beside_the_tars_is_used(tmp_path):
    folder = classification(tmp_path / "c")
    write_manifest(folder / "test")
    assert len(EvalSet.open(folder)) == 7
    path = folder / "test" / "2.tar"
    path.write_bytes(path.read_bytes()[:-1024])
    with pytest.raises(TruncatedTar, match="its manifest says"):
        EvalSet.open(folder)


def test_without_manifest_a_cut_shard_is_noticed(tmp_path):
    folder = classification(tmp_path / "c")
    path = folder / "test" / "2.tar"
    path.write_bytes(path.read_bytes()[:-1024])
    with pytest.raises(TruncatedTar, match="2.tar: truncated"):
        EvalSet.open(folder)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda f: (f / "test").rename(f / "train"), r"no folder .*test with 0.tar, 1.tar"),
        (lambda f: (f / "test" / "1.tar").unlink(), "expected 3 shards 0.tar, 1.tar, ...; found 2, missing 1.tar"),
        (lambda f: (f / "test" / "nshards.txt").write_text("many"), "must hold the number of shards, got 'many'"),
        (lambda f: (f / TEMPLATES).unlink(), r"is missing or empty; write one template per line with {c}"),
        (lambda f: (f / TEMPLATES).write_text("a photo of a {}.\n"), r"has a template without {c}: 'a photo of a {}.'"),
        (lambda f: (f / CLASSNAMES).write_bytes(b"caf\xe9\n"), "classnames.txt cannot be read as UTF-8 text"),
    ],
)
def test_a_spoilt_set_says_what_is_wrong(tmp_path, spoil, text):
    folder = classification(tmp_path / "c")
    spoil(folder)
    with pytest.raises(DataError, match=text):
        EvalSet.open(folder)


def test_shards_are_counted_where_nshards_is_missing_and_must_have_no_gap(tmp_path):
    folder = classification(tmp_path / "c")
    (folder / "test" / "nshards.txt").unlink()
    assert len(EvalSet.open(folder)) == 7
    (folder / "test" / "0.tar").unlink()
    with pytest.raises(DataError, match=r"found 2, missing 0.tar"):
        EvalSet.open(folder)


def test_empty_sets(tmp_path):
    (tmp_path / "none" / "test").mkdir(parents=True)
    with pytest.raises(DataError, match="expected 0 shards .* found 0"):
        EvalSet.open(tmp_path / "none")
    (tmp_path / "zero" / "test").mkdir(parents=True)
    (tmp_path / "zero" / "test" / "0.tar").write_bytes(tar_bytes({}))
    with pytest.raises(DataError, match="1 shards with 0 samples"):
        EvalSet.open(tmp_path / "zero")


@pytest.mark.parametrize(
    ("members", "text"),
    [
        (
            {"png": b"not a picture", "cls": b"0"},
            r"image-undecodable: s5 in .*2.tar: .* must cover all samples",
        ),
        ({"png": encoded(picture(0)), "cls": b"2"}, r"s5 in .*2.tar has label 2, classnames.txt has 2 classes"),
        ({"png": encoded(picture(0)), "txt": b"no label"}, "s5 in .* has label None"),
        ({"cls": b"0"}, "image-missing: s5"),
    ],
)
def test_a_sample_that_cannot_be_measured_is_an_error_not_a_drop(tmp_path, members, text):
    data = EvalSet.open(classification(tmp_path / "c", replace={5: members}))
    assert len(list(data.rank_batches(0, 2, 2, 8))) == 2, "the first half is fine"
    with pytest.raises(DataError, match=text):
        list(data.rank_batches(1, 2, 2, 8))


def test_wrong_member_names_are_found_at_opening(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "0.tar").write_bytes(tar_bytes({"a": {"jpeg2": b"x", "caption": b"y"}}))
    with pytest.raises(DataError, match=r"Members found: .caption, .jpeg2. .* or a class in .cls"):
        EvalSet.open(tmp_path)
