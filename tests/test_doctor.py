"""``unisphere doctor``: each judgement on made-up values, the collective for real, and the command as a whole."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline import config, dist, doctor
from pipeline.dist import World
from tests.distributed import run_ranks

REPOSITORY = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.fixture
def cfg() -> config.RunConfig:
    return config.from_tree(
        {
            "name": "demo",
            "data": {"train": "nowhere"},
            "model": {"architecture": "ViT-B-32"},
            "train": {"steps": 3000, "global_batch_size": 8},
        }
    )


@pytest.mark.parametrize(
    ("version", "status"),
    [("2.14.1", "ok"), ("2.11.0+cu128", "ok"), ("2.10.3", "warn"), ("2.15.0a0", "warn"), (None, "fail")],
)
def test_versions_are_compared_as_numbers(version: str | None, status: str) -> None:
    assert doctor.judge_version("torch", version).status == status


def test_an_untested_version_names_the_tested_range() -> None:
    assert doctor.judge_version("torch", "3.0").advice.startswith("tested with 2.11 to 2.14; constraints.txt")
    assert doctor.installed("no-such-distribution") is None


def test_the_pinned_versions_are_within_the_tested_ranges() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = dict(line.lower().split("==") for line in lines if "==" in line and not line.startswith("#"))
    judged = [doctor.judge_version(name, pins[name]) for name in doctor.TESTED if name != "python"]
    assert len(judged) == 5
    assert [check for check in judged if check.status != "ok"] == []


def test_cores_are_shared_by_the_ranks_of_a_host() -> None:
    assert doctor.judge_cores(cores=12, workers_per_rank=2, local_size=4).status == "ok"
    short = doctor.judge_cores(cores=8, workers_per_rank=2, local_size=4)
    assert (short.status, short.value) == ("warn", "2 for 2 loader workers and the training process")
    assert short.advice == "set data.workers_per_rank to 1, or give the process 3 cores"
    assert "workers_per_rank to 0" in doctor.judge_cores(cores=1, workers_per_rank=2, local_size=4).advice


def test_disk_is_judged_where_the_run_will_write(tmp_path: Path) -> None:
    assert doctor.judge_disk(tmp_path / "not" / "yet" / "there").status in ("ok", "warn")
    free = shutil.disk_usage(tmp_path).free / doctor.GIB
    assert float(doctor.judge_disk(tmp_path).value.split()[0]) == pytest.approx(free, abs=1)


def test_shared_memory_fails_at_a_containers_default_and_says_what_to_do() -> None:
    docker_default = doctor.judge_shared_memory(64 << 20, workers=16)
    assert docker_default.status == "fail"
    assert "--shm-size" in docker_default.advice
    assert doctor.judge_shared_memory(1 << 30, workers=16).status == "warn"
    assert doctor.judge_shared_memory(8 << 30, workers=16).status == "ok"
    assert doctor.judge_shared_memory(0, workers=0).status == "ok"


def test_a_compiler_is_needed_for_compiled_models_only(cfg: config.RunConfig) -> None:
    compiled = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, compile=True))
    assert doctor.judge_compiler("/usr/bin/c++", compiled).status == "ok"
    assert doctor.judge_compiler(None, cfg).status == "warn"
    assert doctor.judge_compiler(None, None).status == "warn"
    failing = doctor.judge_compiler(None, compiled)
    assert (failing.status, failing.value) == ("fail", "no C++ compiler, and model.compile = true needs one")


def test_missing_data_fails_with_the_loaders_own_words(cfg: config.RunConfig, tmp_path: Path) -> None:
    missing = str(tmp_path / "gone")
    cfg = dataclasses.replace(
        cfg, data=dataclasses.replace(cfg.data, train=missing), eval=dataclasses.replace(cfg.eval, sets=(missing,))
    )
    checks = doctor.examine_data(cfg)
    assert [(check.name, check.status) for check in checks] == [("data.train", "fail"), ("eval.sets", "fail")]
    assert all(missing in check.value for check in checks)


def test_one_process_answers_itself() -> None:
    check = doctor.round_trip(World(), CPU, limit_seconds=30)
    assert check.status == "ok"
    assert check.value.startswith("1 rank over gloo answered in ")


def _meet(world: World, rendezvous: str) -> doctor.Check:
    dist.shutdown()  # the harness's own group
    return doctor.round_trip(world, CPU, 30, init_method=rendezvous)


def _meet_one_who_is_silent(world: World, rendezvous: str) -> doctor.Check | None:
    dist.shutdown()
    if world.rank == 0:
        return doctor.round_trip(world, CPU, 2, init_method=rendezvous)
    dist.init(world, CPU, 30, rendezvous)
    time.sleep(6)
    return None


def test_three_ranks_agree_on_the_sum(tmp_path: Path) -> None:
    checks = run_ranks(_meet, 3, f"file://{tmp_path}/meeting")
    assert [check.status for check in checks] == ["ok"] * 3
    assert all(check.value.startswith("3 ranks over gloo answered in ") for check in checks)


def test_a_rank_that_joins_and_falls_silent_is_noticed_in_the_sum(tmp_path: Path) -> None:
    check, _ = run_ranks(_meet_one_who_is_silent, 2, f"file://{tmp_path}/meeting")
    assert check.status == "fail"
    assert check.value.startswith("rank 0 of 2 failed in an all-reduce over gloo: ")


def test_a_world_whose_rank_is_missing_names_what_hangs() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lonely = World(rank=1, size=2, local_rank=1, local_size=2, source="env://", master=f"127.0.0.1:{port}")
    check = doctor.round_trip(lonely, CPU, limit_seconds=2)
    assert check.status == "fail"
    assert f"rank 1 of 2 failed in the rendezvous at 127.0.0.1:{port}" in check.value
    assert "see that every rank was started" in check.advice


def test_the_table_shows_advice_below_its_line() -> None:
    checks = [doctor.Check("torch", "ok", "2.14.1"), doctor.Check("disk", "fail", "0.1 GiB free", "free some space")]
    assert doctor.table(checks).splitlines() == [
        "ok    torch            2.14.1",
        "fail  disk             0.1 GiB free",
        "      -> free some space",
    ]


def _run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", "doctor", *arguments]
    env = {**os.environ, **variables}
    return subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)


def test_a_bad_run_fails_in_json_too(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"name: demo\nruns_dir: {tmp_path}\ndata: {{train: {tmp_path}/gone}}\nmodel: {{architecture: ViT-B-32}}\n"
        "train: {steps: 3000, global_batch_size: 8}\n"
    )
    done = _run(str(path), "--json")
    report = json.loads(done.stdout)
    by_name = {check["name"]: check for check in report["checks"]}
    assert done.returncode == 1
    assert report["ok"] is False
    assert by_name["config"]["value"].endswith("8 pairs per rank and step")
    assert by_name["collective"]["status"] == "ok"
    assert by_name["data.train"]["status"] == "fail"


def test_a_contradictory_world_fails_and_is_explained() -> None:
    done = _run(RANK="3", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    assert done.returncode == 1
    assert "fail  world            impossible world from env://: rank 3 of 2" in done.stdout
