"""SIMAT's files, in miniature: converted and measured, the score is that of the authors' own steps."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.evalset import EvalSet
from pipeline.dist import World
from pipeline.errors import DataError
from pipeline.eval import simat
from pipeline.eval.embed import embed_set, embed_texts
from pipeline.eval.evaluate import evaluate
from tests.eval.helpers import SIZE, png, rough_subject

CPU = torch.device("cpu")
COUNT = 30


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def simat_db(folder: Path) -> tuple[Path, list[dict[str, Any]], torch.Tensor]:
    """The folder, its changes, and the oracle."""
    rng = np.random.default_rng(0)
    triplets, changes = [], []
    for number in range(COUNT):
        words = {"subj": ("cat", "dog")[number % 2], "rel": "on", "obj": ("sofa", "road", "sea")[number % 3]}
        region = 1000 + 7 * ((number * 11) % COUNT)
        triplets.append({"region_id": region, **words, "dataset_id": number})
        place = folder / "images" / "A {subj} {rel} {obj}".format(**words)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{region}.jpg").write_bytes(png(rng.integers(0, 256, (SIZE, SIZE, 3))))
        for is_test in (False, True):
            change = {"value": "cat", "target": ("dog", "man")[number % 2], "target_ids": number % 12, "norm2": 1 + number % 5}
            changes.append({"": len(changes), "region_id": region, **change, "is_test": is_test})
    oracle = torch.from_numpy(rng.random((COUNT, 12)))
    oracle[:, 5] = 0.1  # nothing fits this caption
    write_csv(folder / "triplets.csv", triplets)
    write_csv(folder / "transfos.csv", changes[:50])
    torch.save(oracle, folder / "oscar_similarity_matrix.pt")
    return folder, changes[:50], oracle


def test_the_score_is_simat_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, changes, oracle = simat_db(tmp_path / "simat_db")
    assert simat.main([str(folder), str(tmp_path / "out")]) == 0
    assert "dev: 25 changes" in capsys.readouterr().out
    subject, address = rough_subject(), str(tmp_path / "out" / "test")
    (result,) = evaluate(subject, [address], World(), CPU, batch_size=64, progress=False)
    data = embed_set(subject, EvalSet.open(address), World(), CPU, 64, progress=False)
    words = dict(zip(("cat", "dog", "man"), embed_texts(subject, ["cat", "dog", "man"], World(), CPU), strict=True))
    image = data.image_Nd.double()
    place = {int(key): i for i, key in enumerate(data.keys)}
    for entry in result["arithmetic"]["scales"]:
        hits, weights = [], []
        for change in (change for change in changes if change["is_test"]):
            own = place[change["region_id"]]
            moved = image[own] + entry["scale"] * (words[change["target"]] - words[change["value"]]).double()
            first, second = (image @ moved).topk(2).indices.tolist()
            nearest = first if first != own else second
            hits.append(bool(oracle[nearest, change["target_ids"]] > 0.5))
            weights.append(change["norm2"] ** -0.5)
        assert entry["accuracy"] == pytest.approx(np.average(hits, weights=weights))
    assert result["arithmetic"]["n"] == 25
    assert 0 < result["arithmetic"]["accuracy"] < 1


def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _, _ = simat_db(tmp_path / "simat_db")
    text = (folder / "transfos.csv").read_text().replace("norm2", "norm3")
    (folder / "transfos.csv").write_text(text)
    with pytest.raises(DataError, match=r"transfos.csv has no column norm2; give the folder simat_db"):
        simat.convert(folder, tmp_path / "out")
    assert simat.main([str(tmp_path), str(tmp_path / "out")]) == DataError.exit_code
    assert "cannot be read as SIMAT's data" in capsys.readouterr().err
