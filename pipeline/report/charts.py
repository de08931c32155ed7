"""Pictures of numbers as SVG inside a page: lines, steps, and reliability; ``panels`` has those without an x axis of numbers.

    lines("Loss", [Series("clip", [0, 10], [4.1, 3.2])], x="step")

A chart is a ``<figure>`` with a heading, the picture, a legend, and a link that saves its data as CSV. Colours are variables of
the page, so that light, dark and paper need no other picture; series differ in dash and marker as well as in colour. For those
who cannot see it, the picture has a name and a description that says where each series starts, ends, and lies.
"""

from __future__ import annotations

import csv
import html
import io
import math
import urllib.parse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 400, 236
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 40
DASHES = ("", "7 3", "2 3", "9 3 2 3", "1 3", "14 4")
COLOURS = 6
"""Series colours that the page's style sheet defines: --c0 to --c5."""
FEW = 40
"""Up to so many points each gets its marker; of more, some do where there are several series to tell apart."""


@dataclass(frozen=True)
class Series:
    """One line or one row of points; ``low`` and ``high`` are the ends of intervals, ``count`` what a point stands for."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    count: Sequence[float] = ()


@dataclass(frozen=True)
class Mark:
    """Something that happened at a place of the x axis."""

    x: float
    what: str


def lines(
    title: str, series: Sequence[Series], *, x: str, note: str = "", marks: Sequence[Mark] = (), diagonal: bool = False
) -> str:
    """Lines over a common x axis; an empty string where there is nothing to draw.

    Args:
        title: what the numbers are, with their unit.
        series: at most six are told apart.
        x: what the horizontal axis is.
        note: a sentence below the picture.
        marks: drawn as vertical lines.
        diagonal: both axes go from 0 to 1, and a faint line joins their ends.
    """
    drawn = [s for s in (_finite(one) for one in series) if s.x]
    if not drawn:
        return ""
    ends = [0.0, 1.0] if diagonal else []
    across = Axis.over([*ends, *(value for s in drawn for value in s.x)], LEFT, WIDTH - RIGHT)
    up = Axis.over([*ends, *(value for s in drawn for value in (*s.y, *s.low, *s.high))], HEIGHT - BOTTOM, TOP, padded=True)
    shapes = [_grid(across, up, x)]
    if diagonal:
        shapes.append(f'<path class="aside" d="M{across(0):.1f} {up(0):.1f}L{across(1):.1f} {up(1):.1f}"/>')
    for mark in marks:
        place = f"M{across(mark.x):.1f} {TOP}V{HEIGHT - BOTTOM}"
        shapes.append(f'<path class="aside" d="{place}"><title>{html.escape(mark.what)}</title></path>')
    for number, s in enumerate(drawn):
        points = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in zip(s.x, s.y, strict=True))
        shapes.append(f"<polyline {stroke(number)} points='{points}'/>" if len(s.x) > 1 else "")
        colour = f"stroke:var(--c{number % COLOURS})"
        for a, low, high in zip(s.x, s.low, s.high, strict=False):
            shapes.append(f'<path class="line" style="{colour}" d="M{across(a):.1f} {up(low):.1f}V{up(high):.1f}"/>')
        shapes.append(_markers(number, s, across, up, x, several=len(drawn) > 1))
    return figure(
        title, "".join(shapes), describe(drawn, x, marks), rows(drawn, x), legend=legend([s.name for s in drawn]), note=note
    )


def bars(title: str, series: Sequence[Series], *, x: str, note: str = "") -> str:
    """Steps of equal width, for histograms: ``x`` are the left edges."""
    drawn = [s for s in (_finite(one) for one in series) if len(s.x) > 1]
    if not drawn:
        return ""
    width = drawn[0].x[1] - drawn[0].x[0]
    across = Axis.over([*drawn[0].x, drawn[0].x[-1] + width], LEFT, WIDTH - RIGHT)
    up = Axis.over([0.0, *(value for s in drawn for value in s.y)], HEIGHT - BOTTOM, TOP)
    shapes = [_grid(across, up, x)]
    for number, s in enumerate(drawn):
        outline = f"M{across(s.x[0]):.1f} {up(0):.1f}" + "".join(
            f"V{up(b):.1f}H{across(a + width):.1f}" for a, b in zip(s.x, s.y, strict=True)
        )
        shapes.append(f'<path style="fill:var(--c{number % COLOURS});fill-opacity:.2" d="{outline}V{up(0):.1f}Z"/>')
        shapes.append(f'<path {stroke(number)} d="{outline}V{up(0):.1f}"/>')
    return figure(title, "".join(shapes), describe(drawn, x), rows(drawn, x), legend=legend([s.name for s in drawn]), note=note)


def reliability(title: str, series: Sequence[Series], *, note: str = "") -> str:
    """Accuracy over confidence, with the diagonal on which both agree."""
    return lines(title, series, x="mean confidence", note=note, diagonal=True)


# ---- the parts of a picture ----


class Axis:
    """From values to places of the picture, with ticks at round numbers."""

    def __init__(self, low: float, high: float, first: float, last: float) -> None:
        """``low`` and ``high`` lie at the places ``first`` and ``last``."""
        self.low, self.high, self._first, self._last = low, high, first, last

    @staticmethod
    def over(values: Sequence[float], first: float, last: float, padded: bool = False) -> Axis:
        """The axis on which all ``values`` have room."""
        low, high = min(values), max(values)
        if high - low < 1e-12 * max(1.0, abs(high)):
            low, high = low - (abs(low) or 1.0) * 0.05, high + (abs(high) or 1.0) * 0.05
        room = 0.06 * (high - low) if padded else 0.0
        return Axis(low - room, high + room, first, last)

    def __call__(self, value: float) -> float:
        """The place of a value."""
        return self._first + (value - self.low) / (self.high - self.low) * (self._last - self._first)

    def ticks(self, count: int = 5) -> list[float]:
        """Multiples of 1, 2 or 5 times a power of ten inside the range."""
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [round(step * number, 12) for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _grid(across: Axis, up: Axis, x: str) -> str:
    parts = []
    for value in up.ticks():
        parts.append(f'<path class="grid" d="M{LEFT} {up(value):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{up(value) + 4.5:.1f}" text-anchor="end">{number(value)}</text>')
    for value in across.ticks(5):
        parts.append(f'<path class="grid" d="M{across(value):.1f} {HEIGHT - BOTTOM}v5"/>')
        anchor = "end" if across(value) > WIDTH - RIGHT - 18 else "middle"
        place = f'x="{across(value):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="{anchor}"'
        parts.append(f"<text {place}>{number(value)}</text>")
    label = f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{html.escape(x)}</text>'
    return f"<g>{''.join(parts)}{label}</g>"


def stroke(number: int) -> str:
    """Attributes of the line of a series."""
    return f'class="line" style="stroke:var(--c{number % COLOURS})" stroke-dasharray="{DASHES[number % len(DASHES)]}"'


def marker(number: int, x: float, y: float, size: float = 3.2) -> str:
    """The path of a series' marker: disc, square, triangle, diamond, and both triangles' mirror images."""
    r = size
    shapes = (
        f"M{x - r:.1f} {y:.1f}a{r:.1f} {r:.1f} 0 1 0 {2 * r:.1f} 0a{r:.1f} {r:.1f} 0 1 0 {-2 * r:.1f} 0z",
        f"M{x - r:.1f} {y - r:.1f}h{2 * r:.1f}v{2 * r:.1f}h{-2 * r:.1f}z",
        f"M{x:.1f} {y - 1.3 * r:.1f}l{1.2 * r:.1f} {2.2 * r:.1f}h{-2.4 * r:.1f}z",
        f"M{x:.1f} {y - 1.4 * r:.1f}l{1.4 * r:.1f} {1.4 * r:.1f}l{-1.4 * r:.1f} {1.4 * r:.1f}l{-1.4 * r:.1f} {-1.4 * r:.1f}z",
        f"M{x:.1f} {y + 1.3 * r:.1f}l{1.2 * r:.1f} {-2.2 * r:.1f}h{-2.4 * r:.1f}z",
        f"M{x + 1.3 * r:.1f} {y:.1f}l{-2.2 * r:.1f} {1.2 * r:.1f}v{-2.4 * r:.1f}z",
    )
    return shapes[number % len(shapes)]


def _markers(index: int, s: Series, across: Axis, up: Axis, x: str, several: bool) -> str:
    chosen: Iterable[int] = range(len(s.x))
    if len(s.x) > FEW:
        chosen = [(2 * i + 1) * len(s.x) // 12 for i in range(6)] if several else ()
    most = max(s.count, default=1.0) or 1.0
    parts = []
    for i in chosen:
        size = 1.6 + 4.4 * math.sqrt(s.count[i] / most) if s.count else 3.2
        words = f"{s.name}: {number(s.y[i])} at {x} {number(s.x[i])}" + (f" ({number(s.count[i])})" if s.count else "")
        parts.append(f'<path d="{marker(index, across(s.x[i]), up(s.y[i]), size)}"><title>{html.escape(words)}</title></path>')
    return f'<g style="fill:var(--c{index % COLOURS})">{"".join(parts)}</g>' if parts else ""


def legend(names: Sequence[str]) -> str:
    """What the lines are, where there is more than one."""
    keys = "".join(f"<li>{_key(i)}{html.escape(name)}</li>" for i, name in enumerate(names))
    return f'<ul class="legend">{keys}</ul>' if len(names) > 1 else ""


def _key(number: int) -> str:
    mark = f'<path style="fill:var(--c{number % COLOURS})" d="{marker(number, 15, 6)}"/>'
    return f'<svg aria-hidden="true" width="30" height="12"><path {stroke(number)} d="M1 6H29"/>{mark}</svg>'


def figure(
    title: str,
    shapes: str,
    words: str,
    data: Sequence[Sequence[object]],
    *,
    size: tuple[float, float] = (WIDTH, HEIGHT),
    legend: str = "",
    note: str = "",
    kind: str = "chart",
) -> str:
    """A picture with its name, its description, what is said below it, and its data (the first row names the columns)."""
    below = f'<p class="note">{html.escape(note)}</p>' if note else ""
    frame = f'viewBox="0 0 {size[0]:.0f} {size[1]:.0f}" style="max-width:{1.25 * size[0]:.0f}px"'
    said = f"<title>{html.escape(title)}</title><desc>{html.escape(words)}</desc>"
    picture = f'<svg role="img" {frame}>{said}{shapes}</svg>'
    caption = f"<figcaption>{html.escape(title)}</figcaption>"
    return f'<figure class="{kind}">{caption}{picture}{legend}{below}{link(title, data)}</figure>'


def link(title: str, data: Sequence[Sequence[object]]) -> str:
    """Data as a link that a browser saves as CSV; nothing is fetched."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([f"{v:.9g}" if isinstance(v, float) else v for v in row] for row in data)
    address = "data:text/csv;charset=utf-8," + urllib.parse.quote(text.getvalue())
    return f'<a class="csv" download="{file_name(title)}" href="{address}" aria-label="CSV of {html.escape(title)}">CSV</a>'


