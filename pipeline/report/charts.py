"""Pictures of numbers as SVG inside a page: lines, bars, and points with intervals.

    lines("Loss", [Series("clip", [0, 10], [4.1, 3.2])], x="step")

A chart is a ``<figure>`` with a heading, the picture, a legend, and a link that saves its data as CSV. Colours are variables of
the page, so that light, dark and paper need no other picture; series differ in dash as well as in colour. For those who
cannot see it, the picture has a description that says where each series starts, ends, and lies.
"""

from __future__ import annotations

import html
import math
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 12, 34
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2", "12 4")
COLOURS = 6
"""Series colours that the page's style sheet defines: --c0 to --c5."""


@dataclass(frozen=True)
class Series:
    """One line or one row of points; ``low`` and ``high`` are the ends of intervals."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def lines(title: str, series: Sequence[Series], *, x: str, note: str = "", zero: bool = False) -> str:
    """Lines over a common x axis; an empty string where there is nothing to draw.

    Args:
        title: what the numbers are, with their unit.
        series: at most six are told apart.
        x: what the horizontal axis is.
        note: a sentence below the picture.
        zero: let the vertical axis include 0.
    """
    drawn = [s for s in (_finite(one) for one in series) if s.x]
    if not drawn:
        return ""
    across = _Axis.over([value for s in drawn for value in s.x], LEFT, WIDTH - RIGHT)
    values = [value for s in drawn for value in (*s.y, *s.low, *s.high)] + ([0.0] if zero else [])
    up = _Axis.over(values, HEIGHT - BOTTOM, TOP, padded=True)
    shapes = [_grid(across, up, x)]
    for number, s in enumerate(drawn):
        style = f'class="line" style="stroke:var(--c{number % COLOURS})" stroke-dasharray="{DASHES[number % len(DASHES)]}"'
        points = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in zip(s.x, s.y, strict=True))
        shapes.append(f'<polyline {style} points="{points}"/>' if len(s.x) > 1 else "")
        if len(s.x) <= 40:
            dots = (f'<circle cx="{across(a):.1f}" cy="{up(b):.1f}" r="2.6"/>' for a, b in zip(s.x, s.y, strict=True))
            shapes.append(f'<g style="fill:var(--c{number % COLOURS})">{"".join(dots)}</g>')
        for a, low, high in zip(s.x, s.low, s.high, strict=False):
            shapes.append(f'<path {style} d="M{across(a):.1f} {up(low):.1f}V{up(high):.1f}"/>')
    return _figure(title, "".join(shapes), drawn, x, note)


def bars(title: str, series: Sequence[Series], *, x: str, note: str = "") -> str:
    """Steps of equal width, for histograms: ``x`` are the left edges."""
    drawn = [s for s in (_finite(one) for one in series) if len(s.x) > 1]
    if not drawn:
        return ""
    width = drawn[0].x[1] - drawn[0].x[0]
    across = _Axis.over([*drawn[0].x, drawn[0].x[-1] + width], LEFT, WIDTH - RIGHT)
    up = _Axis.over([0.0, *(value for s in drawn for value in s.y)], HEIGHT - BOTTOM, TOP)
    shapes = [_grid(across, up, x)]
    for number, s in enumerate(drawn):
        outline = f"M{across(s.x[0]):.1f} {up(0):.1f}" + "".join(
            f"V{up(b):.1f}H{across(a + width):.1f}" for a, b in zip(s.x, s.y, strict=True)
        )
        style = f"stroke:var(--c{number % COLOURS});fill:var(--c{number % COLOURS});fill-opacity:.22"
        shapes.append(f'<path class="line" style="{style}" d="{outline}V{up(0):.1f}Z"/>')
    return _figure(title, "".join(shapes), drawn, x, note)


def reliability(title: str, series: Sequence[Series], *, note: str = "") -> str:
    """Accuracy over confidence, with the diagonal on which both agree."""
    diagonal = Series("confidence = accuracy", [0.0, 1.0], [0.0, 1.0])
    return lines(title, [*series, diagonal], x="mean confidence", note=note, zero=True)


# ---- the parts of a picture ----


class _Axis:
    """From values to places of the picture, with ticks at round numbers."""

    def __init__(self, low: float, high: float, first: float, last: float) -> None:
        self.low, self.high, self._first, self._last = low, high, first, last

    @staticmethod
    def over(values: Sequence[float], first: float, last: float, padded: bool = False) -> _Axis:
        low, high = min(values), max(values)
        if high - low < 1e-12 * max(1.0, abs(high)):
            low, high = low - (abs(low) or 1.0) * 0.05, high + (abs(high) or 1.0) * 0.05
        room = 0.06 * (high - low) if padded else 0.0
        return _Axis(low - room, high + room, first, last)

    def __call__(self, value: float) -> float:
        return self._first + (value - self.low) / (self.high - self.low) * (self._last - self._first)

    def ticks(self, count: int = 5) -> list[float]:
        """Multiples of 1, 2 or 5 times a power of ten inside the range."""
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [round(step * number, 12) for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _grid(across: _Axis, up: _Axis, x: str) -> str:
    parts = []
    for value in up.ticks():
        parts.append(f'<path class="grid" d="M{LEFT} {up(value):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{up(value) + 3.5:.1f}" text-anchor="end">{number(value)}</text>')
    for value in across.ticks(6):
        parts.append(f'<path class="grid" d="M{across(value):.1f} {HEIGHT - BOTTOM}v4"/>')
        anchor = "end" if across(value) > WIDTH - RIGHT - 14 else "middle"
        place = f'x="{across(value):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="{anchor}"'
        parts.append(f"<text {place}>{number(value)}</text>")
    label = f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{html.escape(x)}</text>'
    return f'<g aria-hidden="true">{"".join(parts)}{label}</g>'


def _figure(title: str, shapes: str, series: Sequence[Series], x: str, note: str) -> str:
    keys = "".join(f"<li>{_key(i)}{html.escape(s.name)}</li>" for i, s in enumerate(series))
    legend = f'<ul class="legend">{keys}</ul>' if len(series) > 1 else ""
    below = f'<p class="note">{html.escape(note)}</p>' if note else ""
    words = html.escape(description(title, series, x))
    link = f'download="{html.escape(file_name(title))}" href="{csv_link(series, x)}" aria-label="CSV of {html.escape(title)}"'
    return (
        f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption>'
        f'<svg role="img" viewBox="0 0 {WIDTH} {HEIGHT}" aria-label="{words}">{shapes}</svg>{legend}{below}'
        f'<a class="csv" {link}>CSV</a></figure>'
    )


def _key(number: int) -> str:
    dash, colour = DASHES[number % len(DASHES)], number % COLOURS
    line = f'<path class="line" d="M1 4H25" style="stroke:var(--c{colour})" stroke-dasharray="{dash}"/>'
    return f'<svg aria-hidden="true" width="26" height="8">{line}</svg>'


def description(title: str, series: Sequence[Series], x: str) -> str:
    """The picture in words."""
    parts = [
        f"{s.name}: from {number(s.y[0])} at {x} {number(s.x[0])} to {number(s.y[-1])} at {number(s.x[-1])}, "
        f"between {number(min(s.y))} and {number(max(s.y))}"
        for s in series
    ]
    return f"{title}. " + "; ".join(parts)


def csv_link(series: Sequence[Series], x: str) -> str:
    """The data as a link that a browser saves; nothing is fetched."""
    rows = [f"series,{x},value,low,high"]
    for s in series:
        name = '"' + s.name.replace('"', '""') + '"'
        for i, (a, b) in enumerate(zip(s.x, s.y, strict=True)):
            ends = f"{s.low[i]:.9g},{s.high[i]:.9g}" if i < len(s.low) else ","
            rows.append(f"{name},{a:.9g},{b:.9g},{ends}")
    return "data:text/csv;charset=utf-8," + urllib.parse.quote("\n".join(rows) + "\n")


def file_name(title: str) -> str:
    """A plain file name from a title."""
    words = "".join(letter.lower() if letter.isalnum() else "-" for letter in title)
    return "-".join(part for part in words.split("-") if part) + ".csv"


def number(value: float) -> str:
    """A number as people write it: 12,000, 0.31, 5e-05."""
    if value == 0:
        return "0"
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.1g}"
    return f"{value:.3g}"


def _finite(series: Series) -> Series:
    """Without points that cannot be drawn; intervals stay only where all points do."""
    keep = [i for i, (a, b) in enumerate(zip(series.x, series.y, strict=True)) if math.isfinite(a) and math.isfinite(b)]
    if len(keep) == len(series.x):
        return series
    return Series(series.name, [series.x[i] for i in keep], [series.y[i] for i in keep])
