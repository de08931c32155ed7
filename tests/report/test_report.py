"""The page: self-contained, well-formed, complete for one run and for several, honest about what is missing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint.find import complete_steps
from pipeline.config import RunConfig
from pipeline.dist import World
from pipeline.errors import DataError
from pipeline.eval.target import load
from pipeline.report.gallery import plane
from pipeline.report.main import main
from pipeline.report.panels import Rate
from pipeline.report.record import read_run
from pipeline.report.results import beyond_noise
from pipeline.report.show import before_training
from tests.distributed import run_ranks
from tests.eval.trained import TINY, write_run
from tests.report.pages import Checked, finished_run, rich_results
from tests.runs import run_config, write_shards


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(finished, tmp_path / "tiny")


def test_one_run(run: Path) -> None:
    assert main([str(run)]) == 0
    page = Checked(run / "report.html")
    assert page.fetched == [], "the page stands alone"
    names = ["At a glance", "Run card", "Results", "Training", "On the sphere", "Behind the rates", "Calibration"]
    assert page.sections() == names
    text = (run / "report.html").read_text()
    assert "noise <b>" not in text, "names are escaped"
    assert "Before training: centroids" in text and "Step 40: centroids" in text
    assert text.count("found first") + text.count("right one is number") == 15, "what captions find"
    assert text.count('<li class="reading">') == 8, "what images find"
    assert "taken for" in text, "confusions"
    assert "Also recorded" not in text, "the page knows everything that an evaluation writes"
    result = read_run(run).newest("noise <b>")
    assert result is not None
    assert f"{result['zero_shot']['accuracy@1']:.2%}" in text
    assert f"| noise <b> | zero-shot top-1 | {result['zero_shot']['accuracy@1']:.2%} (" in (run / "report.md").read_text()


def test_every_picture_has_its_data_beside_it(run: Path) -> None:
    assert main([str(run)]) == 0
    figures = re.findall(r"<figure.*?</figure>", (run / "report.html").read_text(), re.DOTALL)
    assert len(figures) > 10
    assert all(figure.count('href="data:text/csv') == 1 for figure in figures)


def test_a_reader_who_does_not_see_finds_the_way(run: Path) -> None:
    assert main([str(run)]) == 0
    page = Checked(run / "report.html")
    assert page.language == "en"
    assert page.landmarks == ["header", "nav", "main"]
    assert page.targets[0] == "main", "the first link skips to the content"
    assert set(page.targets) <= set(page.ids) and len(page.ids) == len(set(page.ids))
    assert page.pictures > 10, "each with a name, or reading would have stopped"
    assert page.captions == 0, "every table has a caption"


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    digits = colour.lstrip("#") if len(colour) == 7 else "".join(2 * digit for digit in colour.lstrip("#"))
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast() -> None:
    """Text, links and lines stand out from what they lie on: WCAG's 4.5, in light, in dark, and on paper."""
    css = Path("pipeline/report/page.css").read_text()
    found = [dict(re.findall(r"--(\w+): (#\w+);", block)) for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)]
    light, dark, paper = (found[0] | other for other in found)
    assert len(found) == 3 and light != dark != paper
    checked = 0
    for scheme in (light, dark, paper):
        for ground in ("paper", "card"):
            for ink in ("ink", "muted", "good", "bad", *(f"c{i}" for i in range(6))):
                checked += 1
                assert contrast(scheme[ink], scheme[ground]) >= 4.5, (ink, ground, scheme[ink], scheme[ground])
    assert checked == 60
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01), "a known pair"


def test_every_protocol_is_drawn_and_what_is_unknown_is_told(run: Path, tmp_path: Path) -> None:
    result = json.loads((run / "eval.jsonl").read_text())
    (run / "eval.jsonl").write_text("\n".join(map(json.dumps, rich_results(result))) + "\n")
    text = (run / "config.yaml").read_text()
    assert "groups: {}" in text
    (run / "config.yaml").write_text(text.replace("groups: {}", "groups: {vendors: [noto, fluent, twemoji]}"))
    assert main([str(run), "--no-pictures"]) == 0
    page = (run / "report.html").read_text()
    Checked(run / "report.html")
    for title in (
        "Zero-shot top-1",
        "Few-shot accuracy",
        "Edits that arrive",
        "Edits that arrive, by kind",
        "False captions told, by kind",
        "Mixed-up pairs",
        "Centroid distance (modality gap)",
        "Spectrum image",
        "Commonest confusions",
    ):
        assert f"<figcaption>{title}</figcaption>" in page, title
    assert "<h3>Shift: vendors</h3>" in page
    assert '-20.00 <small>± 2.83</small> <span class="bad" role="img" aria-label="worse beyond noise">▼</span>' in page
    assert "a red &lt;car&gt;" in page
    assert '<th scope="row">juggling/by/hand</th><td>0.25</td>' in page


