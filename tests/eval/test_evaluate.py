from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from pipeline.config import EvalConfig
from pipeline.dist import World
from pipeline.eval.evaluate import evaluate
from pipeline.eval.results import describe
from tests.distributed import run_ranks
from tests.eval.helpers import angle_subject, rough_subject, write_levels, write_noise

CPU = torch.device("cpu")
OF_THE_LAUNCH = ("time", "world_size")


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in OF_THE_LAUNCH}


def evaluate_on_ranks(world: World, folders: list[Path], batch_size: int, out: Path | None) -> list[dict[str, Any]]:
    results = evaluate(rough_subject(), folders, world, CPU, batch_size=batch_size, out=out, progress=False)
    return [numbers(result) for result in results]


def test_right_answers_count_exactly(tmp_path: Path) -> None:
    folder = write_levels(tmp_path / "levels", range(0, 256, 4), captions_per_image=2)
    (result,) = evaluate(angle_subject(), [folder], World(), CPU, batch_size=64, progress=False)
    assert result["zero_shot"]["correct@1"] == result["zero_shot"]["n"] == 64
    assert result["zero_shot"]["classes"] == 64
    assert result["zero_shot"]["templates"] == 2
    for direction, n in (("text_to_image", 128), ("image_to_text", 64)):
        assert result["retrieval"][direction]["correct@1"] == result["retrieval"][direction]["n"] == n
    assert result["retrieval"]["unseen"]["text_to_image"]["n"] == 44
    assert result["geometry"]["pairs"] == 64
    assert result["geometry"]["matched_cosine"] == 1.0
    assert result["run"] == "angles"
    assert result["step"] == 7
    assert result["set"] == "levels"
    json.dumps(result)


def test_the_same_numbers_for_any_number_of_ranks_and_any_batch_size(tmp_path: Path) -> None:
    folders = [write_noise(tmp_path / "noise", 130), write_levels(tmp_path / "levels", range(3))]
    alone = evaluate_on_ranks(World(), folders, 256, None)
    assert 0 < alone[0]["zero_shot"]["correct@1"] < 130
    assert 0 < alone[0]["arithmetic"]["correct"] < alone[0]["arithmetic"]["n"] == 130
    assert 0 < alone[0]["composition"]["negatives"]["correct"] < alone[0]["composition"]["negatives"]["n"] == 260
    assert alone[0]["composition"]["pairs"]["n"] == 5
    assert "composition" not in alone[1] and "arithmetic" not in alone[1]
    assert evaluate_on_ranks(World(), folders, 5, None) == alone
    for world_size in (2, 3):
        assert run_ranks(evaluate_on_ranks, world_size, folders, 100, None) == [alone] * world_size


def test_a_broken_set_does_not_stop_the_others(tmp_path: Path) -> None:
    good, missing = write_levels(tmp_path / "good", range(5)), tmp_path / "missing"
    out = tmp_path / "results" / "eval.jsonl"
    first, second = run_ranks(evaluate_on_ranks, 2, [missing, good], 64, out)
    assert "error" in first[0]
    assert "missing" in first[0]["error"]
    assert first[0]["error"].startswith("DataError: ")
    assert "error" not in first[1]
    assert [("error" in result) for result in second] == [True, False]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [numbers(line) for line in lines] == first
    assert all(line["world_size"] == 2 for line in lines)
    assert "FAILED: DataError" in describe(lines[0])


def test_results_are_appended(tmp_path: Path) -> None:
    folder, out = write_levels(tmp_path / "levels", range(5)), tmp_path / "eval.jsonl"
    for _ in range(2):
        evaluate(angle_subject(), [folder], World(), CPU, batch_size=64, out=out, progress=False)
    assert len(out.read_text().splitlines()) == 2


def test_settings_are_part_of_what_a_result_holds_for(tmp_path: Path) -> None:
    folder, out = write_levels(tmp_path / "levels", range(0, 90, 3)), tmp_path / "eval.jsonl"
    subject = dataclasses.replace(angle_subject(), provenance={"run": "angles", "step": 7, "weights_sha256": "1"})
    templates = tmp_path / "templates.txt"

    def again(**asked: Any) -> dict[str, Any]:
        settings = EvalConfig(**asked)
        (found,) = evaluate(subject, [folder], World(), CPU, batch_size=64, asked=settings, out=out, progress=False)
        return found

    first = again()
    assert "options" not in first
    assert again()["cached"]
    few = again(max_samples=10)
    assert (few["samples"], few["options"]) == (10, {"max_samples": 10})
    assert (few["zero_shot"]["correct@1"], few["zero_shot"]["per_class"][3], few["zero_shot"]["per_class"][4]) == (
        10,
        [1, 1, 1],
        [0, 0, 0],
    ), "every third of 30"
    assert again(max_samples=10)["cached"]
    assert again()["samples"] == 30
    templates.write_text("the {c}\n")
    assert again(templates=str(templates))["zero_shot"]["templates"] == 1
    assert again(templates=str(templates))["cached"]
    templates.write_text("a {c}\nthe {c}\n")
    assert again(templates=str(templates))["zero_shot"]["templates"] == 2, "another content is another setting"
    assert len(out.read_text().splitlines()) == 4
    assert "error" in again(templates=str(tmp_path / "gone.txt"))


def test_a_result_reads_as_text(tmp_path: Path) -> None:
    folder = write_levels(tmp_path / "levels", range(0, 60, 3))
    (result,) = evaluate(angle_subject(), [folder], World(), CPU, batch_size=64, progress=False)
    confidence = result["calibration"]
    assert describe(result).splitlines() == [
        "levels",
        "  zero-shot top-1 100.00% (20 of 20; 95 %: 100.00% to 100.00%), top-5 100.00%, mean per class 100.00%",
        f"  calibration: ECE {confidence['ece']:.3f}, NLL {confidence['nll']:.3f} at scale 100.0; "
        f"{confidence['ece_fitted']:.3f} at {confidence['fitted_scale']:.1f}",
        "  text to image R@1/5/10 100.00% / 100.00% / 100.00% (n = 20)",
        "  image to text R@1/5/10 100.00% / 100.00% / 100.00% (n = 20)",
        "  unseen concepts: text to image R@1/5/10 100.00% / 100.00% / 100.00% (n = 7)",
        "  unseen concepts: image to text R@1/5/10 100.00% / 100.00% / 100.00% (n = 7)",
    ]
