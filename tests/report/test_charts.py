"""Pictures of numbers: well-formed, described in words, with their data."""

from __future__ import annotations

import csv
import io
import urllib.parse
import xml.etree.ElementTree as ET

import pytest

from pipeline.report.charts import Series, _Axis, bars, file_name, lines, number, reliability

HOSTILE = '<script>alert("x")</script> & Co'


def parsed(figure: str) -> ET.Element:
    return ET.fromstring(figure)  # raises where it is not well-formed


def test_a_chart_says_in_words_what_it_shows() -> None:
    figure = parsed(lines("Loss", [Series("a", [0, 10], [4.0, 2.0]), Series("b", [0, 10], [5.0, 5.5])], x="step"))
    words = figure.find("svg").attrib["aria-label"]
    assert words == "Loss. a: from 4 at step 0 to 2 at 10, between 2 and 4; b: from 5 at step 0 to 5.5 at 10, between 5 and 5.5"
    assert [item.find("svg").tail for item in figure.find("ul")] == ["a", "b"]


def test_the_data_is_beside_the_picture() -> None:
    series = Series('with "quotes", and a comma', [1, 2], [0.5, 0.25], [0.4, 0.2], [0.6, 0.3])
    figure = parsed(lines("Recall at 1 (%)", [series], x="step"))
    (link,) = figure.findall("a")
    assert link.attrib["download"] == "recall-at-1.csv"
    rows = list(csv.reader(io.StringIO(urllib.parse.unquote(link.attrib["href"].partition(",")[2]))))
    assert rows[0] == ["series", "step", "value", "low", "high"]
    assert rows[2] == [series.name, "2", "0.25", "0.2", "0.3"]


def test_names_cannot_become_markup() -> None:
    for figure in (
        lines(HOSTILE, [Series(HOSTILE, [0, 1], [0, 1]), Series("b", [0], [1])], x=HOSTILE, note=HOSTILE),
        bars(HOSTILE, [Series(HOSTILE, [0, 1], [3, 4])], x=HOSTILE),
        reliability(HOSTILE, [Series(HOSTILE, [0.5], [0.4])]),
    ):
        assert "<script" not in figure
        parsed(figure)


def test_what_cannot_be_drawn_is_left_out() -> None:
    assert lines("x", [], x="step") == ""
    assert lines("x", [Series("a", [1], [float("nan")])], x="step") == ""
    assert bars("x", [Series("a", [1], [2])], x="bin") == ""
    figure = lines("x", [Series("a", [1, 2, 3], [1.0, float("inf"), 2.0])], x="step")
    assert "nan" not in figure and "inf" not in figure
    parsed(figure)


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [1e-7, 2e-7], [-5.0, 1e9], [1e30, 1e30]])
def test_ticks_are_round_and_inside(values: list[float]) -> None:
    axis = _Axis.over(values, 0, 100)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 12
    assert all(axis.low - 1e-9 * abs(axis.low) <= tick <= axis.high + 1e-9 * abs(axis.high) for tick in ticks)
    assert ticks == sorted(set(ticks))


def test_numbers_and_names() -> None:
    assert [number(v) for v in (0, 12000, 1000, 999, 0.314159, 5e-5, -2.5)] == [
        "0",
        "12,000",
        "1,000",
        "999",
        "0.314",
        "5e-05",
        "-2.5",
    ]
    assert file_name("Loss of clip / B (%)") == "loss-of-clip-b.csv"
