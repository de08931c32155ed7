"""A training under attack: ranks killed and signalled, checkpoints damaged, the disk full, at random; and nothing may change.

    python -m tests.chaos --rounds 50 --seed 7        (make chaos)

A round starts the run's ranks as processes, waits until they have come a random bit further, does something to them or to
their files, and sees them leave within a time limit with the right exit codes. The run's real loop reads real shards, saves
beside the training, and meets over TCP. After the last round the run finishes; every loss, every step's samples and the last
weights must then be bitwise those of a run that nobody disturbed. The seed decides what is done and at which step; how far a
rank is within that step when it strikes is up to the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import signal
import socket
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from pipeline import checkpoint, logs
from pipeline.config import RunConfig
from pipeline.dist import World
from pipeline.errors import EXIT_REQUEUE, RankLost
from pipeline.watching import signals
from tests.distributed import _context
from tests.runs import losses, run_config, write_shards
from tests.saboteur import outcome, stderr_into

SIZE = 2
FULL_DISK_BYTES = 4000
"""While the disk is full no file of a rank grows beyond this: no shard of a checkpoint, no longer log."""
LIMIT_SECONDS = 120
FAULTS = ("kill one", "kill all", "signal some", "signal twice", "damage", "fill the disk")


def main() -> int:
    """Run as a command; 0 if everything held."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Disturb a training at random, and compare.")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None, help="what is done when; none draws one and prints it")
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    with tempfile.TemporaryDirectory() as folder:
        done = attack(Path(folder), args.rounds, seed, say=lambda text: print(text, flush=True))
    print(
        f"seed {seed}: {args.rounds} rounds ({', '.join(f'{n} x {name}' for name, n in sorted(done.items()))}); nothing changed"
    )
    return 0


def attack(folder: Path, rounds: int, seed: int, say: Any = lambda text: None) -> Counter[str]:
    """Disturb a run ``rounds`` times, then compare it with one that was left alone; returns what was done how often.

    Raises:
        AssertionError: a rank did not leave in time or with the wrong code, or the end is another one.
    """
    say(f"seed {seed}, {rounds} rounds")
    draw = random.Random(seed)
    write_shards(folder / "shards")
    steps = 3 * (rounds + 2)
    common = {
        "train__steps": steps,
        "train__max_starts_without_progress": 0,
        "engine__zero_stage": draw.choice([1, 2, 3]),
        "engine__heartbeat_seconds": 0.5,
        "engine__collective_timeout_seconds": 30,  # a rank that is killed before the ranks have met is missed only then
        "checkpoint__every_steps": 2,
        "checkpoint__keep_last": 4,
    }
    calm, attacked = run_config(folder, name="calm", **common), run_config(folder, name="attacked", **common)
    assert finish(start(calm, folder / "calm-logs"), calm) == [0] * SIZE, words(folder / "calm-logs")
    done: Counter[str] = Counter()
    for number in range(rounds):
        fault = draw.choice(FAULTS) if number >= len(FAULTS) or rounds < len(FAULTS) else FAULTS[number]
        target = steps * (number + 1) // (rounds + 1) - draw.randrange(2)
        began = time.monotonic()
        codes = one_round(attacked, folder / f"logs-{number}", fault, target, draw)
        done[fault] += 1
        say(f"round {number + 1:3}  {fault:13} at step {target:3}  exit codes {codes}  {time.monotonic() - began:.1f} s")
    ranks = start(attacked, folder / "last-logs")
    assert finish(ranks, attacked) == [0] * SIZE, words(folder / "last-logs")
    compare(attacked, calm)
    return done


