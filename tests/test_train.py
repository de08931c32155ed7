"""The run as a whole: resume is equality, launchers agree, bad data and bad numbers stop it with a message."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline import checkpoint, config, logs
from pipeline.config import RunConfig
from pipeline.dist import World
from pipeline.train import train
from tests.distributed import RanksFailed, run_ranks
from tests.engine.test_gate import Looks
from tests.runs import losses, run_config, run_tree, write_shards

ROOT = Path(__file__).parent.parent


def run(world: World, cfg: RunConfig) -> None:
    train(cfg, world)


@pytest.mark.parametrize(("world_size", "stage", "precision"), [(1, 0, "fp32"), (2, 1, "fp32"), (2, 3, "fp32"), (2, 2, "bf16")])
def test_ten_steps_equal_six_then_resume_then_four(tmp_path: Path, world_size: int, stage: int, precision: str) -> None:
    """Bitwise: losses, and the weights at the end; patch dropout and augmentation are on."""
    write_shards(tmp_path / "shards")
    whole = run_config(tmp_path, engine__zero_stage=stage, engine__precision=precision)
    run_ranks(run, world_size, whole)
    first_part = whole.run_dir / "checkpoints" / "step-00000006"
    resumed = run_config(
        tmp_path, engine__zero_stage=stage, engine__precision=precision, name="again", resume_from=str(first_part)
    )
    run_ranks(run, world_size, resumed)
    expected = losses(whole)
    assert sorted(expected) == list(range(1, 11))
    assert losses(resumed) == {step: expected[step] for step in (7, 8, 9, 10)}
    ends = [checkpoint.newest(cfg.run_dir) for cfg in (whole, resumed)]
    assert all(end is not None and end.name == "step-00000010" for end in ends)
    weights = [checkpoint.read_weights(end) for end in ends if end is not None]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_loss_sequence_does_not_depend_on_world_size_or_workers(tmp_path: Path) -> None:
    """Same data order, same views, same gradients; without dropout, whose draws differ between ranks."""
    write_shards(tmp_path / "shards")
    sequences = []
    for name, world_size, workers in (("one", 1, 0), ("two", 2, 1), ("three", 3, 0)):
        cfg = run_config(tmp_path, name=name, model__patch_dropout=0.0, data__workers_per_rank=workers, optim__lr=1e-3)
        run_ranks(run, world_size, cfg)
        sequences.append(list(losses(cfg).values()))
    for other in sequences[1:]:
        assert other == pytest.approx(sequences[0], abs=1e-5)


def test_micro_batches_and_logged_term_gradients_change_no_loss(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards")
    terms = {"clip": {}, "uniformity": {"weight": 0.1}, "siglip": {"weight": 0.1}}
    common = {"objective__terms": terms, "model__patch_dropout": 0.0, "optim__lr": 1e-3, "train__steps": 5}
    plain = run_config(tmp_path, name="plain", **common)
    parts = run_config(tmp_path, name="parts", train__micro_batches=3, log__term_gradients=True, engine__zero_stage=2, **common)
    run_ranks(run, 2, plain)
    run_ranks(run, 2, parts)
    assert list(losses(parts).values()) == pytest.approx(list(losses(plain).values()), abs=1e-5)
    record = logs.read_metrics(parts.run_dir / logs.METRICS)[-1]
    assert record["grad_norm/clip"] > 0 and record["weight/siglip"] == 0.1 and record["siglip_bias"] < 0
    assert record["loss"] == pytest.approx(sum(record[f"weight/{name}"] * record[f"loss/{name}"] for name in terms), rel=1e-5)


def test_logging_term_gradients_without_micro_batches_changes_no_loss(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards")
    common = {"objective__terms": {"clip": {}, "uniformity": {"weight": 0.1}}, "train__steps": 5}
    for stage in (1, 3):
        quiet = run_config(tmp_path, name=f"quiet{stage}", engine__zero_stage=stage, **common)
        logged = run_config(tmp_path, name=f"logged{stage}", engine__zero_stage=stage, log__term_gradients=True, **common)
        run_ranks(run, 2, quiet)
        run_ranks(run, 2, logged)
        assert losses(logged) == losses(quiet)


def test_a_run_that_is_started_again_continues_and_its_log_stays_monotone(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards")
    cfg = run_config(tmp_path)
    run_ranks(run, 1, cfg)
    before = losses(cfg)
    # As if the process had died after step 9: the newest checkpoint is that of step 6, the log goes on to 9.
    (cfg.run_dir / "checkpoints" / "latest").write_text("step-00000006\n")
    run_ranks(run, 1, cfg)
    assert losses(cfg) == before
    records = logs.read_metrics(cfg.run_dir / logs.METRICS)
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10]
    assert records[6] == {"event": "resume", "step": 6}


def test_the_run_folder_says_where_its_numbers_come_from(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards")
    cfg = run_config(tmp_path, train__steps=2)
    run_ranks(run, 2, cfg)
    assert config.load(cfg.run_dir / "config.yaml") == cfg
    told = json.loads((cfg.run_dir / "deepspeed.json").read_text())
    assert told["train_batch_size"] == 12 and told["train_micro_batch_size_per_gpu"] == 6
    (start,) = [json.loads(line) for line in (cfg.run_dir / "run.json").read_text().splitlines()]
    assert start["world"]["size"] == 2 and start["packages"]["torch"] and "environ" not in start
    record = logs.read_metrics(cfg.run_dir / logs.METRICS)[-1]
    assert record["step"] == 2 and record["samples"] == 24 and record["dropped"] == 0
    assert {"loss", "lr", "logit_scale", "grad_norm", "samples_per_second", "data_wait_share"} <= record.keys()


def test_an_undecodable_image_is_replaced_and_counted(tmp_path: Path) -> None:
    damage(write_shards(tmp_path / "shards"), images=1)
    cfg = run_config(tmp_path, data__max_bad_fraction=0.2)
    run_ranks(run, 2, cfg)
    last = logs.read_metrics(cfg.run_dir / logs.METRICS)[-1]
    assert last["step"] == 10 and last["dropped"] >= 3  # three epochs of 40 samples in 120 places


def test_more_bad_samples_than_allowed_stop_every_rank(tmp_path: Path) -> None:
    damage(write_shards(tmp_path / "shards"), images=1)
    cfg = run_config(tmp_path, data__max_bad_fraction=0.0)
    with pytest.raises(RanksFailed, match=r"(?s)rank 0.*BudgetExceeded.*image-undecodable.*rank 1.*BudgetExceeded"):
        run_ranks(run, 2, cfg)


def damage(folder: Path, images: int) -> None:
    """Overwrite the pixels of the first ``images`` samples of the first shard; sizes stay as the manifest has them."""
    path = folder / "part-000000.tar"
    content = bytearray(path.read_bytes())
    at = 0
    for _ in range(images):
        at = content.index(b"\x89PNG", at)
        content[at : at + 200] = b"\0" * 200
    path.write_bytes(content)


def write_config(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run_tree(tmp_path, train__steps=2, **changes)))
    return path


def launch(command: list[str], **env: str) -> subprocess.Popen[str]:
    """Start a command with nothing of an outer launch in its environment."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    kept |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **env}
    return subprocess.Popen(command, env=kept, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes: subprocess.Popen[str]) -> list[tuple[int, str]]:
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def free_port() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.parametrize("launcher", ["python", "torchrun", "deepspeed", "srun"])
def test_runs_under_every_launcher(tmp_path: Path, launcher: str) -> None:
    write_shards(tmp_path / "shards")
    train_command = ["-m", "pipeline.train", str(write_config(tmp_path))]
    port = free_port()
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    deepspeed = ["-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", port, "--module"]
    job = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    commands = {
        "python": [(train_command, {})],
        "torchrun": [(torchrun + train_command, {})],
        "deepspeed": [(deepspeed + train_command[1:], {"DS_ACCELERATOR": "cpu"})],
        "srun": [
            (
                train_command,
                {**job, "SLURM_PROCID": r, "SLURM_LOCALID": r, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            )
            for r in "01"
        ],
    }[launcher]
    results = finish(*(launch([sys.executable, *arguments], **env) for arguments, env in commands))
    assert [code for code, _ in results] == [0] * len(commands), "\n".join(output for _, output in results)
    start = json.loads((tmp_path / "runs" / "run" / "run.json").read_text())
    expected = {"python": (1, "single"), "torchrun": (2, "torchrun"), "deepspeed": (2, "env://"), "srun": (2, "slurm")}
    assert (start["world"]["size"], start["world"]["source"]) == expected[launcher]


def test_a_failure_on_one_rank_ends_every_rank_with_a_message_and_a_code(tmp_path: Path) -> None:
    """Rank 1 cannot see the data (a node without the mount, say); rank 0 must not wait for it for ever."""
    write_shards(tmp_path / "shards")
    port, job = (
        free_port(),
        {"SLURM_JOB_ID": "8", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"},
    )
    job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "pipeline.train", str(write_config(tmp_path))]
    good = launch(command, **job, SLURM_PROCID="0", SLURM_LOCALID="0")
    bad = launch([*command, "data.train=nowhere"], **job, SLURM_PROCID="1", SLURM_LOCALID="1")
    (good_code, good_output), (bad_code, bad_output) = finish(good, bad)
    assert bad_code == 3 and "error: " in bad_output and "nowhere" in bad_output
    assert good_code != 0, good_output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["optim.lrr=1"], 2, "error: optim.lrr: unknown key 'lrr'; did you mean 'lr'?"),
        (["data.train=nowhere"], 3, "nowhere"),
        (["resume_from=nowhere"], 5, "checkpoint folder nowhere does not exist"),
        (["model={architecture: ViT-B-33}"], 2, "did you mean one of ViT-B-32"),
    ],
)
def test_mistakes_exit_with_a_message_and_no_traceback(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    write_shards(tmp_path / "shards")
    command = [sys.executable, "-m", "pipeline.train", str(write_config(tmp_path)), *arguments]
    ((found, output),) = finish(launch(command))
    assert found == code and message in output and "Traceback" not in output


def test_print_config_shows_the_resolved_settings_without_starting_anything(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.train", str(write_config(tmp_path)), "optim.lr=2e-3", "--print-config"]
    ((code, output),) = finish(launch(command))
    shown = yaml.safe_load(output)
    assert code == 0 and shown["optim"]["lr"] == 2e-3 and shown["engine"]["zero_stage"] == 1
    assert not (tmp_path / "runs").exists()


class LooksInSteps(Looks):
    """Looks at the device in steps that are not logged, of everything but data, losses and towers, by step and place."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.split(".")[0] in self.NAMES:
            frames = [entry[0] for entry in traceback.walk_stack(sys._getframe(1))]
            loop = next((frame for frame in frames if frame.f_code.co_name == "train"), None)
            rooms = ("/pipeline/data/", "/pipeline/losses/", "/pipeline/models/")
            elsewhere = not any(room in frame.f_code.co_filename for frame in frames for room in rooms)
            if elsewhere and loop is not None and "lr" in loop.f_locals and not loop.f_locals["logged"]:
                place = next(frame for frame in frames if "/pipeline/" in frame.f_code.co_filename)
                self.found[f"step {loop.f_locals['step']}, {place.f_code.co_filename}:{place.f_lineno}"] += 1
        return func(*args, **(kwargs or {}))


def looks_of_a_run(world: World, cfg: RunConfig) -> dict[str, int]:
    with LooksInSteps() as looks:
        train(cfg, world)
    return dict(looks.found)


@pytest.mark.parametrize("stage", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_step_that_is_not_logged_never_waits_for_a_number(tmp_path: Path, stage: int) -> None:
    write_shards(tmp_path / "shards")
    cfg = run_config(tmp_path, train__steps=8, log__every_steps=8, checkpoint__every_steps=0, engine__zero_stage=stage)
    found = [
        {k: n for k, n in looks.items() if not k.startswith(("step 0", "step 1,"))}
        for looks in run_ranks(looks_of_a_run, 2, cfg)
    ]
    assert found == [{}, {}]  # stage 3 compares the order of parameters over ranks in the first two
