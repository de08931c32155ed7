"""The loader's benchmark: it measures the run's own samples, and its verdict follows from rate, workers and cores."""

from __future__ import annotations

import pytest
import yaml

from pipeline import bench_loader, config
from pipeline.bench_loader import Measured, report
from pipeline.cli import main
from tests.runs import run_tree, write_shards


@pytest.fixture
def tree(tmp_path):
    write_shards(tmp_path / "shards", num_samples=24)
    return run_tree(tmp_path)


def measured(rate: float = 500.0) -> Measured:
    seconds = {"read": 0.1, "decode": 1.2, "views": 0.5, "tokenise": 0.1}
    return Measured(1000, 0, 128_000_000, seconds, whole_seconds=1000 / rate, read_wall_seconds=0.4)


def test_the_command_measures_a_runs_first_samples(tree, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert main(["bench-loader", str(path), "--samples", "24", "--target", "1", "augment.on_device=true"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "24 samples of 1 KB, canvases for the device, one thread"
    assert [line.split()[0] for line in lines[2:8]] == ["read", "decode", "views", "tokenise", "collate", "all"]
    assert lines[-1].endswith("the device would not starve")


def test_every_stage_takes_time_and_none_more_than_all(tree):
    found = bench_loader.measure(config.from_tree(tree), 24)
    assert found.num_samples == 24
    assert found.num_bad == 0
    assert all(0 < seconds < 10 * found.whole_seconds for seconds in found.seconds.values())


def test_the_report_adds_up(tree):
    text = report(measured(), config.from_tree(tree), None, cores=8)
    assert "1000 samples of 128 KB, 1 view, one thread" in text
    assert "decode        1.200     60%" in text
    assert "collate       0.100      5%" in text
    assert "waiting for storage: 0.300 ms" in text
    assert "500 samples/s per core" in text
    assert "give --target RATE or --gpu NAME" in text


@pytest.mark.parametrize(
    ("target", "workers", "cores", "expected"),
    [
        (900, 2, 8, ["needs 1.8 cores", "2 workers on 8 cores make 1000: the device would not starve"]),
        (2000, 2, 8, ["needs 4.0 cores", "make 1000: the device would starve, 50% of the time", "workers_per_rank = 5"]),
        (2000, 8, 2, ["8 workers on 2 cores make 1000", "5 cores per rank would do", "augment.on_device = true"]),
    ],
)
def test_the_verdict_follows_from_rate_workers_and_cores(tree, target, workers, cores, expected):
    tree["data"]["workers_per_rank"] = workers
    text = report(measured(), config.from_tree(tree), target, cores)
    for part in expected:
        assert part in text


def test_a_gpus_need_follows_from_the_models_arithmetic(tree):
    one = bench_loader._gpu_rate(config.from_tree(tree), "H200", 0.4)
    tree["augment"]["more_views"] = [{}]
    two = bench_loader._gpu_rate(config.from_tree(tree), "H200", 0.8)
    assert one < two < 2 * one, "twice the share, and more than one view's work"


def test_wrong_arguments(tree, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert main(["bench-loader", str(path), "--samples", "0"]) != 0
    assert "--samples and --target must be positive" in capsys.readouterr().err
    assert main(["bench-loader", str(path), "--gpu", "Q9"]) != 0
    assert "--gpu 'Q9' is not known; use one of B200, H200" in capsys.readouterr().err
