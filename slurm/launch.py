"""``unisphere launch``: start a training on several processes of this machine, or on a Slurm cluster, through submitit.

    unisphere launch configs/emoji_smoke.yaml --tasks-per-node 2                    two CPU processes here
    unisphere launch configs/x.yaml train.steps=100 --gpus-per-node 8               one process per GPU here
    unisphere launch configs/x.yaml --cluster slurm --nodes 4 --gpus-per-node 8     a Slurm job of 32 processes
    unisphere launch configs/x.yaml --cluster slurm --nodes 4 --dry-run             only print its script

``local`` shows rank 0's output, waits, and ends with the exit code of the first rank that failed. ``slurm`` submits and
returns. ``debug`` runs one process in this terminal. The settings are checked before anything is started.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from pipeline import config
from pipeline.errors import LaunchError, PipelineError
from slurm.job import (
    Job,
    Place,
    local_lines,
    log_folder,
    parse_minutes,
    rank_environment,
    sbatch_parameters,
    sbatch_text,
)
from slurm.local import free_port, run_local
from slurm.task import TrainTask, run_to_end


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, check, and start (or print) the job.

    Raises:
        PipelineError: the settings, the geometry, or the cluster cannot work; nothing was started.
    """
    args = build_parser().parse_intermixed_args(argv)
    job = plan(args)
    if args.dry_run:
        print({"slurm": sbatch_text, "local": dry_local, "debug": dry_local}[args.cluster](job))
        return 0
    return {"slurm": submit_slurm, "local": run_local, "debug": run_debug}[args.cluster](job)


def build_parser() -> argparse.ArgumentParser:
    """The command line; imports nothing heavy."""
    parser = argparse.ArgumentParser(
        prog="unisphere launch", description="Start a training on several processes here, or on a Slurm cluster."
    )
    add = parser.add_argument
    add("config", metavar="CONFIG", help="YAML file of the run")
    add("overrides", nargs="*", metavar="key.sub=value", help="settings that replace those of the file")
    add("--cluster", choices=("local", "slurm", "debug"), default="local", help="default: local")
    add("--nodes", type=int, default=1, help="hosts (slurm only; default: 1)")
    per_node = parser.add_mutually_exclusive_group()
    per_node.add_argument("--gpus-per-node", type=int, metavar="N", help="GPUs per host, one process each")
    per_node.add_argument("--tasks-per-node", type=int, metavar="N", help="processes per host, on the CPU (default: 1)")
    add("--cpus-per-task", type=int, metavar="N", help="cores per process (slurm only)")
    add("--partition", metavar="P", help="Slurm partition")
    add("--time", default="24:00:00", metavar="HH:MM:SS", help="wall-clock limit, also D-HH:MM:SS (default: 24:00:00)")
    add("--sbatch", action="append", default=[], metavar="KEY=VALUE", help="a further sbatch option, e.g. account=lab")
    add("--dry-run", action="store_true", help="print the script or the commands, and start nothing")
    return parser


def plan(args: argparse.Namespace) -> Job:
    """The job that a parsed command line asks for, checked against the run's settings.

    Raises:
        ConfigError: a setting is wrong, or the batch does not divide over the processes.
        LaunchError: the geometry does not fit the cluster.
    """
    cfg = config.load(args.config, args.overrides)
    tasks_per_node = args.gpus_per_node or args.tasks_per_node or 1
    for option, value in (("--nodes", args.nodes), ("--gpus-per-node or --tasks-per-node", tasks_per_node)):
        if value < 1:
            raise LaunchError(f"{option} is {value}: must be at least 1")
    if args.cluster != "slurm" and args.nodes != 1:
        raise LaunchError(f"--cluster {args.cluster} is this machine alone, but --nodes is {args.nodes}; use slurm")
    if args.cluster == "debug" and tasks_per_node != 1:
        raise LaunchError(f"--cluster debug runs one process in this terminal, not {tasks_per_node}; use local")
    config.micro_batch_size(cfg.train.global_batch_size, args.nodes * tasks_per_node)
    options = [option.partition("=") for option in args.sbatch]
    for key, equals, _ in options:
        if not key or not equals:
            raise LaunchError(f"--sbatch {key + equals}: expected KEY=VALUE, for example account=lab")
    return Job(
        name=cfg.name,
        command=(sys.executable, "-m", "pipeline.train", args.config, *args.overrides),
        folder=cfg.run_dir / "launch",
        nodes=args.nodes,
        tasks_per_node=tasks_per_node,
        gpus_per_node=args.gpus_per_node or 0,
        cpus_per_task=args.cpus_per_task,
        minutes=parse_minutes(args.time),
        partition=args.partition,
        sbatch_options=tuple((key.lstrip("-"), value) for key, _, value in options),
    )


def dry_local(job: Job) -> str:
    """The commands of the processes of this machine, to be started side by side."""
    return "\n".join(local_lines(job, free_port()))


def submit_slurm(job: Job) -> int:
    """Hand the job to sbatch, say where its logs will be, and return 0."""
    import submitit

    try:
        executor = submitit.SlurmExecutor(log_folder(job))
    except RuntimeError as error:
        raise LaunchError(
            "--cluster slurm: there is no srun in PATH; run this on a login node of the cluster, or only print the "
            "script with --dry-run"
        ) from error
    executor.update_parameters(**sbatch_parameters(job))
    submitted = executor.submit(TrainTask(job.command))
    print(f"submitted job {submitted.job_id}: {job.world_size} processes on {job.nodes} nodes")
    print(f"logs: {submitted.paths.folder}/{submitted.job_id}_RANK_log.out and .err · squeue -j {submitted.job_id}")
    return 0


def run_debug(job: Job) -> int:
    """Run one process in this terminal, without submitit in between; returns its exit code."""
    place = Place(0, 1, 0, 1, "127.0.0.1", free_port(), under_slurm=False)
    return run_to_end(job.command, rank_environment(os.environ, place))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
