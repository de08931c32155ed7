"""Filters: each does what its name says, whatever the language, and each loss has its word."""

from __future__ import annotations

import pytest

from data_prep.filters import CaptionFilter, check_image
from data_prep.rows import BadRow
from data_prep.settings import Filters
from pipeline.errors import DataError


def verdict(filters: Filters, *captions: str) -> list[str] | str:
    """The captions kept, or the cause of rejection."""
    try:
        return CaptionFilter(filters).keep(list(captions))[0]
    except BadRow as bad:
        return bad.cause


@pytest.mark.parametrize(
    ("filters", "caption", "cause"),
    [
        (Filters(min_chars=3), "猫が", "caption-too-short"),
        (Filters(min_chars=2), "猫が", None),
        (Filters(max_chars=4), "a dog", "caption-too-long"),
        (Filters(keep_matching=r"\p{Han}"), "a dog", "caption-no-match"),
        (Filters(keep_matching=r"\p{Han}"), "黒い猫", None),
        (Filters(drop_matching=r"(?i)stock photo"), "Stock Photo of a dog", "caption-excluded"),
        (Filters(drop_matching=r"(?i)stock photo"), "a dog", None),
    ],
)
def test_each_filter_has_its_cause(filters: Filters, caption: str, cause: str | None) -> None:
    assert verdict(filters, caption) == (cause or [caption])


@pytest.mark.parametrize(
    "caption",
    ["untitled", "Untitled-2", "IMG_0042.jpg", "DSC01234", "image", "Photo 3", "thumbnail", "no caption", "N/A", "null"]
    + [
        "https://example.com/a.jpg",
        "www.example.com",
        "holiday 2019 (3).jpeg",
        "12345",
        "--- !!",
        "click to enlarge",
        "[image]",
    ],
)
def test_placeholders_are_recognised(caption: str) -> None:
    assert verdict(Filters(drop_placeholders=True), caption) == "caption-placeholder"


@pytest.mark.parametrize(
    "caption",
    ["a photo of a dog", "image of Saturn's rings", "icon painter at work", "黒い猫", "🐱", "No entry", "Testing a bridge", "é"]
    + ["logo of a bakery", "file cabinet", "Title page of a book", "the default dog", "see www.example.com for the dog"],
)
def test_captions_are_not_taken_for_placeholders(caption: str) -> None:
    assert verdict(Filters(drop_placeholders=True), caption) == [caption]


def test_bad_captions_beside_good_ones_are_dropped_and_counted() -> None:
    kept, dropped = CaptionFilter(Filters(min_chars=4, drop_placeholders=True)).keep(["a", "b", "IMG_1234", "a dog"])
    assert kept == ["a dog"]
    assert dropped == {"caption-too-short": 2, "caption-placeholder": 1}


def test_a_row_without_a_good_caption_is_rejected_for_its_first() -> None:
    assert verdict(Filters(min_chars=4, drop_placeholders=True), "IMG_1234", "a") == "caption-placeholder"


@pytest.mark.parametrize(
    ("filters", "size", "cause"),
    [
        (Filters(min_side=100), (99, 500), "image-too-small"),
        (Filters(min_side=100), (500, 100), None),
        (Filters(min_pixels=1000), (31, 32), "image-too-small"),
        (Filters(max_pixels=1000), (32, 32), "image-too-large"),
        (Filters(max_aspect=3), (300, 100), None),
        (Filters(max_aspect=3), (100, 301), "image-aspect"),
    ],
)
def test_images_are_judged_by_their_sides(filters: Filters, size: tuple[int, int], cause: str | None) -> None:
    if cause is None:
        check_image(filters, *size)
        return
    with pytest.raises(BadRow, match=f"^{cause}: {size[0]} x {size[1]} pixels"):
        check_image(filters, *size)


def test_a_regular_expression_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(DataError, match=r"--keep-matching '\(' is no regular expression"):
        CaptionFilter(Filters(keep_matching="("))


def test_a_regular_expression_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.filters.MATCH_SECONDS", 0.05)
    with pytest.raises(DataError, match=r"took over 0\.05 s .*without nested repeats"):
        verdict(Filters(drop_matching=r"(a|aa)+$"), "a" * 60 + "b")
