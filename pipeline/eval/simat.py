"""SIMAT's own data (Couairon et al. 2022) as an evaluation set with edits: ``python -m pipeline.eval.simat SIMAT_DB OUT``.

    SIMAT_DB/transfos.csv                    region_id, value, target, target_ids, norm2, is_test: the changes asked for
    SIMAT_DB/triplets.csv                    region_id, subj, rel, obj, dataset_id: the images
    SIMAT_DB/images/A SUBJ REL OBJ/ID.jpg    the images themselves, cut out of Visual Genome by the authors' script
    SIMAT_DB/oscar_similarity_matrix.pt      the oracle: how well image (row dataset_id) fits caption (column target_ids)

``OUT/dev`` and ``OUT/test`` then hold all images, captioned "A SUBJ REL OBJ", and the changes of that part: right are the
images that the oracle scores above a half, and a change weighs ``norm2 ** -0.5``. The arithmetic's accuracy at a scale is
SIMAT's score at that lambda, divided by 100.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.data import tar
from pipeline.errors import DataError, PipelineError

ORACLE_THRESHOLD = 0.5
PARTS = {"dev": "False", "test": "True"}
"""Part -> what ``is_test`` says."""


def convert(folder: Path, out: Path) -> dict[str, int]:
    """Write both parts; returns how many changes each has.

    Raises:
        DataError: a file is missing, or a table lacks a column.
    """
    import torch

    try:
        triplets = _rows(folder / "triplets.csv", ("region_id", "subj", "rel", "obj", "dataset_id"))
        changes = _rows(folder / "transfos.csv", ("region_id", "value", "target", "target_ids", "norm2", "is_test"))
        oracle = torch.load(folder / "oscar_similarity_matrix.pt", map_location="cpu", weights_only=True)
        region_of = {int(row["dataset_id"]): row["region_id"] for row in triplets}
        counts = {}
        for part, is_test in PARTS.items():
            chosen = [row for row in changes if row["is_test"] == is_test]
            edits: dict[str, list[dict[str, Any]]] = {}
            for row in chosen:
                places = (oracle[:, int(row["target_ids"])] > ORACLE_THRESHOLD).nonzero().flatten().tolist()
                right = [region_of[place] for place in places if region_of[place] != row["region_id"]]
                edit = {"from": row["value"], "to": row["target"], "right": right, "weight": float(row["norm2"]) ** -0.5}
                edits.setdefault(row["region_id"], []).append(edit)
            _write(folder, out / part, triplets, edits)
            counts[part] = len(chosen)
    except OSError as error:
        raise DataError(f"{folder} cannot be read as SIMAT's data, or {out} written: {error}") from error
    return counts


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    missing = set(columns) - set(rows[0] if rows else ())
    if missing:
        raise DataError(f"{path} has no column {', '.join(sorted(missing))}; give the folder simat_db of SIMAT's repository")
    return rows


def _write(folder: Path, out: Path, triplets: Sequence[dict[str, str]], edits: dict[str, list[dict[str, Any]]]) -> None:
    (out / "test").mkdir(parents=True, exist_ok=True)
    with (out / "test" / "0.tar").open("wb") as file:
        for row in sorted(triplets, key=lambda row: int(row["dataset_id"])):
            caption = f"A {row['subj']} {row['rel']} {row['obj']}"
            image = (folder / "images" / caption / f"{row['region_id']}.jpg").read_bytes()
            meta = {"captions": [caption], "edits": edits.get(row["region_id"], [])}
            file.write(tar.member_bytes(f"{row['region_id']}.jpg", image))
            file.write(tar.member_bytes(f"{row['region_id']}.json", json.dumps(meta).encode()))
        file.write(tar.END_OF_ARCHIVE)
    (out / "test" / "nshards.txt").write_text("1\n")
    (out / "dataset_type.txt").write_text("retrieval\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.eval.simat", description="SIMAT's data as evaluation sets.")
    parser.add_argument("simat_db", type=Path, help="folder simat_db of SIMAT's repository, with images and oracle")
    parser.add_argument("out", type=Path, help="folder to write: OUT/dev, OUT/test")
    args = parser.parse_args(argv)
    try:
        counts = convert(args.simat_db, args.out)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print("\n".join(f"{args.out / part}: {count:,} changes" for part, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
