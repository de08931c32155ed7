"""The splits and evaluation sets of a folder of shards, so that what was built with them can be built from again.

    SET/train/set-000000.tar  SET/train/manifest.jsonl                       a split: rows of these tars are in "train"
    SET/eval/test/0.tar  SET/eval/test/manifest.jsonl  SET/eval/classnames.txt ...       an evaluation set, with its texts

A folder in which a manifest says nothing, as one that img2dataset left, is one set without splits.
"""

from __future__ import annotations

from collections.abc import Sequence

from data_prep.inputs import exists, join, read_bytes
from data_prep.manifest import MANIFEST
from data_prep.rows import EvalTexts

CLASSNAMES, TEMPLATES, DATASET_TYPE = "classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt"


def splits_of(folder: str, tars: Sequence[str]) -> dict[str, str]:
    """Tar -> split, of those tars in or below ``folder`` that lie in a split's folder with its manifest."""
    inside = {tar: tar[len(folder) :].lstrip("/").split("/") for tar in tars if tar.startswith(folder)}
    firsts = {parts[0] for parts in inside.values() if len(parts) > 1}
    splits = {name for name in firsts if any(exists(join(folder, f"{name}/{below}{MANIFEST}")) for below in ("", "test/"))}
    return {tar: parts[0] for tar, parts in inside.items() if len(parts) > 1 and parts[0] in splits}


def eval_sets_of(folder: str, splits: Sequence[str]) -> dict[str, EvalTexts]:
    """Split -> its class names and templates, of those that are evaluation sets; raises DataError when one cannot be read."""

    def lines(split: str, name: str) -> tuple[str, ...]:
        path = join(folder, f"{split}/{name}")
        return tuple(read_bytes(path).decode("utf-8").splitlines()) if exists(path) else ()

    found: dict[str, EvalTexts] = {}
    for split in splits:
        if any(exists(join(folder, f"{split}/{name}")) for name in (CLASSNAMES, DATASET_TYPE)):
            found[split] = EvalTexts(lines(split, CLASSNAMES), lines(split, TEMPLATES))
    return found