def test_several_runs_are_compared_with_the_first(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    text = (run / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("name: tiny", "name: other").replace("seed: 0", "seed: 7"))
    result = json.loads((run / "eval.jsonl").read_text())
    result["zero_shot"] |= {"accuracy@1": 0.99, "interval@1": [0.98, 1.0]}
    (other / "eval.jsonl").write_text(json.dumps(result) + "\n" + json.dumps({"set": "gone", "error": "DataError: x"}) + "\n")
    assert main([str(run), str(other), "--out", str(tmp_path / "both"), "--no-pictures"]) == 0
    text = (tmp_path / "both" / "report.html").read_text()
    Checked(tmp_path / "both" / "report.html")
    assert len(re.findall('aria-label="better beyond noise"', text)) == 1
    assert "other: gone: DataError: x" in text
    assert '<th scope="row">seed</th><td>0</td><td>7</td>' in text, "settings in which they differ"
    summary = (tmp_path / "both" / "report.md").read_text()
    assert "| 99.00% (98.0% to 100.0%) ▲ |" in summary and "Failed: other: gone: DataError: x" in summary


def test_a_run_that_has_only_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY})
    assert main([str(cfg.run_dir)]) == 0
    assert Checked(cfg.run_dir / "report.html").sections() == ["Run card"]
    assert "no evaluation set here, so no pictures" in capsys.readouterr().err


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a run's folder: config.yaml is missing; give runs/NAME"):
        main([str(tmp_path)])


def test_long_curves_are_averaged(run: Path) -> None:
    rows = [json.dumps({"step": s, "loss": s % 2}) for s in range(1, 3001)]
    (run / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    steps, losses = read_run(run).curve("loss")
    assert (len(steps), steps[0], set(losses)) == (300, 5.5, {0.5})


def test_noise_is_what_the_intervals_of_both_allow() -> None:
    def rate(value: float, half: float) -> Rate:
        return Rate(value, value - half, value + half)

    assert not beyond_noise(rate(0.50, 0.03), rate(0.54, 0.03))
    assert beyond_noise(rate(0.50, 0.03), rate(0.55, 0.03))
    assert not beyond_noise(Rate(0.1), Rate(0.9)), "without intervals nothing is known"


def one_step(world: World, cfg: RunConfig) -> None:
    from pipeline.train import train

    train(cfg, world)


@pytest.mark.slow  # trains
def test_the_model_before_training_is_the_one_that_training_began_with(tmp_path: Path) -> None:
    """One step with next to no learning rate leaves the initial weights; they are made again from the seed."""
    write_shards(tmp_path / "shards")
    cfg = run_config(tmp_path, train__steps=1, optim__lr=1e-12, optim__warmup_steps=0, optim__weight_decay=0.0, seed=5)
    run_ranks(one_step, 1, cfg)
    (folder,) = complete_steps(cfg.run_dir / "checkpoints").values()
    trained = load(folder, torch.device("cpu")).subject
    before = before_training(read_run(cfg.run_dir), trained)
    assert before is not None and isinstance(before.model, torch.nn.Module) and isinstance(trained.model, torch.nn.Module)
    after = trained.model.state_dict()
    assert before.model.state_dict().keys() == after.keys()
    for name, tensor in before.model.state_dict().items():
        assert torch.allclose(tensor.double(), after[name].double(), atol=1e-7), name


def test_a_map_shows_the_gap_as_it_is() -> None:
    """Two clouds that differ in one direction only, by 0.6: that direction is across, and so is all of the gap."""
    torch.manual_seed(0)
    spread_nd = torch.randn(50, 8, dtype=torch.float64) * torch.tensor([0, 3, 1, 1, 1, 1, 1, 1.0])
    gap_d = torch.tensor([0.6, 0, 0, 0, 0, 0, 0, 0], dtype=torch.float64)
    place_n2 = plane(spread_nd + gap_d, spread_nd)
    assert place_n2[:50].mean(dim=0) - place_n2[50:].mean(dim=0) == pytest.approx([0.6, 0.0], abs=1e-9)
    assert abs(torch.corrcoef(torch.stack([place_n2[:50, 1], spread_nd[:, 1]]))[0, 1]) > 0.95, "up: the strongest of the rest"
    same_n2 = plane(spread_nd, spread_nd)
    assert torch.equal(same_n2[:50], same_n2[50:]) and bool(torch.isfinite(same_n2).all())