def describe(series: Sequence[Series], x: str, marks: Sequence[Mark] = ()) -> str:
    """The picture in words."""
    parts = [
        f"{s.name}: from {number(s.y[0])} at {x} {number(s.x[0])} to {number(s.y[-1])} at {number(s.x[-1])}, "
        f"between {number(min(s.y))} and {number(max(s.y))}"
        if len(s.x) > 1
        else f"{s.name}: {number(s.y[0])} at {x} {number(s.x[0])}"
        for s in series
    ]
    return "; ".join([*parts, *(mark.what for mark in marks)]) + "."


def rows(series: Sequence[Series], x: str) -> list[list[object]]:
    """The data of series, names of columns first."""
    table: list[list[object]] = [["series", x, "value", "low", "high", "count"]]
    for s in series:
        extra = (s.low, s.high, s.count)
        for i, (a, b) in enumerate(zip(s.x, s.y, strict=True)):
            table.append([s.name, float(a), float(b), *(float(e[i]) if i < len(e) else "" for e in extra)])
    return table


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
    """Without points that cannot be drawn; intervals and counts stay only where all points do."""
    keep = [i for i, (a, b) in enumerate(zip(series.x, series.y, strict=True)) if math.isfinite(a) and math.isfinite(b)]
    if len(keep) == len(series.x):
        return series
    return Series(series.name, [series.x[i] for i in keep], [series.y[i] for i in keep])
