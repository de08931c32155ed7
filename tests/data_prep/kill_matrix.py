"""Builds killed at random moments, in a process of its own: python -m tests.data_prep.kill_matrix FOLDER NUM_ROUNDS SEED

Each round forks a child that builds and kills itself, or is killed, with SIGKILL: at a random one of its file-system
operations, counted by an audit hook (so between any two of them), or at a random moment (so also inside a write). Then:
every visible tar is whole; whatever has a manifest passes ``verify``; the same command, perhaps killed again, ends in the
files that an undisturbed build gives; and no shard that was done is packed again. Prints one JSON line per scenario.

It forks from a process without threads, which pytest's is not.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from data_prep.build import STAGING, build
from data_prep.commit import Report
from data_prep.settings import Filters, Settings, Transform
from data_prep.sources import open_source
from data_prep.verify import verify
from pipeline.data.tar import iter_samples

ROWS, SHARD_SIZE = 17, 4
PLAIN = Settings(shard_size=SHARD_SIZE)
FULL = Settings(SHARD_SIZE, Transform(resize=6, format="jpeg"), Filters(min_chars=2), duplicates="exact")

hook: list[int] = []  # file-system operations left until the child of this fork kills itself


def audit(event: str, _: object) -> None:
    """Count what touches files; die at the chosen one."""
    if hook and event.partition(".")[0] in ("open", "os", "shutil", "fcntl"):
        hook[0] -= 1
        if hook[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def make_sources(folder: Path) -> dict[str, Path]:
    """Two tables of pictures: "new" with splits, doubles and a missing file, "old" another set."""
    tables = {}
    for name, shift in (("new", 0), ("old", 100)):
        (folder / name).mkdir(parents=True)
        lines = []
        for number in range(ROWS):
            colour = (number - (number in (5, 9)) + shift, 9, 7)  # 5 looks like 4, 9 like 8
            Image.new("RGB", (8, 8), colour).save(folder / name / f"{number}.png")
            lines.append({"image": f"{number}.png", "caption": f"picture {number}", "split": "train" if number % 3 else "val"})
        lines.append({"image": "none.png", "caption": "nothing there", "split": "train"})
        (folder / name / "set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        tables[name] = folder / name / "set.jsonl"
    return tables


def contents(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def forked(action: Callable[[], object], *, die_at: int = 0, after_seconds: float = 0.0) -> int:
    """Run ``action`` in a child; returns the signal that ended it, 0 when it finished."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            hook[:] = [die_at] if die_at else []
            action()
            code = 0
        finally:
            os._exit(code)
    if after_seconds:
        time.sleep(after_seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"the build failed with exit code {os.WEXITSTATUS(status)}"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def check_visible(out: Path) -> None:
    """Whatever a reader can see is whole."""
    visible = [path for path in out.rglob("*") if not any(part.startswith(".") for part in path.relative_to(out).parts)]
    for path in visible:
        if path.suffix == ".tar":
            with open(path, "rb") as stream:
                assert list(iter_samples(stream, str(path))), f"{path} is empty"
        if path.name == "manifest.jsonl":
            findings = verify([str(path.parent)])
            assert not findings.counts, f"{path.parent}: {findings.examples}"


def finished_records(out: Path) -> int:
    """Staged shards that are complete, by their records."""
    done = 0
    for record in (out / STAGING).glob("*/[0-9]*.json"):
        if record.name.endswith(".index.jsonl"):
            continue
        tar = record.with_suffix(".tar")
        done += tar.exists() and hashlib.sha256(tar.read_bytes()).hexdigest() == json.loads(record.read_text())["sha256"]
    return done


class Scenario:
    """A kind of run: how its folder looks before, the command, and what must be there in the end."""

    def __init__(self, folder: Path, name: str, tables: dict[str, Path]) -> None:
        self.folder, self.name = folder / name, name
        self.settings = FULL if name == "duplicates" else PLAIN
        self.tables = tables
        self.folder.mkdir()
        self.start(self.folder / "start")
        shutil.copytree(self.folder / "start", self.folder / "expected")
        self.first_run(self.folder / "expected")
        self.expected = contents(self.folder / "expected")

    def start(self, out: Path) -> None:
        """What is in the folder before."""
        out.mkdir()
        if self.name == "force":
            build(open_source(str(self.tables["old"])), out, settings=PLAIN)
        if self.name == "retry":
            missing = self.tables["new"].parent / "none.png"
            build(open_source(str(self.tables["new"])), out, settings=PLAIN)
            shutil.copy(self.tables["new"].parent / "1.png", missing)

    def first_run(self, out: Path) -> Report:
        """The command."""
        source = open_source(str(self.tables["new"]))
        force, retry = self.name == "force", self.name == "retry"
        return build(source, out, settings=self.settings, force=force, retry_failed=retry)

    def next_run(self, out: Path) -> Report:
        """The command after a kill: without --force, which would start over."""
        source = open_source(str(self.tables["new"]))
        started = (out / STAGING / "=replaces").exists()
        force = self.name == "force" and (out / "build.json").exists() and not started
        retry = self.name == "retry" and ((out / "build.json").exists() or (out / STAGING).exists())
        if self.name == "retry" and contents(out) == self.expected:
            retry = False  # the kill came after the end
        return build(source, out, settings=self.settings, force=force, retry_failed=retry)

    def count_operations(self) -> tuple[int, float]:
        """File-system operations and seconds of an undisturbed run."""
        out = self.folder / "count"
        shutil.copytree(self.folder / "start", out)
        hook[:] = [1 << 40]
        began = time.monotonic()
        self.first_run(out)
        operations, seconds = (1 << 40) - hook[0], time.monotonic() - began
        hook.clear()
        assert contents(out) == self.expected
        shutil.rmtree(out)
        return operations, seconds


def one_round(scenario: Scenario, span: tuple[int, float], out: Path, rng: random.Random, tally: Counter[str]) -> None:
    """Kill once or twice, look at what is there, and finish."""
    operations, seconds = span
    shutil.copytree(scenario.folder / "start", out)
    command: Callable[[Path], Report] = scenario.first_run
    for _ in range(rng.randrange(1, 3)):
        by_operation = rng.random() < 0.7
        die_at = rng.randrange(1, operations + 1) if by_operation else 0
        delay = 0.0 if by_operation else rng.uniform(0.0005, 1.2 * seconds)
        died = forked(partial(command, out), die_at=die_at, after_seconds=delay)
        tally["killed" if died else "finished before the kill"] += 1
        tally["killed at an operation" if by_operation else "killed at a moment"] += bool(died)
        check_visible(out)
        command = scenario.next_run
    done, was_complete = finished_records(out), (out / "build.json").exists()
    report = scenario.next_run(out)
    assert contents(out) == scenario.expected, f"{out}: other files than an undisturbed build"
    if not was_complete and scenario.name != "retry":
        assert report.num_reused >= done, f"{out}: {done} shards were done, {report.num_reused} were kept"
    tally["shards kept"] += report.num_reused
    shutil.rmtree(out)


def main(folder: Path, num_rounds: int, seed: int) -> None:
    """Run the matrix and print what was done."""
    rng = random.Random(seed)
    tqdm.monitor_interval = 0  # its watching thread
    tqdm.set_lock(threading.RLock())  # the usual one is shared with forked children, and stays locked when one is killed
    sys.addaudithook(audit)
    scenarios = []
    for name in ("fresh", "force", "duplicates", "retry"):
        (folder / name).mkdir(parents=True)
        scenarios.append(Scenario(folder / name, name, make_sources(folder / name)))
    spans = [scenario.count_operations() for scenario in scenarios]
    counts: dict[str, Counter[str]] = {scenario.name: Counter() for scenario in scenarios}
    for number in range(num_rounds):
        scenario = scenarios[number % len(scenarios)]
        out = scenario.folder / f"out-{number}"
        one_round(scenario, spans[number % len(scenarios)], out, rng, counts[scenario.name])
    print(json.dumps({name: dict(tally) for name, tally in counts.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
