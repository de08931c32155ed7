"""Jobs that a job submits: the evaluation of a finished training, and a successor without hosts that are not fit.

One evaluation per last checkpoint, submitted once, whatever is requeued or repeated. It is submitted when the training has
ended well, not before: so a training that dies leaves no evaluation waiting for it, and an evaluation that fails cannot mark
the training failed. It starts when the training's job has left the queue (``afterany``) and takes one host of the same kind.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path

from pipeline.config import RunConfig
from slurm import records
from slurm.allocation import Allocation
from slurm.frozen import Frozen
from slurm.records import Record
from slurm.watch import describe


def evaluate(cfg: RunConfig, here: Allocation, frozen: Frozen, site: str | None) -> str | None:
    """Submit the evaluation of a finished run, unless it was; returns the job's id. A failure is reported and never fatal."""
    newest = cfg.run_dir / "checkpoints" / "latest"
    if not cfg.eval.sets or not newest.exists():
        return None
    note = cfg.run_dir / "jobs" / f"evaluation-of-{newest.read_text().strip()}.json"
    if note.exists():
        print(
            f"evaluation of {note.stem.removeprefix('evaluation-of-')}: job {json.loads(note.read_text())['job']} already",
            flush=True,
        )
        return None
    command = ["sbatch", *options(cfg, here), str(frozen.code / "slurm" / "evaluate.sh"), "--code", str(frozen.code)]
    command += (["--site", site] if site else []) + [str(cfg.run_dir)]
    done = subprocess.run(command, env=submitting(), capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"cannot submit the evaluation ({done.stderr.strip()}); by hand: {' '.join(command)}", flush=True)
        return None
    job = done.stdout.strip().split(";")[0]
    note.write_text(json.dumps({"job": job}) + "\n", encoding="utf-8")
    output = (cfg.run_dir / "jobs").absolute() / f"evaluation-{job}.out"
    records.write(cfg.run_dir, Record(job, "evaluate", str(output)))
    print(f"evaluation: job {job}, output {cfg.run_dir / 'jobs' / output.name}", flush=True)
    return job


def successor(cfg: RunConfig, here: Allocation, frozen: Frozen, site: str | None, bad: Collection[str]) -> str | None:
    """Submit the same training again without the hosts ``bad``; returns the job's id, or None where sbatch refuses.

    A new job, because Slurm lets nobody change the hosts of one that runs; it uses this one's frozen code and settings.
    """
    known = describe(here.job)
    before = [name for name in known.get("ExcNodeList", "").split(",") if name and name != "(null)"]
    wanted = {
        **_place(here, here.nodes),
        "job-name": here.name,
        "exclude": ",".join([*before, *bad]),
        "output": known.get("StdOut") or f"{here.name}-%j.out",
        **({"time": known["TimeLimit"]} if known.get("TimeLimit") else {}),
    }
    command = ["sbatch", *_words(wanted), str(frozen.code / "slurm" / "pretrain.sh"), "--exclude-bad-hosts"]
    command += ["--frozen", str(frozen.folder), *(["--site", site] if site else []), str(frozen.config)]
    done = subprocess.run(command, env=submitting(), capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"cannot submit a successor ({done.stderr.strip()}); by hand: {' '.join(command)}", flush=True)
        return None
    job = done.stdout.strip().split(";")[0]
    records.write(cfg.run_dir, Record(job, "pretrain", wanted["output"].replace("%j", job)))
    return job


def options(cfg: RunConfig, here: Allocation) -> list[str]:
    """Options for the evaluation: one host, as many ranks on it and of the same kind as the training had."""
    wanted = {
        "dependency": f"afterany:{here.job}",
        "job-name": f"{here.name}-eval",
        "output": str((cfg.run_dir / "jobs").absolute() / "evaluation-%j.out"),
        **_place(here, nodes=1),
    }
    return _words(wanted)


def _place(here: Allocation, nodes: int) -> dict[str, str]:
    """Resources like those of this job, on so many hosts."""
    return {
        "chdir": str(Path.cwd()),
        "nodes": str(nodes),
        "ntasks-per-node": str(max(1, here.tasks // here.nodes)),
        "cpus-per-task": str(here.cpus_per_task),
        "gpus-per-node": here.gpus_per_node or "0",
        **({"partition": here.partition} if here.partition else {}),
        **({"account": here.account} if here.account else {}),
    }


def _words(wanted: Mapping[str, str]) -> list[str]:
    return ["--parsable", *(f"--{key}={value}" for key, value in wanted.items())]


def submitting() -> dict[str, str]:
    """The environment for sbatch inside a job: without that job's own variables, which would become the new job's defaults."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_")) or key == "SLURM_CONF"}
