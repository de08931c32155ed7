"""Pictures of numbers: well-formed, described in words, with their data, told apart without colour."""

from __future__ import annotations

import csv
import io
import re
import urllib.parse
import xml.etree.ElementTree as ET

import pytest

from pipeline.report.charts import Axis, Mark, Series, bars, file_name, lines, marker, number, reliability
from pipeline.report.panels import Rate, Row, ladder, matrix, table

HOSTILE = '<script>alert("x")</script> & Co'


def parsed(figure: str) -> ET.Element:
    return ET.fromstring(figure)  # raises where it is not well-formed


def data(figure: str) -> list[list[str]]:
    (link,) = parsed(figure).iter("a")
    return list(csv.reader(io.StringIO(urllib.parse.unquote(link.attrib["href"].partition(",")[2]))))


def test_a_chart_says_in_words_what_it_shows() -> None:
    series = [Series("a", [0, 10], [4.0, 2.0]), Series("b", [0, 10], [5.0, 5.5])]
    figure = parsed(lines("Loss", series, x="step", marks=[Mark(5, "resumed at step 5")]))
    picture = figure.find("svg")
    assert picture is not None and picture.attrib["role"] == "img"
    assert picture.findtext("title") == "Loss"
    assert picture.findtext("desc") == (
        "a: from 4 at step 0 to 2 at 10, between 2 and 4; "
        "b: from 5 at step 0 to 5.5 at 10, between 5 and 5.5; resumed at step 5."
    )
    assert [item.find("svg").tail for item in figure.iter("li")] == ["a", "b"]  # type: ignore[union-attr]


def test_series_differ_in_dash_and_marker_as_well_as_in_colour() -> None:
    figure = lines("x", [Series(str(i), [0, 1], [i, i + 1]) for i in range(6)], x="step")
    styles = re.findall(r"var\(--(c\d)\)\" stroke-dasharray=\"([^\"]*)\" points", figure)
    assert len({colour for colour, _ in styles}) == len({dash for _, dash in styles}) == 6
    assert len({marker(i, 0, 0) for i in range(6)}) == 6


def test_the_data_is_beside_the_picture() -> None:
    series = Series('with "quotes", and a comma', [1, 2], [0.5, 0.25], [0.4, 0.2], [0.6, 0.3])
    figure = lines("Recall at 1 (%)", [series], x="step")
    (link,) = parsed(figure).iter("a")
    assert link.attrib["download"] == "recall-at-1.csv"
    assert link.attrib["aria-label"] == "CSV of Recall at 1 (%)"
    assert data(figure)[0] == ["series", "step", "value", "low", "high", "count"]
    assert data(figure)[2] == [series.name, "2", "0.25", "0.2", "0.3", ""]


def test_names_cannot_become_markup() -> None:
    rate = Rate(0.5, 0.4, 0.6)
    for figure in (
        lines(
            HOSTILE, [Series(HOSTILE, [0, 1], [0, 1]), Series("b", [0], [1])], x=HOSTILE, note=HOSTILE, marks=[Mark(0, HOSTILE)]
        ),
        bars(HOSTILE, [Series(HOSTILE, [0, 1], [3, 4])], x=HOSTILE),
        reliability(HOSTILE, [Series(HOSTILE, [0.5], [0.4], count=[3])]),
        ladder(HOSTILE, [(HOSTILE, [rate, rate])], [HOSTILE, HOSTILE], HOSTILE),
        matrix(HOSTILE, [HOSTILE], [HOSTILE], {(0, 0): 3}, HOSTILE),
        table([HOSTILE], [Row(HOSTILE, [], HOSTILE)], HOSTILE, [[HOSTILE]]),
    ):
        assert "<script" not in figure
        parsed(figure)


def test_what_cannot_be_drawn_is_left_out() -> None:
    assert lines("x", [], x="step") == ""
    assert lines("x", [Series("a", [1], [float("nan")])], x="step") == ""
    assert bars("x", [Series("a", [1], [2])], x="bin") == ""
    assert ladder("x", [("a", [None])], ["run"]) == matrix("x", [], [], {}) == table([""], [], "x") == ""
    figure = lines("x", [Series("a", [1, 2, 3], [1.0, float("inf"), 2.0])], x="step")
    assert "nan" not in figure and "inf" not in figure
    parsed(figure)


def test_a_ladder_keeps_the_order_and_the_intervals() -> None:
    steps = [("noto", [Rate(0.3, 0.2, 0.4), None]), ("fluent", [Rate(0.1), Rate(0.2)])]
    assert data(ladder("Vendors", steps, ["a", "b"])) == [
        ["name", "series", "value", "low", "high"],
        ["noto", "a", "0.3", "0.2", "0.4"],
        ["fluent", "a", "0.1", "", ""],
        ["fluent", "b", "0.2", "", ""],
    ]


def test_a_matrix_says_what_was_taken_for_what() -> None:
    figure = matrix("Confusions", ["cat", "dog"], ["dog", "fox"], {(0, 0): 2, (1, 1): 9})
    assert "dog taken for fox 9 times; cat taken for dog 2 times." in figure
    assert data(figure)[1:] == [["dog", "fox", "9"], ["cat", "dog", "2"]]


def test_a_tables_heads_belong_to_their_rows_and_columns() -> None:
    found = parsed(table(["", "run"], [Row("top-1", ["1 %"], "set a"), Row("top-5", ["5 %"])], "Results"))
    assert [(head.attrib["scope"], head.text) for head in found.iter("th")] == [
        ("col", "run"),
        ("rowgroup", "set a"),
        ("row", "top-1"),
        ("row", "top-5"),
    ]
    assert found.find(".//caption").text == "Results"  # type: ignore[union-attr]


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [1e-7, 2e-7], [-5.0, 1e9], [1e30, 1e30]])
def test_ticks_are_round_and_inside(values: list[float]) -> None:
    axis = Axis.over(values, 0, 100)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 12
    assert all(axis.low - 1e-9 * abs(axis.low) <= tick <= axis.high + 1e-9 * abs(axis.high) for tick in ticks)
    assert ticks == sorted(set(ticks))


def test_numbers_and_names() -> None:
    values = (0, 12000, 1000, 999, 0.314159, 5e-5, -2.5)
    assert [number(v) for v in values] == ["0", "12,000", "1,000", "999", "0.314", "5e-05", "-2.5"]
    assert file_name("Loss of clip / B (%)") == "loss-of-clip-b.csv"
