"""The hosts of a job: their names, and whether each is fit to train on, found out before the ranks start.

    hostnames("n[003-004]")                       # ["n003", "n004"], by scontrol
    examine(srun, python, hosts, folder)          # {"n004": "device: ... "}; empty where all are fit

Each host runs ``unisphere doctor`` once and writes what it found into a file of its own; a host that writes nothing within the
time limit is not fit either. That costs seconds, and saves the hours of a job that hangs in its first collective.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.errors import LaunchError

SECONDS = 60
"""Time limit of the whole examination."""


def hostnames(nodelist: str) -> list[str]:
    """The names in Slurm's compressed list, in order.

    Raises:
        LaunchError: scontrol cannot be run or does not understand the list.
    """
    try:
        done = subprocess.run(["scontrol", "show", "hostnames", nodelist], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise LaunchError(f"cannot list the hosts of {nodelist!r}: {getattr(error, 'stderr', '') or error}") from error
    return done.stdout.split()


def examine(
    srun: Callable[[Sequence[str], Sequence[str]], int], python: Sequence[str], hosts: Sequence[str], folder: Path
) -> dict[str, str]:
    """Run the doctor once on every host; returns the hosts that are not fit, with the reason.

    Args:
        srun: runs a step: options, command -> exit code.
        python: how the job starts Python.
        hosts: names.
        folder: where the hosts write; new for every start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = len(hosts)
    options = [
        f"--ntasks={count}",
        "--ntasks-per-node=1",
        "--kill-on-bad-exit=0",
        f"--wait={SECONDS}",
        f"--time={SECONDS // 60}",
    ]
    srun(options, [*python, "-m", "pipeline.doctor", "--host-report", str(folder)])
    return unfit(hosts, folder)


def unfit(hosts: Sequence[str], folder: Path) -> dict[str, str]:
    """The verdict on every host from the files that they wrote.

    A host that cannot be reached makes the collective fail on the others as well: where some hosts have faults of their own,
    those are to blame, and the others' failed collective is not held against them.
    """
    own: dict[str, str] = {}
    shared: dict[str, str] = {}
    for host in hosts:
        report = folder / f"{host}.json"
        if not report.exists():
            own[host] = f"the doctor did not finish there within {SECONDS} s"
            continue
        failed = [check for check in json.loads(report.read_text(encoding="utf-8")) if check["status"] == "fail"]
        for check in failed:
            kind = shared if check["name"] == "collective" else own
            kind.setdefault(host, f"{check['name']}: {check['value']}")
    return own or shared
