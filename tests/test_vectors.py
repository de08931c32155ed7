"""Shards to embedding files and back to pictures: layout, order, resumption, and what cannot be used."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import search, vectors
from pipeline.data.samples import ShardSet
from pipeline.errors import ConfigError, DataError
from pipeline.eval.target import load
from tests.data.on_disk import pair, tar_bytes, write_manifest
from tests.eval.trained import TINY, write_run
from tests.peers import run_peer

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
    rows = [vectors.read_metadata(out, str(number)) for number in range(3)]
    assert [len(part) for part in rows] == [70, 4, 5]
    assert [row["key"] for row in rows[1]] == ["1-000", "1-001", "1-003", "1-004"]
    (rejected,) = [json.loads(line) for line in (out / "rejects" / "rejects_1.jsonl").read_text().splitlines()]
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
    (out / "rejects" / "rejects_1.jsonl").unlink()
    assert vectors.main([str(run), str(shards), str(out)]) == 0
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert (out / "img_emb" / "img_emb_0.npy").stat().st_mtime_ns == kept, "what is done is not done again"


def test_two_ranks_write_what_one_does(run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert vectors.main([str(run), str(shards), str(tmp_path / "one")]) == 0
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2"), ("MASTER_ADDR", "never"), ("MASTER_PORT", "asked")):
        monkeypatch.setenv(name, value)
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert vectors.main([str(run), str(shards), str(tmp_path / "two")]) == 0
    assert files(tmp_path / "two") == files(tmp_path / "one")


class Killed(BaseException):
    """The process ends here: nothing catches it."""


@dataclass
class Mortal:
    """A model that lives for so many passes through its towers."""

    inner: Any
    left: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def _live(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def encode_image(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        self._live()
        return self.inner.encode_image(image_BCHW)

    def encode_text(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        self._live()
        return self.inner.encode_text(tokens_BL)


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_killed_at_any_pass_and_continued_leaves_the_same_bytes(run: Path, shards: Path, tmp_path: Path) -> None:
    subject = load(run, CPU).subject
    opened = ShardSet.open(str(shards))

    def embed(out: Path, passes: int) -> None:
        mortal = dataclasses.replace(subject, model=Mortal(subject.model, passes))
        vectors.claim(out, {"model": "mortal"})
        for number in range(3):
            vectors.embed_shard(mortal, opened, number, out, CPU, "float16")

    embed(tmp_path / "whole", 1000)
    interrupted = 0
    for passes in range(8):  # 2 shards of one batch and 1 of two, two towers each
        out = tmp_path / f"after-{passes}"
        with pytest.raises(Killed):
            embed(out, passes)
        interrupted += 1
        embed(out, 1000)
        assert files(out) == files(tmp_path / "whole")
    assert interrupted == 8


@pytest.mark.slow  # starts several processes
def test_a_killed_process_is_continued_to_the_same_bytes(run: Path, shards: Path, tmp_path: Path) -> None:
    """SIGKILL as soon as a file of the second shard appears, complete or not."""
    command = [sys.executable, "-m", "pipeline.vectors", str(run), str(shards)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    out = tmp_path / "killed"
    process = subprocess.Popen([*command, str(out)], stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("img_emb/*img_emb_1*")):
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not list(out.glob("metadata/metadata_2*")), "it was killed before the end"
    subprocess.run([*command, str(out)], check=True, capture_output=True)
    assert files(out) == files(tmp_path / "whole")


def test_names_sort_like_their_rows(run: Path, tmp_path: Path) -> None:
    """Other tools read the files in the order of their names: twelve shards, so that 10 could come before 2."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(12):
        (folder / f"part-{number:02d}.tar").write_bytes(tar_bytes({f"{number:02d}-0": pair(number)}))
    write_manifest(folder)
    assert vectors.main([str(run), str(folder), str(tmp_path / "out")]) == 0
    names = sorted(path.stem for path in (tmp_path / "out" / "metadata").iterdir())
    keys = [row["key"] for name in names for row in vectors.read_metadata(tmp_path / "out", name.rpartition("_")[2])]
    assert keys == [f"{number:02d}-0" for number in range(12)]
    vector = np.load(tmp_path / "out" / "img_emb" / "img_emb_07.npy", allow_pickle=False).astype(np.float32)[0]
    assert vectors.search(tmp_path / "out", vector, 1)[0].key == "07-0"


