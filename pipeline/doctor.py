"""``unisphere doctor``: is this machine, this world and this data fit for a run? One line per check, and what to do.

    $ unisphere doctor configs/emoji_smoke.yaml
    ok    torch            2.14.1
    warn  cores            2 for 2 loader workers and the training process
          -> set data.workers_per_rank to 1, or give the process 3 cores
    ok    collective       1 rank over gloo answered in 0.01 s

Started through torchrun or srun it checks the whole world: rank 0 prints the table, the other ranks print only what
fails there. The exit code is 1 where anything fails, 0 otherwise. Each judgement is a pure function of measured values;
only ``examine`` measures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline import cli, config
from pipeline.errors import LaunchError, PipelineError

if TYPE_CHECKING:
    import torch

    from pipeline.config import RunConfig
    from pipeline.dist import World

TESTED = {
    "python": ((3, 11), (3, 12)),
    "torch": ((2, 11), (2, 14)),
    "torchvision": ((0, 26), (0, 29)),
    "deepspeed": ((0, 19), (0, 19)),
    "open_clip_torch": ((3, 3), (3, 3)),
    "webdataset": ((1, 0), (1, 0)),
}
"""Package -> first and last (major, minor) that the tests were run with."""

COLLECTIVE_SECONDS = 30
GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the table. ``advice`` says what to do, and is empty where all is well."""

    name: str
    status: Literal["ok", "warn", "fail"]
    value: str
    advice: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Examine, print, and return 1 if anything failed on this rank."""
    parser = argparse.ArgumentParser(prog="unisphere doctor", description="Check this machine, and a run's data.")
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="YAML file of a run; none checks only the machine")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace those of the file")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument(
        "--host-report", type=Path, metavar="DIR", help="write this host's checks to DIR/HOST.json, print nothing"
    )
    args = parser.parse_args(argv)
    checks, is_main = examine(args.config, args.overrides)
    failed = [check for check in checks if check.status == "fail"]
    if args.host_report:
        write_report(checks, args.host_report)
    elif args.json and is_main:
        print(json.dumps({"ok": not failed, "checks": [dataclasses.asdict(check) for check in checks]}, indent=2))
    elif not args.json:
        print(table(checks if is_main else failed), end="")
    code = 1 if failed else 0
    if any(thread.name == "round-trip" for thread in threading.enumerate()):
        # A collective still hangs in native code; the interpreter's orderly exit would wait for it.
        sys.stdout.flush()
        os._exit(code)
    return code


def table(checks: Sequence[Check]) -> str:
    """The checks as aligned lines, advice below."""
    lines = []
    for check in checks:
        lines.append(f"{check.status:<4}  {check.name:<16} {check.value}\n")
        if check.advice:
            lines.append(f"      -> {check.advice}\n")
    return "".join(lines)


def write_report(checks: Sequence[Check], folder: Path) -> None:
    """Write the checks of this host as ``folder/HOST.json``, complete or not at all; a batch job reads one per host."""
    final = folder / f"{os.environ.get('SLURMD_NODENAME') or socket.gethostname()}.json"
    partial = final.with_suffix(".part")
    partial.write_text(json.dumps([dataclasses.asdict(check) for check in checks]), encoding="utf-8")
    partial.replace(final)


def examine(path: str | None, overrides: Sequence[str] = ()) -> tuple[list[Check], bool]:
    """Measure everything. Returns the checks, and whether this is rank 0."""
    from pipeline import dist

    checks = [judge_version(name, installed(name)) for name in TESTED]
    cfg: RunConfig | None = None
    world, device = dist.World(), None
    try:
        world = dist.World.from_env(os.environ)
        checks.append(Check("world", "ok", world.table().removeprefix("world: ")))
        device = dist.pick_device(world.local_rank)
    except LaunchError as error:
        advice = "correct the launch command; the remaining checks assume one process"
        checks.append(Check("world", "fail", str(error), advice))
    if path is not None:
        try:
            cfg = config.load(path, overrides)
            per_rank = config.micro_batch_size(cfg.train.global_batch_size, world.size)
            checks.append(Check("config", "ok", f"{path}: {per_rank} pairs per rank and step"))
        except PipelineError as error:
            checks.append(Check("config", "fail", str(error), "correct the file or the overrides"))
    if device is not None:
        checks += [*map(describe_device, devices_to_examine(world, device)), round_trip(world, device, COLLECTIVE_SECONDS)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = cfg.data.workers_per_rank if cfg else config.DataConfig.workers_per_rank
    checks.append(judge_cores(cores, workers, world.local_size))
    checks.append(judge_disk(cfg.run_dir if cfg else Path(config.RunConfig.runs_dir)))
    if Path("/dev/shm").is_dir():
        checks.append(judge_shared_memory(shutil.disk_usage("/dev/shm").free, world.local_size * workers))
    checks.append(judge_compiler(shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"), cfg))
    if cfg:
        checks += examine_data(cfg)
    return checks, world.is_main


def installed(name: str) -> str | None:
    """Version of a distribution (or of Python) without importing it; None where it is missing."""
    if name == "python":
        return ".".join(map(str, sys.version_info[:3]))
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def judge_version(name: str, version: str | None) -> Check:
    """Compare a version with the tested range of ``TESTED``."""
    low, high = TESTED[name]
    tested = f"{low[0]}.{low[1]} to {high[0]}.{high[1]}"
    if version is None:
        return Check(name, "fail", "not installed", "pip install -c constraints.txt -e .")
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if low <= found <= high:
        return Check(name, "ok", version)
    return Check(name, "warn", version, f"tested with {tested}; constraints.txt names versions known to work together")


def devices_to_examine(world: World, device: torch.device) -> list[torch.device]:
    """This rank's device; all GPUs of the host where this is the only process there."""
    import torch

    if device.type == "cpu" or world.local_size > 1:
        return [device]
    return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]


