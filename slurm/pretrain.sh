#!/usr/bin/env bash
# Pretrain on a Slurm cluster: one process per GPU, through time limits and preemption, to the evaluation.
#
#   sbatch slurm/pretrain.sh configs/x.yaml                                   8 GPUs of one host
#   sbatch --nodes=4 --partition=gpu slurm/pretrain.sh configs/x.yaml train.steps=20000
#   sbatch slurm/pretrain.sh --site configs/slurm/lab.yaml configs/x.yaml     modules, containers, variables of a cluster
#
# Submit it from the repository. Options on the sbatch command line replace those below. On hosts without GPUs:
#   sbatch --gpus-per-node=0 --ntasks-per-node=4 slurm/pretrain.sh configs/x.yaml
#SBATCH --job-name=unisphere
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.out
# One output file over all restarts; five minutes before the time limit every rank is told to save and leave.
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@300
set -euo pipefail

if [ $# -eq 0 ]; then
  echo "usage: sbatch [OPTION ...] slurm/pretrain.sh [--site FILE] CONFIG [key.sub=value ...]" >&2
  exit 2
fi
if [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "error: this is a batch script: sbatch slurm/pretrain.sh $* (on one machine: unisphere launch pretrain $*)" >&2
  exit 2
fi

# Slurm runs a copy of this script, so the repository is where sbatch was called, not where $0 is.
cd "${SLURM_SUBMIT_DIR:?}"
python=.venv/bin/python
[ -x "$python" ] || python=python3

# The rest is slurm/batch.py: rendezvous, examination of the hosts, srun, requeueing, the evaluation's job.
exec "$python" -u -m slurm.batch pretrain "$@"
