"""The page: self-contained, well-formed, complete for one run and for several, honest about what is missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.eval.run import main as evaluate
from pipeline.report.main import main
from pipeline.report.record import beyond_noise, read_run
from tests.eval.helpers import write_noise
from tests.eval.trained import TINY, write_run

VOID = {"meta", "img", "br", "path", "circle", "polyline", "image"}


class Checked(HTMLParser):
    """Every element is closed in order; what would be fetched is collected."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for key, value in attrs:
            if key in ("src", "href") and not (value or "").startswith(("data:", "#")):
                self.fetched.append(str(value))
        if tag == "img":
            assert dict(attrs).get("alt"), "a picture without words"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def checked(path: Path) -> Checked:
    found = Checked()
    found.feed(path.read_text(encoding="utf-8"))
    assert found.open == []
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with metrics, one checkpoint, and its evaluation."""
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY}, sets=(str(write_noise(tmp_path / "noise <b>", 40)),))
    rows = [
        {"step": s, "loss": 5 - s / 10, "lr": 0.1, "logit_scale": 14.3, "loss/clip": 5 - s / 10, "temperature<i>": s}
        for s in range(1, 41)
    ]
    text = "\n".join(json.dumps(row) for row in [*rows, {"event": "resume", "step": 20}])
    (cfg.run_dir / "metrics.jsonl").write_text(text + "\n")
    assert evaluate([str(cfg.run_dir)]) == 0
    return cfg.run_dir


def test_one_run(run: Path) -> None:
    assert main([str(run)]) == 0
    page = checked(run / "report.html")
    assert page.fetched == [], "the page stands alone"
    assert page.headings == ["Results", "Training", "On the sphere", "Calibration", "Where the numbers come from"]
    text = (run / "report.html").read_text()
    assert "noise <b>" not in text, "names are escaped"
    assert text.count('class="row"') == 12, "what captions find"
    assert "the centroids are" in text
    result = read_run(run).newest("noise <b>")
    assert f"{result['zero_shot']['accuracy@1']:.2%}" in text
    assert f"| tiny | noise <b> | 40 | {result['zero_shot']['accuracy@1']:.2%} |" in (run / "report.md").read_text()


def test_several_runs_are_compared_with_the_first(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text((run / "config.yaml").read_text().replace("name: tiny", "name: other"))
    result = json.loads((run / "eval.jsonl").read_text())
    result["zero_shot"] |= {"accuracy@1": 0.99, "interval@1": [0.98, 1.0]}
    (other / "eval.jsonl").write_text(json.dumps(result) + "\n" + json.dumps({"set": "gone", "error": "DataError: x"}) + "\n")
    assert main([str(run), str(other), "--out", str(tmp_path / "both"), "--no-pictures"]) == 0
    text = (tmp_path / "both" / "report.html").read_text()
    checked(tmp_path / "both" / "report.html")
    assert len(re.findall("better beyond noise", text)) == 1
    assert "other: gone: DataError: x" in text


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY})
    assert main([str(cfg.run_dir)]) == 0
    assert checked(cfg.run_dir / "report.html").headings == ["Where the numbers come from"]


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a run's folder: config.yaml is missing; give runs/NAME"):
        main([str(tmp_path)])


def test_long_curves_are_averaged(run: Path) -> None:
    rows = [json.dumps({"step": s, "loss": s % 2}) for s in range(1, 3001)]
    (run / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    steps, losses = read_run(run).curve("loss")
    assert (len(steps), steps[0], set(losses)) == (300, 5.5, {0.5})


def test_noise_is_what_the_intervals_of_both_allow() -> None:
    def rate(value: float, half: float) -> dict[str, object]:
        return {"r": value, "i": [value - half, value + half]}

    assert not beyond_noise(rate(0.50, 0.03), rate(0.54, 0.03), "r", "i")
    assert beyond_noise(rate(0.50, 0.03), rate(0.55, 0.03), "r", "i")
