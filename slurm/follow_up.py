"""What comes after a training: one evaluation job per last checkpoint, submitted once, whatever is requeued or repeated.

The job is submitted when the training has ended well, not before: so a training that dies leaves no evaluation waiting for
it, and an evaluation that fails cannot mark the training failed. It starts when the training's job has left the queue
(``afterany``) and takes one host of the same kind.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from pipeline.config import RunConfig
from slurm import records
from slurm.allocation import Allocation
from slurm.frozen import Frozen
from slurm.records import Record


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
    print(f"evaluation: job {job}, output {output}", flush=True)
    return job


def options(cfg: RunConfig, here: Allocation) -> list[str]:
    """Options for sbatch: one host, as many ranks on it and of the same kind as the training had."""
    per_node = max(1, here.tasks // here.nodes)
    wanted = {
        "parsable": None,
        "dependency": f"afterany:{here.job}",
        "job-name": f"{here.name}-eval",
        "chdir": str(Path.cwd()),
        "output": str((cfg.run_dir / "jobs").absolute() / "evaluation-%j.out"),
        "nodes": "1",
        "ntasks-per-node": str(per_node),
        "cpus-per-task": str(here.cpus_per_task),
        "gpus-per-node": here.gpus_per_node or "0",
        **({"partition": here.partition} if here.partition else {}),
        **({"account": here.account} if here.account else {}),
    }
    return [f"--{key}" if value is None else f"--{key}={value}" for key, value in wanted.items()]


def submitting() -> dict[str, str]:
    """The environment for sbatch inside a job: without that job's own variables, which would become the new job's defaults."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_")) or key == "SLURM_CONF"}