def describe_device(device: torch.device) -> Check:
    """Which device this rank uses, how much memory it has free, and whether it computes in bf16."""
    import torch

    if device.type == "cpu":
        return Check("device", "ok", f"no GPU visible: CPU in fp32, {torch.get_num_threads()} threads")
    free, total = torch.cuda.mem_get_info(device)
    name = f"{torch.cuda.get_device_name(device)}, {free / GIB:.0f} of {total / GIB:.0f} GiB free"
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return Check("device", "warn", name, "no bf16 here: engine.precision = auto chooses fp16 with loss scaling")
    if free < 0.5 * total:
        return Check("device", "warn", name, "another process holds most of this GPU's memory; nvidia-smi names it")
    return Check("device", "ok", f"{name}, bf16")


def round_trip(world: World, device: torch.device, limit_seconds: int, init_method: str | None = None) -> Check:
    """Sum ``[rank + 1, 1]`` over all ranks, within a time limit; the answer is known.

    The work happens in a thread named "round-trip", because some hangs never come back from native code.

    Args:
        world: this process's place.
        device: decides the backend.
        limit_seconds: for the rendezvous and for the sum, each.
        init_method: see ``dist.init``.
    """
    import torch

    from pipeline import dist

    backend = "nccl" if device.type == "cuda" else "gloo"
    where = [f"the rendezvous at {init_method or world.master or 'this process'}"]
    outcome: list[Check] = []

    def talk() -> None:
        start = time.monotonic()
        try:
            dist.init(world, device, limit_seconds, init_method)
            where.append(f"an all-reduce over {backend}")
            total = dist.all_reduce_sum(torch.tensor([world.rank + 1, 1], device=device)).tolist()
            dist.shutdown()
        except (RuntimeError, OSError, ValueError) as error:  # torch's distributed errors are RuntimeErrors
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            outcome.append(_hung(world, where[-1], f"{reason}"))
            return
        expected = [world.size * (world.size + 1) // 2, world.size]
        ranks = f"{world.size} rank{'s' if world.size > 1 else ''}"
        if total != expected:
            advice = "two ranks took the same place, or data was corrupted; compare every rank's `world` line"
            outcome.append(Check("collective", "fail", f"{ranks} summed to {total}, expected {expected}", advice))
        else:
            seconds = time.monotonic() - start
            outcome.append(Check("collective", "ok", f"{ranks} over {backend} answered in {seconds:.2f} s"))

    thread = threading.Thread(target=talk, name="round-trip", daemon=True)
    thread.start()
    thread.join(2 * limit_seconds + 5)
    return outcome[0] if outcome else _hung(world, where[-1], f"no answer in {2 * limit_seconds + 5} s")


def _hung(world: World, where: str, reason: str) -> Check:
    return Check(
        "collective",
        "fail",
        f"rank {world.rank} of {world.size} failed in {where}: {reason}",
        "see that every rank was started, that the hosts reach each other on that port, and which network interface is "
        "used (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME)",
    )


def judge_cores(cores: int, workers_per_rank: int, local_size: int) -> Check:
    """Cores that this process may use, against its loader workers and itself. Ranks of one host may share the cores."""
    per_rank = max(1, cores // local_size)
    value = f"{per_rank} for {workers_per_rank} loader workers and the training process"
    if per_rank >= workers_per_rank + 1:
        return Check("cores", "ok", value)
    advice = f"set data.workers_per_rank to {max(0, per_rank - 1)}, or give the process {workers_per_rank + 1} cores"
    return Check("cores", "warn", value, advice)


def judge_disk(folder: Path) -> Check:
    """Free space where the run writes; judged at the nearest folder that exists."""
    existing = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.is_dir())
    if not os.access(existing, os.W_OK):
        return Check("disk", "fail", f"{existing} is not writable", "choose another runs_dir")
    free = shutil.disk_usage(existing).free
    value = f"{free / GIB:.1f} GiB free for {folder}"
    advice = "a checkpoint takes about 16 bytes per parameter; free some space, or lower checkpoint.keep_last"
    if free < GIB:
        return Check("disk", "fail", value, advice)
    return Check("disk", "warn", value, advice) if free < 20 * GIB else Check("disk", "ok", value)


def judge_shared_memory(free_bytes: int, workers: int) -> Check:
    """Free ``/dev/shm``, through which loader workers hand over their batches; about 128 MiB each is comfortable."""
    value = f"{free_bytes / GIB:.2f} GiB free in /dev/shm for {workers} loader workers of this host"
    if free_bytes >= workers * GIB // 8:
        return Check("shared memory", "ok", value)
    advice = "workers die with a bus error when it is full: use fewer, or start the container with --shm-size=8g"
    return Check("shared memory", "fail" if free_bytes < workers * GIB // 64 else "warn", value, advice)


def judge_compiler(compiler: str | None, cfg: RunConfig | None) -> Check:
    """Whether there is a C++ compiler: ``model.compile`` needs one, and so do DeepSpeed's operators at first use."""
    if compiler:
        return Check("compiler", "ok", compiler)
    advice = "install one, for example: apt install g++"
    if cfg and cfg.model.compile:
        return Check("compiler", "fail", "no C++ compiler, and model.compile = true needs one", advice)
    return Check("compiler", "warn", "no C++ compiler; DeepSpeed builds some of its operators at first use", advice)


def examine_data(cfg: RunConfig) -> list[Check]:
    """Open the training shards and every evaluation set, and decode the first samples."""
    from pipeline.data import evalset, sources
    from pipeline.data.storage import open_storage
    from pipeline.eval.sets import addresses

    storage = open_storage(cfg.data)

    def train() -> str:
        found = sources.open_sources(cfg.data)
        found.preflight()
        return f"{len(found)} samples in {sum(one.num_shards for one in found.sets)} shards of {', '.join(found.names)}"

    def evaluation(name: str) -> Callable[[], str]:
        def opened() -> str:
            there = addresses([name], cfg.eval.root, storage)
            return ", ".join(f"{len(evalset.EvalSet.open(one, source=storage))} samples in {one}" for one in there)

        return opened

    jobs = [("data.train", train), *(("eval.sets", evaluation(name)) for name in cfg.eval.sets)]
    checks = []
    for name, job in jobs:
        try:
            checks.append(Check(name, "ok", job()))
        except PipelineError as error:
            checks.append(Check(name, "fail", str(error), "a run with these settings stops at the same place"))
    return checks


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
