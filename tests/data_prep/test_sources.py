"""Every kind of source gives rows, and rows with a problem instead of exceptions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.rows import BadRow, clean_key, locate
from data_prep.sources import open_source
from pipeline.errors import DataError


def problems(path: Path) -> list[str | None]:
    return [row.problem and row.problem.cause for row in open_source(str(path)).rows()]


def test_csv_and_tsv_give_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        '\ufeffimage,caption,label,licence\nx.png,"a cat, asleep",3,CC0\n\ny.png,"two\nlines",,MIT\n'
    )
    (tmp_path / "a.tsv").write_text(
        'image\tcaption\tlabel\tlicence\nx.png\ta cat, asleep\t3\tCC0\ny.png\t"two\nlines"\t\tMIT\n'
    )
    rows = list(open_source(str(tmp_path / "a.csv")).rows())
    assert rows == list(open_source(str(tmp_path / "a.tsv")).rows())
    assert [(row.number, row.image, row.captions, row.label, dict(row.meta)) for row in rows] == [
        (0, str(tmp_path / "x.png"), ("a cat, asleep",), 3, {"licence": "CC0"}),
        (1, str(tmp_path / "y.png"), ("two\nlines",), None, {"licence": "MIT"}),
    ]


def test_other_common_column_names_are_understood(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("filepath,title\nx.png,cat\n")
    row = next(open_source(str(tmp_path / "a.csv")).rows())
    assert (row.image, row.captions) == (str(tmp_path / "x.png"), ("cat",))


def test_captions_may_be_a_list(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('image,captions\nx.png,"[""cat"", ""a cat""]"\ny.png,"[""cat"""\n')
    first, second = open_source(str(tmp_path / "a.csv")).rows()
    assert first.captions == ("cat", "a cat")
    assert second.problem is not None
    assert "not a JSON list" in second.problem.detail


def test_json_lines_that_are_no_rows_have_a_problem(tmp_path: Path) -> None:
    lines = [
        '{"image": "x.png", "caption": "fine"}',
        '{"image": "x.png", "caption": ',
        "[1, 2]",
        '{"caption": "no image"}',
        '{"image": "x.png", "caption": 7}',
        '{"image": "x.png", "caption": "a", "label": "dog"}',
    ]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines))
    expected = [None, "row-invalid", "row-invalid", "image-missing", "row-invalid", "label-invalid"]
    assert problems(tmp_path / "a.jsonl") == expected


def test_a_csv_record_with_the_wrong_number_of_fields_has_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,caption\nx.png,cat,extra\ny.png\nz.png,dog\n")
    assert problems(tmp_path / "a.csv") == ["row-invalid", "row-invalid", None]


def test_a_folder_pairs_images_with_texts_and_counts_what_is_single(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.PNG", "a.jpg", "sub/c.webp", "notes.md"):
        (tmp_path / name).write_bytes(b"image")
    (tmp_path / "a.txt").write_text("a cat\nanother cat\n")
    (tmp_path / "sub/c.txt").write_text("a dog")
    (tmp_path / "sub/lonely.txt").write_text("no image")
    rows = list(open_source(str(tmp_path)).rows())
    assert [(row.key, row.captions, row.problem and row.problem.cause) for row in rows] == [
        ("a", ("a cat", "another cat"), None),
        ("b", (), None),
        ("sub/c", ("a dog",), None),
        (None, (), "image-missing"),
    ]
    assert [row.number for row in rows] == [0, 1, 2, 3]


def test_a_link_to_a_folder_is_counted_and_a_closed_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    assert problems(tmp_path) == ["link-not-followed"]
    source = open_source(str(tmp_path))
    (tmp_path / "loop").unlink()
    tmp_path.rename(tmp_path.with_name("moved"))
    with pytest.raises(DataError, match="cannot be listed: No such file or directory"):
        list(source.rows())


def test_a_source_can_be_read_twice(table: Callable[..., Path]) -> None:
    source = open_source(str(table(3)))
    assert list(source.rows()) == list(source.rows())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.csv", r"does not exist; give a table \(\.csv, \.tsv, \.jsonl, \.parquet\)"),
        ("recipe:imagenet", "no recipe named 'imagenet'; there are: .*emoji"),
        ("picture.png", "ends in '.png'; known are"),
        ("nocaption.csv", r"no caption column; it has \['image', 'licence'\]"),
        ("empty.csv", r"no image column; it has \[\]"),
    ],
)
def test_an_unusable_source_is_explained(tmp_path: Path, spec: str, message: str) -> None:
    (tmp_path / "picture.png").write_bytes(b"x")
    (tmp_path / "nocaption.csv").write_text("image,licence\n")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match=message):
        open_source(spec if spec.startswith("recipe:") else str(tmp_path / spec))


@pytest.mark.parametrize(
    ("key", "clean"),
    [("a-1_b", "a-1_b"), ("a/b.c", "a_b_c"), ("naïve 猫", "naïve_猫"), ("./x", "__x"), ("1..2", "1__2")],
)
def test_keys_are_made_safe(key: str, clean: str) -> None:
    assert clean_key(key) == clean


@pytest.mark.parametrize("key", ["../x", "a/../../x", "..\\x", "/etc/x", "a\0b", "...", "", "k" * 81, "\udcff"])
def test_keys_that_cannot_be_meant_are_refused(key: str) -> None:
    with pytest.raises(BadRow) as caught:
        clean_key(key)
    assert caught.value.cause == "key-invalid"


def test_urls_and_paths_are_located_beside_the_table() -> None:
    base = Path("/data")
    assert locate("a.png", base) == "/data/a.png"
    assert locate("/abs/a.png", base) == "/abs/a.png"
    assert locate("s3://bucket/a.png", base) == "s3://bucket/a.png"
    assert locate("zip://a.png::s3://bucket/b.zip", base) == "zip://a.png::s3://bucket/b.zip"


def test_a_caption_that_is_not_text_keeps_its_row_number(tmp_path: Path) -> None:
    rows = [{"image": "x.png", "caption": None}, {"image": "x.png", "caption": ["a", 1]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second = open_source(str(tmp_path / "a.jsonl")).rows()
    assert (first.number, first.captions, first.problem) == (0, (), None)
    assert second.problem is not None
    assert "'caption' must hold text, got 1 of type int" in second.problem.detail
