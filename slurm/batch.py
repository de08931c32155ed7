"""What a batch job does once Slurm has started it: ``pretrain.sh`` and ``evaluate.sh`` hand over to this, on the first host.

    python -m slurm.batch pretrain configs/x.yaml train.steps=20000
        freeze code and settings -> examine every host -> srun the ranks -> verdict: done (then evaluate), requeue, or stop
    python -m slurm.batch evaluate runs/x

Slurm's signals reach the ranks directly (``#SBATCH --signal=USR1@300`` goes to every process of a step): they agree, save, and
exit with one code. This process only waits for srun, and decides by that code what becomes of the job. It imports no torch.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from pipeline import config
from pipeline.cli import guarded
from pipeline.config import RunConfig
from pipeline.errors import LaunchError
from slurm import follow_up, records
from slurm.allocation import Allocation, clean
from slurm.frozen import REPOSITORY, Frozen, freeze
from slurm.hosts import examine, hostnames
from slurm.records import Record
from slurm.site import Site, load_site
from slurm.verdict import Verdict, verdict
from slurm.watch import describe

TOGETHER = ("--kill-on-bad-exit=0", "--wait=60")
"""One rank's end ends the others, but a minute later: until then each leaves by itself, with the exit code that says why.
Killed at once they would all end with 143, which hides the reason; never killed, a hanging rank would keep the job for ever."""

NO_EVALUATION = "eval.at_end=false"
"""The evaluation of the last checkpoint is a job of its own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one kind of job; returns the batch script's exit code."""
    args = _parser().parse_intermixed_args(argv)
    site = load_site(args.site)
    here = Allocation.from_env(os.environ)
    job = Job(here, site, {**clean(os.environ), **site.environment}, site_file=args.site)
    if args.kind == "evaluate":
        return job.evaluate(Path(args.target), args.rest, args.code, follow=args.follow)
    # Code and settings: as they were at submission, or else as they are at the job's first start.
    frozen = Frozen(Path(args.frozen)) if args.frozen else None
    cfg = config.load(frozen.config) if frozen else config.load(args.target, args.rest)
    asked = {"config": args.target, "overrides": args.rest, "tasks": here.tasks}
    frozen = frozen or freeze(cfg, here.job, asked)
    return job.pretrain(cfg, frozen, max_restarts=args.max_restarts, exclude_bad=args.exclude_bad_hosts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="slurm.batch", description="The inside of pretrain.sh and evaluate.sh.")
    add = parser.add_argument
    add("kind", choices=("pretrain", "evaluate"))
    add("target", help="pretrain: the run's YAML file; evaluate: its folder")
    add("rest", nargs="*", help="pretrain: key.sub=value; evaluate: folders of evaluation sets")
    add("--site", metavar="FILE", help="modules, variables, container of this cluster; see configs/slurm/template.yaml")
    add("--max-restarts", type=int, default=100, metavar="N", help="stop instead of requeueing once more (default: 100)")
    add("--exclude-bad-hosts", action="store_true", help="submit a successor without the hosts that fail the examination")
    add("--follow", action="store_true", help="evaluate: every checkpoint as it appears, until the run is complete")
    add("--frozen", metavar="DIR", help="pretrain: the copy of code and settings that was made at submission")
    add("--code", metavar="DIR", default=str(REPOSITORY), help="evaluate: the copy of the code to run")
    return parser


