"""Tables, and pictures over names instead of numbers: rates with their intervals in rows, and a matrix of counts.

ladder("By vendor", [("noto", [Rate(0.31, 0.28, 0.34)]), ("twemoji", [Rate(0.15, 0.13, 0.17)])], ["run a"])
matrix("Confusions", ["cat", "dog"], ["dog", "fox"], {(0, 0): 16, (1, 1): 9})
table(["", "run a"], [Row("top-1", ["15.17 %"])], "Results")
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.report.charts import COLOURS, WIDTH, Axis, figure, legend, link, marker, number

ROW, LINE, CELL = 36, 13, 30
NAMES = 132
"""Width of the names beside a matrix, and height of those above it."""


@dataclass(frozen=True)
class Rate:
    """A share between 0 and 1, or a score, and the ends of its interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None
    percent: bool = True

    def __str__(self) -> str:
        return f"{self.value:.2%}" if self.percent else f"{self.value:.3f}"

    def markup(self, most: float = 0.0, mark: str = "") -> str:
        """As the content of a table's cell; with ``most``, the end of the scale, it is also drawn with its interval."""
        ends = ""
        if self.low is not None and self.high is not None:
            ends = f"{self.low:.1%} to {self.high:.1%}" if self.percent else f"{self.low:.2f} to {self.high:.2f}"
        return f"{self}{mark} <small>{ends}</small>{self._drawn(most)}" if most else f"{self}{mark} <small>{ends}</small>"

    def _drawn(self, most: float) -> str:
        if not self.percent:  # on no common scale, but its place is kept
            return '<svg class="rate" aria-hidden="true" viewBox="0 0 100 12"></svg>'
        ends = (self.value, self.value if self.low is None else self.low, self.value if self.high is None else self.high)
        value, low, high = (4 + 92 * min(1.0, max(0.0, end / most)) for end in ends)
        span = f'<path class="grid" d="M4 6H96"/><path class="line" d="M{low:.1f} 6H{high:.1f}"/>'
        return f'<svg class="rate" aria-hidden="true" viewBox="0 0 100 12">{span}<path d="{marker(0, value, 6, 3.8)}"/></svg>'


class Row(NamedTuple):
    """A line of a table: its name, its cells as HTML, and the name of the rows that it begins a group of."""

    name: str
    cells: Sequence[str]
    group: str = ""


def table(
    head: Sequence[str], body: Sequence[Row], caption: str, data: Sequence[Sequence[object]] = (), *, words: bool = False
) -> str:
    """A table that scrolls by itself where it is too wide, with ``data`` as CSV; an empty string without rows.

    ``words``: it holds texts rather than numbers, so that its cells begin at the left and have several lines.
    """
    if not body:
        return ""
    columns = "".join(f'<th scope="col">{html.escape(name)}</th>' if name else "<td></td>" for name in head)
    lines, open_group = [], False
    for row in body:
        if row.group:
            lines.append("</tbody>" if open_group else "")
            lines.append(f'<tbody><tr><th scope="rowgroup" colspan="{len(head)}">{html.escape(row.group)}</th></tr>')
            open_group = True
        cells = "".join(f"<td>{cell}</td>" for cell in row.cells)
        lines.append(f'<tr><th scope="row">{html.escape(row.name)}</th>{cells}</tr>')
    inside = "".join(lines) + "</tbody>" if open_group else f"<tbody>{''.join(lines)}</tbody>"
    named, kind = html.escape(caption), ' class="words"' if words else ""
    whole = f"<table{kind}><caption>{named}</caption><thead><tr>{columns}</tr></thead>{inside}</table>"
    saved = link(caption, data) if data else ""
    return f'<div class="table"><div class="scroll" tabindex="0" role="region" aria-label="{named}">{whole}</div>{saved}</div>'


