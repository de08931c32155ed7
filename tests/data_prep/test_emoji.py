"""The emoji recipe: what is held out stays out, and the bundle is whole."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

import pytest

from data_prep.build import build
from data_prep.recipes import emoji
from data_prep.recipes.emoji_bundle import STYLES
from data_prep.rows import Row
from pipeline.data.samples import ShardSet
from pipeline.errors import DataError

NUM_CONCEPTS = 1595


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return list(emoji.source().rows())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("emoji") / "data"
    report = build(emoji.source(), out)
    assert (report.accepted, report.rejected.total()) == (3 * NUM_CONCEPTS, 0)
    return out


def by_split(rows: list[Row]) -> dict[str, list[Row]]:
    splits: dict[str, list[Row]] = {}
    for row in rows:
        splits.setdefault(row.split, []).append(row)
    return splits


def test_the_sizes_of_the_splits(rows: list[Row]) -> None:
    sizes = {split: len(part) for split, part in by_split(rows).items()}
    assert sizes == {"train": 2862, "eval-style": NUM_CONCEPTS, "eval-concepts": 328}


def test_held_out_concepts_and_the_held_out_style_are_not_in_training(rows: list[Row]) -> None:
    splits = by_split(rows)
    train = {row.meta["concept"] for row in splits["train"]}
    unseen = {row.meta["concept"] for row in splits["eval-concepts"]}
    assert not train & unseen
    assert {row.meta["style"] for row in splits["train"]} == {"noto", "twemoji"}
    assert {row.meta["style"] for row in splits["eval-style"]} == {"fluent"}
    assert train | unseen == {row.meta["concept"] for row in splits["eval-style"]}
    assert {row.meta["concept"] for row in splits["eval-style"] if not row.meta["seen"]} == unseen
    words = {caption.lower() for row in splits["train"] for caption in row.captions}
    assert not words & {row.captions[0].lower() for row in splits["eval-concepts"]}


def test_who_is_held_out_never_moves() -> None:
    seen = {name: emoji.Emoji(name, "", (), "").seen for name in ("airplane", "avocado", "dog-face", "zebra", "yo-yo")}
    held_out = [one.name for one in emoji.load() if not one.seen]
    assert seen == {name: name not in held_out for name in seen}
    assert held_out[:4] == ["ab-button-blood-type", "airplane", "angry-face-with-horns", "atom-symbol"]


def test_labels_are_distinct_and_captions_are_several(rows: list[Row]) -> None:
    labels = [one.label for one in emoji.load()]
    assert len({label.lower() for label in labels}) == len(labels) == NUM_CONCEPTS
    splits = by_split(rows)
    assert {len(row.captions) for row in splits["train"]} <= {8, 9}
    assert {len(row.captions) for row in splits["eval-style"] + splits["eval-concepts"]} == {1}
    assert all(row.meta["group"] == row.meta["concept"] for row in rows)


def test_equal_labels_are_told_apart() -> None:
    assert emoji.unique_labels(["Cat", "cat", "dog"], ["cat-face", "cat", "dog"]) == [
        "Cat (cat face)",
        "cat (cat)",
        "dog",
    ]


def test_classes_are_subgroups_in_human_words(rows: list[Row]) -> None:
    texts = emoji.source().eval_sets["eval-style"]
    assert len(texts.classnames) == 95
    for row in by_split(rows)["eval-style"]:
        assert row.label is not None
        assert texts.classnames[row.label] == row.meta["subgroup"].replace("-", " ")
    assert 5 <= len(texts.templates) <= 8
    assert all(template.count("{c}") == 1 for template in texts.templates)


def test_the_built_sets_are_read_by_training(data: Path) -> None:
    train = ShardSet.open(str(data / "train"))
    assert len(train) == 2862
    groups = Counter(train.read(number).group for number in range(200))
    assert set(groups.values()) == {2}
    first = train.read(0)
    assert (first.key, first.captions[:2]) == ("noto-1st-place-medal", ("1st place medal", "1st place medal"))


def test_the_held_out_style_is_a_test_set(data: Path) -> None:
    from pipeline.data.evalset import EvalSet

    style, concepts = EvalSet.open(data / "eval-style"), EvalSet.open(data / "eval-concepts")
    assert (style.has_labels, len(style), len(style.classnames), len(style.templates)) == (True, NUM_CONCEPTS, 95, 7)
    assert (concepts.has_labels, len(concepts)) == (False, 328)


def test_the_bundle_is_whole_small_and_credited() -> None:
    names = {f"{one.name}.webp" for one in emoji.load()}
    for style in STYLES:
        with zipfile.ZipFile(emoji.ASSETS / f"{style}.zip") as archive:
            assert set(archive.namelist()) == names
    credits = (emoji.ASSETS / "LICENSES" / "CREDITS.md").read_text()
    for package, version, licence, _ in STYLES.values():
        assert f"| {licence} | `{package}` {version} |" in credits
    assert (emoji.ASSETS / "LICENSES" / "Apache-2.0.txt").exists()
    assert sum(path.stat().st_size for path in emoji.ASSETS.rglob("*") if path.is_file()) <= 3_500_000


def test_a_missing_bundle_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the emoji bundle is missing: .*; install the project with its data files"):
        emoji.source(assets=tmp_path)
