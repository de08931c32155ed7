"""Shards to embedding files and back to pictures: layout, order, resumption, and what cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import search, vectors
from pipeline.errors import DataError
from pipeline.eval.target import load
from tests.data.on_disk import pair, tar_bytes, write_manifest
from tests.eval.trained import TINY, write_run

CPU = torch.device("cpu")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards; the second has a picture that cannot be decoded."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(3):
        samples = {f"{number}-{i:03d}": pair(10 * number + i) for i in range(70 if number == 0 else 5)}
        if number == 1:
            samples["1-002"] = {**samples["1-002"], "png": b"broken"}
        (folder / f"part-{number}.tar").write_bytes(tar_bytes(samples))
    write_manifest(folder)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY})
    return cfg.run_dir


def test_every_row_is_the_models_and_belongs_to_its_key(run: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "vectors"
    assert vectors.main([str(run), str(shards), str(out), "--dtype", "float32"]) == 0
    rows = [vectors.read_metadata(out, number) for number in range(3)]
    assert [len(part) for part in rows] == [70, 4, 5]
    assert [row["key"] for row in rows[1]] == ["1-000", "1-001", "1-003", "1-004"]
    (rejected,) = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert (rejected["key"], rejected["cause"]) == ("1-002", "image-undecodable")
    subject = load(run, CPU).subject
    for number, part in enumerate(rows):
        image_nd = np.load(out / "img_emb" / f"img_emb_{number}.npy", allow_pickle=False)
        text_nd = np.load(out / "text_emb" / f"text_emb_{number}.npy", allow_pickle=False)
        assert image_nd.shape == text_nd.shape == (len(part), 16)
        assert np.allclose(np.linalg.norm(image_nd, axis=1), 1, atol=1e-5)
        with torch.inference_mode():
            expected = subject.model.encode_text(subject.tokenizer([row["caption"] for row in part]))
        assert np.allclose(text_nd, expected.numpy(), atol=1e-5)


def test_an_interrupted_run_continues_and_changes_nothing(run: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "vectors"
    assert vectors.main([str(run), str(shards), str(out)]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    gone = [*(out / "metadata").glob("metadata_1.*"), out / "img_emb" / "img_emb_1.npy"]
    for path in gone:
        path.unlink()
    kept = (out / "img_emb" / "img_emb_0.npy").stat().st_mtime_ns
    (out / "rejects.jsonl").unlink()
    assert vectors.main([str(run), str(shards), str(out)]) == 0
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert (out / "img_emb" / "img_emb_0.npy").stat().st_mtime_ns == kept, "what is done is not done again"


def test_a_folder_belongs_to_one_model(run: Path, shards: Path, tmp_path: Path) -> None:
    vectors.claim(tmp_path / "vectors", {"weights_sha256": "other"})
    with pytest.raises(DataError, match=r"holds other embeddings \(.*weights_sha256.* differ"):
        vectors.main([str(run), str(shards), str(tmp_path / "vectors")])
    with pytest.raises(DataError, match=r"was not made by"):
        search.look(tmp_path / "vectors", ["x"], run, 3)


def test_the_nearest_come_first_over_all_files(tmp_path: Path) -> None:
    out = tmp_path / "vectors"
    vectors.claim(out, {})
    for number, angles in enumerate(([0, 90], [10, 180])):
        rows = np.array([[np.cos(np.radians(a)), np.sin(np.radians(a))] for a in angles], np.float32)
        np.save(out / "img_emb" / f"img_emb_{number}.npy", rows)
        known = [{"key": f"{a}", "shard": "s", "caption": f"at {a}"} for a in angles]
        (out / "metadata" / f"metadata_{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in known))
    hits = vectors.search(out, np.array([1, 0], np.float32), 3)
    assert [hit.key for hit in hits] == ["0", "10", "90"]
    assert hits[0].cosine == pytest.approx(1.0)
    with pytest.raises(DataError, match="holds no embeddings; make them with"):
        vectors.search(tmp_path, np.zeros(2, np.float32), 1)


def test_a_page_shows_what_was_found(run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, page = tmp_path / "vectors", tmp_path / "found.html"
    assert vectors.main([str(run), str(shards), str(out)]) == 0
    assert search.main([str(out), "a <b>", "two", "--model", str(run), "-k", "4", "--page", str(page)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 10
    text = page.read_text()
    assert text.count("<figure>") == 8
    assert "a <b>" not in text
    assert text.count('src="data:image/webp') == 8
