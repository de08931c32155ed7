"""``unisphere launch status | logs | cancel RUN``: looking after what was started, by the run's folder instead of job numbers.

$ unisphere launch status runs/x
runs/x: 12,000 of 20,000 steps, newest checkpoint step-00012000
  41234567  pretrain  RUNNING    n[003-004]  restarts 1
  41239999  evaluate  PENDING    (Dependency)
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline import strict
from pipeline.errors import LaunchError
from slurm import records
from slurm.records import Record

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
POLL_SECONDS = 0.5


def main(argv: Sequence[str]) -> int:
    """Run one of the three commands."""
    parser = argparse.ArgumentParser(prog="unisphere launch", description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("what", choices=("status", "logs", "cancel"))
    parser.add_argument("run", type=Path, nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("-f", "--follow", action="store_true", help="logs: go on until the job has ended")
    parser.add_argument("-n", "--lines", type=int, default=20, metavar="N", help="logs: how many lines back (default: 20)")
    args = parser.parse_args(argv)
    for run in args.run:
        if not run.is_dir():
            raise LaunchError(f"{run} is not a folder; give the folder of a run, such as runs/NAME")
    if args.what == "logs":
        return logs(args.run[0], args.lines, follow=args.follow)
    for run in args.run:
        print(status(run) if args.what == "status" else cancel(run))
    return 0


def status(run: Path) -> str:
    """How far a run is, and a line per job."""
    lines = [f"{run}: {progress(run)}"]
    for record in records.read_all(run):
        known = describe(record.job)
        restarts = f"  restarts {known['Restarts']}" if known.get("Restarts", "0") != "0" else ""
        where = known.get("NodeList", "").replace("(null)", "") or f"({known.get('Reason', 'unknown')})"
        lines.append(f"  {record.job:<10}{record.kind:<10}{known.get('JobState', 'unknown'):<11}{where}{restarts}")
    return "\n".join(lines)


def progress(run: Path) -> str:
    """Steps done and to do, from the run's own files."""
    config, metrics, newest = run / "config.yaml", run / "metrics.jsonl", run / "checkpoints" / "latest"
    total = strict.read_yaml(config).get("train", {}).get("steps") if config.exists() else None
    step = 0
    if metrics.exists():
        for line in metrics.read_text(encoding="utf-8").splitlines()[-1:]:
            step = json.loads(line).get("step", 0)
    saved = f"newest checkpoint {newest.read_text(encoding='utf-8').strip()}" if newest.exists() else "no checkpoint yet"
    return f"{step:,} of {total:,} steps, {saved}" if total is not None else "not started"


def describe(job: str) -> dict[str, str]:
    """What Slurm knows of a job; empty where it has forgotten it, or where there is no Slurm."""
    if shutil.which("scontrol") is None:
        return {}
    done = subprocess.run(["scontrol", "-o", "show", "job", job], capture_output=True, text=True, check=False)
    # Values may hold spaces: paths do.
    return dict(re.findall(r"(\w\S*?)=(.*?)(?=\s+\w\S*?=|\s*$)", done.stdout if done.returncode == 0 else ""))


def logs(run: Path, lines: int, *, follow: bool) -> int:
    """Print the end of the newest training job's output, and what is added to it."""
    record = _newest(run)
    path = Path(record.output)
    shown = 0
    if path.exists():
        data = path.read_bytes()
        print(b"\n".join(data.splitlines()[-lines:]).decode(errors="replace"))
        shown = len(data)
    while follow:
        ended = describe(record.job).get("JobState", ENDED[0]) in ENDED  # asked first, so that nothing is missed
        if path.exists():
            with path.open("rb") as file:
                file.seek(shown)
                added = file.read()
            shown += len(added)
            sys.stdout.write(added.decode(errors="replace"))
            sys.stdout.flush()
        if ended:
            break
        time.sleep(POLL_SECONDS)
    return 0


def _newest(run: Path) -> Record:
    found = [record for record in records.read_all(run) if record.kind == "pretrain"]
    if not found:
        raise LaunchError(f"{run}: no training job was started for it by pretrain.sh or unisphere launch")
    return found[-1]


def cancel(run: Path) -> str:
    """Cancel every job of a run that has not ended: trainings save what they can when Slurm tells them to end."""
    alive = [record for record in records.read_all(run) if describe(record.job).get("JobState", ENDED[0]) not in ENDED]
    for record in alive:
        subprocess.run(["scancel", record.job], check=True)
    return f"{run}: cancelled {', '.join(record.job for record in alive) or 'nothing, no job is waiting or running'}"