def one_round(cfg: RunConfig, notes: Path, fault: str, target: int, draw: random.Random) -> list[int]:
    """One start of the run, one fault; returns exit codes after having judged them."""
    ranks = start(cfg, notes)
    await_step(cfg, ranks, target, notes)
    time.sleep(draw.random() * 0.1)
    victims = draw.sample(range(SIZE), draw.randint(1, SIZE))
    if fault == "fill the disk":
        limit_files(ranks, FULL_DISK_BYTES)
        time.sleep(0.2 + draw.random())
        limit_files(ranks, resource.RLIM_INFINITY)
        fault = "signal some"
    if fault in ("kill one", "kill all"):
        killed = range(SIZE) if fault == "kill all" else victims[:1]
        for rank in killed:
            os.kill(ranks[rank].pid, signal.SIGKILL)
        codes = finish(ranks, cfg)
        assert all(codes[rank] in (-signal.SIGKILL, 0) for rank in killed), f"{codes}\n{words(notes)}"
        assert all(code in (-signal.SIGKILL, RankLost.exit_code, 0) for code in codes), f"{codes}\n{words(notes)}"
        return codes
    for number in range(2 if fault == "signal twice" else 1):
        for rank in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(ranks[rank].pid, draw.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]))
        time.sleep(0.05 * number)
    codes = finish(ranks, cfg)
    assert codes in ([EXIT_REQUEUE] * SIZE, [0] * SIZE), f"{codes}\n{words(notes)}"
    if fault == "damage":
        damage(cfg, draw)
    return codes


def start(cfg: RunConfig, notes: Path) -> list[Any]:
    """The run's ranks, as processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        master = f"127.0.0.1:{probe.getsockname()[1]}"
    notes.mkdir(parents=True, exist_ok=True)
    ranks = [_context.Process(target=rank_main, args=(cfg, rank, master, notes)) for rank in range(SIZE)]
    for process in ranks:
        process.start()
    return ranks


def rank_main(cfg: RunConfig, rank: int, master: str, notes: Path) -> None:
    """A rank's process: train, leave with the exit code that the command would have."""
    signals.listen()
    stderr_into(notes, rank)  # says that it listens
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), OMP_NUM_THREADS="1")
    name, code, message = outcome(cfg, World(rank, SIZE, rank, SIZE, "tests", master))
    os.write(2, f"{name}: {message}\n".encode())
    os._exit(code)


def await_step(cfg: RunConfig, ranks: list[Any], step: int, notes: Path) -> None:
    """Until the run has logged ``step``."""
    path, deadline = cfg.run_dir / logs.METRICS, time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        records = logs.read_metrics(path) if path.exists() else []
        now = max((r["step"] for r in records if "loss" in r), default=0)
        if now >= step and all((notes / f"stderr-{rank}").exists() for rank in range(SIZE)):
            return
        assert all(process.is_alive() for process in ranks), f"a rank left by itself\n{words(notes)}"
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached in {LIMIT_SECONDS} s\n{words(notes)}")


def limit_files(ranks: list[Any], size: int) -> None:
    """Let no file of the ranks grow beyond ``size`` bytes; what they do then is what they do on a full disk."""
    for process in ranks:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def finish(ranks: list[Any], cfg: RunConfig) -> list[int]:
    """Exit codes, once all have left by themselves."""
    deadline = time.monotonic() + LIMIT_SECONDS
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))
    hung = [rank for rank, process in enumerate(ranks) if process.is_alive()]
    for process in ranks:
        process.kill()
        process.join()
    assert not hung, f"{cfg.name}: ranks {hung} did not leave within {LIMIT_SECONDS} s"
    return [process.exitcode for process in ranks]


def damage(cfg: RunConfig, draw: random.Random) -> None:
    """Change, cut, or remove a file of the newest checkpoint, or what points to it; an older one stays whole."""
    complete = sorted((cfg.run_dir / "checkpoints").glob("step-*"))
    if len(complete) < 2:
        return
    files = sorted(path for path in complete[-1].rglob("*") if path.is_file())
    path = draw.choice([*files, complete[-1].parent / checkpoint.POINTER])
    content = bytearray(path.read_bytes())
    kind = draw.choice(["flip", "cut", "remove"])
    if kind == "remove":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)


def compare(attacked: RunConfig, calm: RunConfig) -> None:
    """Losses and samples of every step, and the last weights, bitwise."""
    assert losses(attacked) == losses(calm)
    ours, theirs = ([r for r in logs.read_metrics(cfg.run_dir / logs.METRICS) if "loss" in r] for cfg in (attacked, calm))
    assert [(r["step"], r["keys"]) for r in ours] == [(r["step"], r["keys"]) for r in theirs]
    ends = [checkpoint.newest(cfg.run_dir) for cfg in (attacked, calm)]
    mine, other = (checkpoint.read_weights(end) for end in ends if end is not None)
    assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in other)


def words(notes: Path) -> str:
    """The last words of all ranks."""
    return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in sorted(notes.glob("stderr-*")))


if __name__ == "__main__":
    raise SystemExit(main())