AUTOFAISS = """
import contextlib, json, os, sys
import numpy as np
from autofaiss import build_index
from embedding_reader import EmbeddingReader
out = sys.argv[1]
with contextlib.redirect_stdout(sys.stderr):
    index, _ = build_index(out + "/img_emb", save_on_disk=False, index_key="Flat", metric_type="ip", nb_cores=1,
                           max_index_memory_usage="100M", current_memory_available="1G")
    reader = EmbeddingReader(out + "/img_emb", metadata_folder=out + "/metadata", meta_columns=["image_path", "caption"],
                             file_format="parquet_npy")
    meta = [key for _, rows in reader(batch_size=10) for key in rows["image_path"]]
    texts = np.concatenate([rows for rows, _ in EmbeddingReader(out + "/text_emb", file_format="npy")(batch_size=10)])
score, found = index.search(texts.astype(np.float32), 5)
print(json.dumps([[meta[i] for i in row] for row in found.tolist()]))
print(json.dumps(score.tolist()))
"""


@pytest.mark.slow  # needs the peers' environment, which `make test-slow` builds
def test_faiss_and_autofaiss_find_the_same_neighbours(run: Path, shards: Path, tmp_path: Path) -> None:
    """Autofaiss builds the index, its reader pairs rows with metadata as clip-retrieval does, faiss searches."""
    out = tmp_path / "vectors"
    assert vectors.main([str(run), str(shards), str(out)]) == 0
    keys, scores = (json.loads(line) for line in run_peer(AUTOFAISS, str(out)).splitlines())
    texts = [np.load(path, allow_pickle=False).astype(np.float32) for path in sorted((out / "text_emb").iterdir())]
    ours = [vectors.search(out, query_d, 5) for query_d in np.concatenate(texts)]
    assert len(ours) == len(keys) == 79
    assert np.allclose([[hit.cosine for hit in hits] for hits in ours], scores, atol=1e-5)
    compared = 0
    for hits, theirs, score in zip(ours, keys, scores, strict=True):
        for place in range(4):  # where no other score is as good as equal; the sixth, which could be, is not known
            if all(abs(score[place] - score[other]) > 1e-5 for other in range(5) if other != place):
                assert hits[place].key == theirs[place]
                compared += 1
    assert compared > 79


def test_a_folder_belongs_to_one_model(run: Path, shards: Path, tmp_path: Path) -> None:
    vectors.claim(tmp_path / "vectors", {"weights_sha256": "other"})
    with pytest.raises(DataError, match=r"holds other embeddings \(.*weights_sha256.* differ"):
        vectors.main([str(run), str(shards), str(tmp_path / "vectors")])
    with pytest.raises(DataError, match=r"was not made by"):
        search.Finder(tmp_path / "vectors", run, 3)
    with pytest.raises(DataError, match=r"holds no embedding files .*unisphere embed"):
        search.Finder(tmp_path / "nowhere", run, 3)


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
    assert "<form" not in text, "nobody would answer"


def test_a_page_to_type_into(run: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "vectors"
    assert vectors.main([str(run), str(shards), str(out)]) == 0
    serving = search.server(search.Finder(out, run, 3), 0)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{serving.server_port}/"
        empty = urllib.request.urlopen(address, timeout=30).read().decode()
        assert '<input id="text"' in empty and "<figure>" not in empty
        found = urllib.request.urlopen(address + "?text=a+%3Cb%3E", timeout=30).read().decode()
        assert found.count("<figure>") == 3 and "“a &lt;b&gt;”" in found and 'value="a &lt;b&gt;"' in found
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address + "etc/passwd", timeout=30)
        with pytest.raises(ConfigError, match=rf"--serve {serving.server_port}: .*choose another port"):
            search.server(search.Finder(out, run, 3), serving.server_port)
    finally:
        serving.shutdown()
        thread.join()
        serving.server_close()
    with pytest.raises(ConfigError, match="nothing to look for: give texts, or --serve PORT"):
        search.main([str(out), "--model", str(run)])