class Job:
    """One start of a batch job."""

    def __init__(self, here: Allocation, site: Site, env: Mapping[str, str], *, site_file: str | None) -> None:
        self._here, self._site, self._env, self._site_file = here, site, dict(env), site_file
        self._told_to_end = False
        self._step: subprocess.Popen[bytes] | None = None

    def pretrain(self, cfg: RunConfig, frozen: Frozen, *, max_restarts: int, exclude_bad: bool) -> int:
        """Train; requeue, stop, or hand over to the evaluation."""
        here = self._here
        config.micro_batch_size(cfg.train.global_batch_size, here.tasks, cfg.train.micro_batches)
        records.write(cfg.run_dir, Record(here.job, "pretrain", describe(here.job).get("StdOut", "")))
        hosts = hostnames(here.nodelist)
        self._env |= {**frozen.environment(), **here.rendezvous(hosts[0])}
        where = f"{self._env['MASTER_ADDR']}:{self._env['MASTER_PORT']}"
        say(f"job {here.job}, start {here.restarts + 1}: {here.tasks} ranks on {here.nodes} hosts, they meet at {where}")
        self._listen()
        bad = examine(self._srun, self._python(), hosts, cfg.run_dir / "jobs" / f"hosts-{here.job}-{here.restarts}")
        if self._told_to_end:
            return 128 + signal.SIGTERM
        if bad:
            return self._without(bad, exclude_bad, cfg, frozen)
        training = self._python("pipeline.train", frozen.config, NO_EVALUATION)
        code = self._srun([f"--ntasks={here.tasks}", *TOGETHER], training)
        outcome = verdict(code, told_to_end=self._told_to_end, restarts=here.restarts, max_restarts=max_restarts)
        say(f"{outcome.action}: {outcome.why}")
        if outcome.action == "requeue":
            return self._requeue(outcome)
        if outcome.action == "done":
            follow_up.evaluate(cfg, here, frozen, self._site_file)
        return outcome.exit_code

    def evaluate(self, run: Path, sets: Sequence[str], code: str, *, follow: bool) -> int:
        """Evaluate the newest checkpoint of a run, or every one as it appears, on all ranks of the job."""
        here = self._here
        self._env |= {"PYTHONPATH": code, **here.rendezvous(hostnames(here.nodelist)[0])}
        self._listen()
        chosen = [*(["--follow"] if follow else []), *(["--sets", *sets] if sets else [])]
        return self._srun([f"--ntasks={here.tasks}", *TOGETHER], self._python("pipeline.eval.run", run, *chosen))

    # ---- the parts ----

    def _python(self, module: str | None = None, *arguments: object) -> tuple[str, ...]:
        """A command of the ranks. ``-P``: the import path is the frozen code, never the current folder."""
        words = (self._site.python or sys.executable, "-P", "-u")
        return (*words, "-m", module, *map(str, arguments)) if module else words

    def _srun(self, options: Sequence[str], command: Sequence[str]) -> int:
        """Run a step to its end; returns srun's exit code, which is the highest of its tasks."""
        bound = (os.getcwd(),)
        # srun reads --cpus-per-task from its own command line only (Slurm 22.05 and later).
        fixed = ["srun", "--unbuffered", f"--cpus-per-task={self._here.cpus_per_task}", *self._site.srun_options(bound)]
        self._step = subprocess.Popen([*fixed, *options, *self._site.wrap(tuple(command), bound)], env=self._env)
        code = self._step.wait()
        self._step = None
        return code if code >= 0 else 128 - code

    def _listen(self) -> None:
        """Outlive the signals that the ranks answer. With ``--signal=B:USR1@...`` they come here alone; srun forwards them."""

        def end(number: int, frame: FrameType | None) -> None:
            self._told_to_end = True

        def forward(number: int, frame: FrameType | None) -> None:
            if self._step is not None:
                self._step.send_signal(number)

        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGUSR1, forward)
        signal.signal(signal.SIGUSR2, forward)

    def _requeue(self, outcome: Verdict) -> int:
        done = subprocess.run(["scontrol", "requeue", self._here.job], capture_output=True, text=True, check=False)
        if done.returncode:
            say(f"cannot requeue ({done.stderr.strip()}); submit it again to continue: the checkpoint is complete")
            return outcome.exit_code
        time.sleep(60)  # Slurm ends this script; returning first would make the job end instead
        return outcome.exit_code

    def _without(self, bad: Mapping[str, str], exclude: bool, cfg: RunConfig, frozen: Frozen) -> int:
        for host, why in bad.items():
            say(f"host {host} is not fit: {why}")
        if not exclude:
            say("submit without them (--exclude=" + ",".join(bad) + "), or let the job do that: --exclude-bad-hosts")
        elif job := follow_up.successor(cfg, self._here, frozen, self._site_file, bad):
            say(f"job {job} continues without {', '.join(bad)}")
        return LaunchError.exit_code


def say(text: str) -> None:
    """A line of the batch script's own, with the time."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
