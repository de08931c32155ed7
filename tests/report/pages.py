"""Run folders for tests of the page, and a reader that checks a page's structure while it reads."""

from __future__ import annotations

import copy
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pipeline.eval.run import main as evaluate
from tests.eval.helpers import write_noise
from tests.eval.trained import TINY, write_run

VOID = {"meta", "img", "br", "path", "circle", "rect", "polyline", "image"}


class Checked(HTMLParser):
    """Every element is closed in order; headings go down one level at a time; what a screen reader needs is there."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.headings: list[tuple[int, str]] = []
        self.landmarks: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.language = ""
        self.pictures = self.captions = 0
        self.unnamed = False  # just inside a picture whose name has not come yet
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not self.unnamed or tag == "title", f"a picture begins with {tag} instead of its name"
        self.unnamed = tag == "svg" and ("role", "img") in attrs
        if tag not in VOID:
            self.open.append(tag)
        given = {key: value or "" for key, value in attrs}
        self.ids += [given["id"]] if "id" in given else []
        for key in ("src", "href"):
            if not given.get(key, "#").startswith(("data:", "#")):
                self.fetched.append(given[key])
        if tag == "a" and given["href"].startswith("#"):
            self.targets.append(given["href"][1:])
        if tag == "a" and given["href"].startswith("data:"):
            assert given.get("aria-label", "").startswith("CSV of "), "a link to data that does not say which"
        if tag == "img":
            assert given.get("alt"), "a picture without words"
        if tag == "svg":
            assert given.get("role") == "img" or given.get("aria-hidden") == "true", (
                "a picture that is neither named nor hidden"
            )
            self.pictures += given.get("role") == "img"
        if tag == "th":
            assert given.get("scope") in ("col", "row", "rowgroup")
        if tag == "section":
            assert given.get("aria-labelledby"), "a section without a name"
        if tag == "html":
            self.language = given.get("lang", "")
        if tag in ("header", "nav", "main"):
            self.landmarks.append(tag)
        self.captions += (tag == "caption") - (tag == "table")
        if len(tag) == 2 and tag[0] == "h" and tag[1].isdigit():
            level = int(tag[1])
            assert level <= (self.headings[-1][0] if self.headings else 0) + 1, f"{tag} after {self.headings[-1:]}"
            self.headings.append((level, ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.headings and self.open[-1] == f"h{self.headings[-1][0]}":
            level, text = self.headings[-1]
            self.headings[-1] = (level, text + data)

    def sections(self) -> list[str]:
        return [text for level, text in self.headings if level == 2]


def finished_run(folder: Path) -> Path:
    """A run with metrics, one checkpoint, and its evaluation."""
    cfg, _ = write_run(folder / "runs", {"inline": TINY}, sets=(str(write_noise(folder / "noise <b>", 40)),))
    rows = [
        {
            "step": s,
            "loss": 5 - s / 10,
            "lr": 0.1,
            "logit_scale": 14.3,
            "loss/clip": 5 - s / 10,
            "temperature<i>": s,
            "dropped": 0,
        }
        for s in range(1, 41)
    ]
    text = "\n".join(json.dumps(row) for row in [*rows, {"event": "resume", "step": 20}])
    (cfg.run_dir / "metrics.jsonl").write_text(text + "\n")
    assert evaluate([str(cfg.run_dir)]) == 0
    return cfg.run_dir


def rate(value: float, half: float = 0.02) -> dict[str, Any]:
    return {"n": 100, "correct": round(100 * value), "accuracy": value, "interval": [value - half, value + half]}


def rich_results(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A measured result as if there were two more sets, three steps, and every protocol."""
    found = []
    for step in (20, 30, 40):
        for place, name in enumerate(("noto", "fluent", "twemoji")):
            one = copy.deepcopy(result) | {"set": name, "step": step}
            value = 0.5 - 0.1 * place + step / 1000
            one["zero_shot"] |= {"accuracy@1": value, "interval@1": [value - 0.02, value + 0.02]}
            one["geometry"] |= {"centroid_distance": 1 - step / 100, "spectrum_image": [3.0, 2.0, 1.0]}
            found.append(one)
    shots = {str(k): {"accuracy": [0.1 * k] * 3, "mean": 0.05 * k, "std": 0.01} for k in (1, 2, 4)}
    found[-1] |= {
        "probes": {"train_samples": 9, "knn": {"k": 20, **rate(0.4)}, "linear": rate(0.6), "few_shot": shots},
        "arithmetic": {
            **rate(0.3),
            "chance": 0.01,
            "scales": [{"scale": s, **rate(0.1 + s / 10)} for s in (0.0, 1.0)],
            "by_kind": {"skin <tone>": rate(0.3), "gender": rate(0.2)},
        },
        "composition": {
            "negatives": {**rate(0.6), "by_kind": {"swap": rate(0.5), "add": rate(0.7)}},
            "pairs": {"n": 9, "text": rate(0.3), "image": rate(0.2), "group": rate(0.1)},
        },
        "captioning": {"n": 2, "cider": 0.83, "interval": [0.7, 0.9], "examples": [["k1", "a red <car>", "red car"]]},
        "juggling": {"balls": 3, "by": {"hand": 0.25}},
    }
    return found
