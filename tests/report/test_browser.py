"""The page in a real browser: nothing is fetched or complained about, it fits a phone, keys and screen readers reach all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.report.main import main
from tests.report.browser import Browser
from tests.report.pages import finished_run, rich_results

pytestmark = pytest.mark.slow  # starts Chromium


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = finished_run(tmp_path_factory.mktemp("run"))
    with (folder / "eval.jsonl").open("a") as file:
        for result in rich_results(json.loads((folder / "eval.jsonl").read_text())):
            file.write(json.dumps(result) + "\n")
    other = shutil.copytree(folder, folder.parent / "other")
    (other / "config.yaml").write_text((other / "config.yaml").read_text().replace("name: tiny", "name: other"))
    assert main([str(folder), str(other)]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


def test_nothing_is_fetched_and_nothing_is_wrong(browser: Browser, report: Path) -> None:
    page = browser.open(report, width=1440, height=900)
    assert page.evaluate("document.title") == "tiny, other"
    assert page.requested == [] and page.complaints == []
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


@pytest.mark.parametrize("width", [320, 390, 768, 1440])
def test_it_never_scrolls_sideways(browser: Browser, report: Path, width: int) -> None:
    page = browser.open(report, width=width, height=844)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_text_in_pictures_is_not_tiny_and_stays_inside(browser: Browser, report: Path) -> None:
    """At least 9 pixels on a phone and 10 on a laptop, and no label beyond the edge of its picture."""
    for width, least in ((390, 9), (1440, 10)):
        page = browser.open(report, width=width, height=844)
        smallest = page.evaluate(
            "Math.min(...[...document.querySelectorAll('.chart svg[role=img]')].filter(svg => svg.querySelector('text'))"
            ".map(svg => 13 * svg.getScreenCTM().a))"
        )
        assert smallest >= least
        outside = page.evaluate(
            "[...document.querySelectorAll('.chart svg[role=img] text')].filter(text => {"
            " const own = text.getBoundingClientRect(), frame = text.ownerSVGElement.getBoundingClientRect();"
            " return own.left < frame.left - 1 || own.right > frame.right + 1 || own.bottom > frame.bottom + 1})"
            ".map(text => text.textContent)"
        )
        assert outside == []


def test_a_screen_reader_is_told_what_every_picture_shows(browser: Browser, report: Path) -> None:
    page = browser.open(report, width=1440, height=900)
    nodes = page.tree()
    charts = page.evaluate("document.querySelectorAll('figure svg[role=img]').length")
    described = [node for node in nodes if node["role"] in ("image", "img") and node["name"] and node["description"]]
    assert charts > 40 and len(described) >= charts
    assert all(node["name"] for node in nodes if node["role"] in ("image", "img", "link", "region", "table", "navigation"))
    assert {"banner", "navigation", "main"} <= {node["role"] for node in nodes}


def test_tab_reaches_every_control_in_order_and_shows_where_it_is(browser: Browser, report: Path) -> None:
    page = browser.open(report, width=1440, height=900)
    candidates = "[...document.querySelectorAll('a[href], summary, [tabindex=\"0\"]')]"
    page.evaluate(f"window.controls = {candidates}.filter(one => one.checkVisibility())")
    count = page.evaluate("controls.length")
    assert count > 20
    reached = []
    for _ in range(count):
        page.press("Tab")
        reached.append(page.evaluate("controls.indexOf(document.activeElement)"))
        if len(reached) % 7 == 1:
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert reached == list(range(count))


def test_the_first_tab_and_enter_skip_to_the_content(browser: Browser, report: Path) -> None:
    page = browser.open(report, width=1440, height=900)
    page.press("Tab")
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0, "seen once it has the focus"
    page.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_dark_is_dark_and_paper_is_white(browser: Browser, report: Path, tmp_path: Path) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    assert browser.open(report, width=1440, height=900).evaluate(ground) == "rgb(253, 253, 251)"
    dark = browser.open(report, width=1440, height=900, dark=True)
    assert dark.evaluate(ground) == "rgb(21, 23, 28)"
    dark.printed(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
