"""``unisphere launch``: start trainings and evaluations on this machine or on a Slurm cluster, through submitit.

    unisphere launch pretrain configs/emoji_smoke.yaml --tasks-per-node 2                     two CPU processes here
    unisphere launch pretrain configs/x.yaml train.steps=100 --gpus-per-node 8                one process per GPU here
    unisphere launch pretrain configs/x.yaml --cluster slurm --nodes 4 --gpus-per-node 8      a Slurm job of 32 processes
    unisphere launch pretrain configs/x.yaml --cluster slurm --sweep seed=0,1,2 --dry-run     only print the array's script
    unisphere launch evaluate runs/x --cluster slurm
    unisphere launch status runs/x        unisphere launch logs runs/x -f        unisphere launch cancel runs/x

``local`` shows rank 0's output, waits, and ends with the exit code of the first rank that failed. ``slurm`` submits and
returns; the job is the one that ``sbatch slurm/pretrain.sh`` gives, with code and settings frozen at submission. ``debug`` runs
one process in this terminal. The settings are checked before anything is started.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline import config
from pipeline.config import RunConfig
from pipeline.errors import LaunchError, PipelineError
from slurm import records
from slurm.frozen import REPOSITORY, freeze
from slurm.job import Job, Place, local_lines, log_folder, parse_minutes, rank_environment, sbatch_parameters, sbatch_text
from slurm.local import free_port, run_local
from slurm.records import Record
from slurm.site import load_site
from slurm.sweep import expand
from slurm.task import BatchTask, run_to_end

WATCHING = ("status", "logs", "cancel")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, check, and start (or print) the job, or look after one.

    Raises:
        PipelineError: the settings, the geometry, or the cluster cannot work; nothing was started.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] and words[0] in WATCHING:
        from slurm import watch

        return watch.main(words)
    args = build_parser().parse_intermixed_args(words)
    jobs = plan(args)
    if args.dry_run:
        print(sbatch_text(jobs[0], len(jobs)) if args.cluster == "slurm" else dry_local(jobs[0]))
        return 0
    if args.cluster == "slurm":
        return submit(jobs)
    return {"local": run_local, "debug": run_debug}[args.cluster](jobs[0])


def build_parser() -> argparse.ArgumentParser:
    """The command line; imports nothing heavy."""
    parser = argparse.ArgumentParser(
        prog="unisphere launch",
        description="Start a training or an evaluation on several processes here, or on a Slurm cluster.",
        epilog="status, logs and cancel look after what was started: unisphere launch status --help",
    )
    add = parser.add_argument
    add("kind", choices=("pretrain", "evaluate", *WATCHING), help="what to start, or what to do with what was started")
    add("target", metavar="CONFIG_OR_RUN", help="pretrain: YAML file of the run; evaluate: its folder")
    add("rest", nargs="*", metavar="key.sub=value", help="pretrain: settings that replace those of the file; evaluate: sets")
    add("--cluster", choices=("local", "slurm", "debug"), default="local", help="default: local")
    add("--nodes", type=int, default=1, help="hosts (slurm only; default: 1)")
    per_node = parser.add_mutually_exclusive_group()
    per_node.add_argument("--gpus-per-node", type=int, metavar="N", help="GPUs per host, one process each")
    per_node.add_argument("--tasks-per-node", type=int, metavar="N", help="processes per host, on the CPU (default: 1)")
    add("--cpus-per-task", type=int, metavar="N", help="cores per process (slurm only)")
    add("--partition", metavar="P", help="Slurm partition")
    add("--time", default="24:00:00", metavar="HH:MM:SS", help="wall-clock limit, also D-HH:MM:SS (default: 24:00:00)")
    add("--site", metavar="FILE", help="what is particular to the cluster; see configs/slurm/template.yaml (slurm only)")
    add("--sbatch", action="append", default=[], metavar="KEY=VALUE", help="a further sbatch option, e.g. account=lab")
    add("--sweep", action="append", default=[], metavar="key=v1,v2", help="one run per value, as a job array (slurm only)")
    add("--dry-run", action="store_true", help="print the script or the commands, and start nothing")
    return parser


def plan(args: argparse.Namespace) -> list[Job]:
    """The jobs that a parsed command line asks for, checked against the run's settings; several only for a sweep.

    Raises:
        ConfigError: a setting is wrong, or the batch does not divide over the processes.
        LaunchError: the geometry does not fit the cluster.
    """
    tasks_per_node = args.gpus_per_node or args.tasks_per_node or 1
    for option, value in (("--nodes", args.nodes), ("--gpus-per-node or --tasks-per-node", tasks_per_node)):
        if value < 1:
            raise LaunchError(f"{option} is {value}: must be at least 1")
    if args.cluster != "slurm" and args.nodes != 1:
        raise LaunchError(f"--cluster {args.cluster} is this machine alone, but --nodes is {args.nodes}; use slurm")
    if args.cluster != "slurm" and args.sweep:
        raise LaunchError(
            f"--sweep makes a job array, but --cluster is {args.cluster}; use slurm, or start the runs one by one"
        )
    if args.cluster == "debug" and tasks_per_node != 1:
        raise LaunchError(f"--cluster debug runs one process in this terminal, not {tasks_per_node}; use local")
    return [_job(args, tasks_per_node, member) for member in expand(args.sweep, _name(args))]


def _name(args: argparse.Namespace) -> str:
    return config.load(args.target, args.rest).name if args.kind == "pretrain" else Path(args.target).name


def _job(args: argparse.Namespace, tasks_per_node: int, member: tuple[str, ...]) -> Job:
    site, words = load_site(args.site), (*args.rest, *member)
    with_site = ("--site", os.path.abspath(args.site)) if args.site else ()
    cfg: RunConfig | None = None
    if args.kind == "pretrain":
        cfg = config.load(args.target, words)
        config.micro_batch_size(cfg.train.global_batch_size, args.nodes * tasks_per_node, cfg.train.micro_batches)
        name, run_dir, command = cfg.name, cfg.run_dir, ("pipeline.train", args.target, *words)
    else:
        name, run_dir = f"{_name(args)}-eval", Path(args.target)
        command = ("pipeline.eval.run", args.target, *(("--sets", *words) if words else ()))
    return Job(
        name=name,
        command=(sys.executable, "-m", *command),
        batch=(args.kind, *with_site, args.target, *words),
        folder=run_dir / "jobs",
        settings=cfg,
        nodes=args.nodes,
        tasks_per_node=tasks_per_node,
        gpus_per_node=args.gpus_per_node or 0,
        cpus_per_task=args.cpus_per_task,
        minutes=parse_minutes(args.time),
        partition=args.partition or site.sbatch.get("partition"),
        sbatch_options=tuple({**site.sbatch, **_options(args.sbatch)}.items()),
    )


def _options(given: Sequence[str]) -> dict[str, str]:
    pairs = [option.partition("=") for option in given]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise LaunchError(f"--sbatch {key + equals}: expected KEY=VALUE, for example account=lab")
    return {key.lstrip("-"): value for key, _, value in pairs}


def dry_local(job: Job) -> str:
    """The commands of the processes of this machine, to be started side by side."""
    return "\n".join(local_lines(job, free_port()))


def submit(jobs: Sequence[Job]) -> int:
    """Hand the jobs to sbatch (several as one array), say where their logs will be, and return 0."""
    import submitit

    first = jobs[0]
    try:
        executor = submitit.SlurmExecutor(log_folder(first))
    except RuntimeError as error:
        raise LaunchError(
            "--cluster slurm: there is no srun in PATH; run this on a login node of the cluster, or only print the "
            "script with --dry-run"
        ) from error
    executor.update_parameters(**sbatch_parameters(first))
    tasks = [_frozen_task(job) for job in jobs]
    submitted = executor.map_array(BatchTask.__call__, tasks) if len(tasks) > 1 else [executor.submit(tasks[0])]
    for job, handle in zip(jobs, submitted, strict=True):
        run_dir = job.folder.parent
        records.write(run_dir, Record(handle.job_id, job.batch[0], str(handle.paths.stdout)))
        print(f"submitted job {handle.job_id}: {job.name}, {job.world_size} processes on {job.nodes} nodes")
        print(f"log: {handle.paths.stdout} · unisphere launch status {run_dir}")
    return 0


def _frozen_task(job: Job) -> BatchTask:
    """The job with code and settings as they are at this moment."""
    if job.settings is None:
        return BatchTask(job.batch, str(REPOSITORY))
    copy = freeze(job.settings, time.strftime("submitted-%Y%m%d-%H%M%S"), {"batch": list(job.batch), "tasks": job.world_size})
    return BatchTask((*job.batch, "--frozen", str(copy.folder)), str(copy.code))


def run_debug(job: Job) -> int:
    """Run one process in this terminal, without submitit in between; returns its exit code."""
    place = Place(0, 1, 0, 1, free_port())
    return run_to_end(job.command, rank_environment(os.environ, place))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
