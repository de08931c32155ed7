"""Records a training on a cluster as a terminal shows it: ``python -m tests.slurm.transcript > docs/slurm_run.txt``.

Needs what the tests marked ``slurm`` need, and the shards that ``make smoke`` leaves in runs/emoji-shards.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.slurm.cluster import Cluster, missing

REPOSITORY = Path(__file__).parents[2]
OVERRIDES = ("name=recorded", "train.steps=300", "checkpoint.every_steps=50", "log.every_steps=50")
SHAPE = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1")


def main() -> int:
    """Run and print."""
    if why := missing():
        print(f"cannot record: {why}", file=sys.stderr)
        return 1
    run = REPOSITORY / "runs" / "recorded"
    shutil.rmtree(run, ignore_errors=True)
    python = Path(sys.executable).parent
    shell = {"PATH": f"{python}:{os.environ['PATH']}:/usr/sbin", "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder), nodes=2) as cluster:

        def typed(line: str, *words: str) -> str:
            said = cluster.command(*(words or line.split()), cwd=REPOSITORY, env=shell)
            print(f"$ {line}\n{said}", flush=True)
            return said

        output = f"{folder}/recorded.out"
        words = ("sbatch", *SHAPE, "slurm/pretrain.sh", "configs/emoji_smoke.yaml", *OVERRIDES)
        said = typed(" ".join(words), words[0], f"--output={output}", *words[1:])
        job = said.split()[-1]
        while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < 3:
            assert cluster.job(job)["JobState"] in ("PENDING", "RUNNING", "CONFIGURING"), cluster.story(job, "ended early")
            time.sleep(0.2)
        typed("unisphere launch status runs/recorded")
        print("# as five minutes before the time limit:")
        typed(f"scancel --signal=USR1 {job}")
        cluster.wait(job, "COMPLETED", seconds=600)
        evaluation = max(int(path.stem) for path in (run / "jobs").glob("[0-9]*.json"))
        cluster.wait(str(evaluation), "COMPLETED", seconds=300)
        typed("unisphere launch status runs/recorded")
        shown = [line for line in Path(output).read_text(errors="replace").splitlines() if _is_for_people(line)]
        print(f"$ cat unisphere-{job}.out\n" + "\n".join(shown) + "\n")
        typed("unisphere eval runs/recorded --table")
    return 0


def _is_for_people(line: str) -> bool:
    return bool(re.match(r"\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d rank 0|evaluation: ", line)) and "MFU" not in line


if __name__ == "__main__":
    raise SystemExit(main())