def ladder(title: str, steps: Sequence[tuple[str, Sequence[Rate | None]]], names: Sequence[str], note: str = "") -> str:
    """Rates with intervals on one scale from 0, a row for each name and in it a line for each of ``names``."""
    shown = [(label, rates) for label, rates in steps if any(rates)]
    ends = [rate.value if rate.high is None else rate.high for _, rates in shown for rate in rates if rate]
    if not ends:
        return ""
    across, shapes, y = Axis.over([0.0, max(ends)], 20, WIDTH - 24), [], 0.0
    height = sum(ROW + LINE * (len(rates) - 1) for _, rates in shown)
    as_text = _percent if all(rate.percent for _, rates in shown for rate in rates if rate) else number
    for value in across.ticks(5):
        shapes.append(f'<path class="grid" d="M{across(value):.1f} 0V{height + 4}"/>')
        shapes.append(f'<text x="{across(value):.1f}" y="{height + 20}" text-anchor="middle">{as_text(value)}</text>')
    data: list[list[object]] = [["name", "series", "value", "low", "high"]]
    for label, rates in shown:
        shapes.append(f'<text class="name" x="8" y="{y + 14:.0f}">{html.escape(shortened(label, 44))}</text>')
        for i, rate in enumerate(rates):
            if rate is None:
                continue
            at, colour = y + 24 + LINE * i, f"var(--c{i % COLOURS})"
            if rate.low is not None and rate.high is not None:
                shapes.append(
                    f'<path class="line" style="stroke:{colour}" d="M{across(rate.low):.1f} {at}H{across(rate.high):.1f}"/>'
                )
            words = html.escape(f"{label}, {names[i]}: {rate}")
            shapes.append(
                f'<path style="fill:{colour}" d="{marker(i, across(rate.value), at, 4)}"><title>{words}</title></path>'
            )
            data.append([label, names[i], rate.value, rate.low, rate.high])
        y += ROW + LINE * (len(rates) - 1)
    said = "; ".join(f"{label}: {', '.join(str(rate) for rate in rates if rate)}" for label, rates in shown) + "."
    return figure(title, "".join(shapes), said, data, size=(WIDTH, height + 26), legend=legend(names), note=note)


def matrix(
    title: str, down: Sequence[str], across: Sequence[str], counts: Mapping[tuple[int, int], int], note: str = ""
) -> str:
    """Counts by row and column; the darker a field the larger its number, which is written in it."""
    if not counts:
        return ""
    most, shapes = max(counts.values()), []
    for i, name in enumerate(down):
        y = NAMES + i * CELL
        shapes.append(f'<path class="grid" d="M{NAMES} {y}H{NAMES + len(across) * CELL}"/>')
        shapes.append(
            f'<text class="name" x="{NAMES - 8}" y="{y + 20}" text-anchor="end">{html.escape(shortened(name, 18))}</text>'
        )
    for j, name in enumerate(across):
        x = NAMES + j * CELL + 19
        turn = f'transform="rotate(-60 {x} {NAMES - 8})"'
        shapes.append(f'<text class="name" x="{x}" y="{NAMES - 8}" {turn}>{html.escape(shortened(name, 16))}</text>')
    for (i, j), count in sorted(counts.items()):
        x, y = NAMES + j * CELL, NAMES + i * CELL
        words = html.escape(f"{down[i]} taken for {across[j]}: {count}")
        field = f'x="{x + 1}" y="{y + 1}" width="{CELL - 2}" height="{CELL - 2}" rx="4"'
        shapes.append(
            f'<rect {field} style="fill:var(--c0);fill-opacity:{0.08 + 0.4 * count / most:.2f}"><title>{words}</title></rect>'
        )
        shapes.append(f'<text class="count" x="{x + CELL / 2:.0f}" y="{y + 20}" text-anchor="middle">{count}</text>')
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    said = "; ".join(f"{down[i]} taken for {across[j]} {count} times" for (i, j), count in ordered) + "."
    data: list[list[object]] = [["class", "taken for", "times"], *([down[i], across[j], count] for (i, j), count in ordered)]
    size = (NAMES + len(across) * CELL + 60, NAMES + len(down) * CELL + 2)
    return figure(title, "".join(shapes), said, data, size=size, note=note, kind="chart matrix")


def charts(drawn: Sequence[str]) -> str:
    """Pictures in as many columns as there is room for."""
    shown = [one for one in drawn if one]
    return f'<div class="charts">{"".join(shown)}</div>' if shown else ""


def shortened(name: str, most: int) -> str:
    """A name of at most so many letters."""
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"
