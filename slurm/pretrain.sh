#!/usr/bin/env bash
# Pretrain on a Slurm cluster: one process per GPU, started by srun itself.
#
#   sbatch slurm/pretrain.sh configs/x.yaml                                   8 GPUs of one host
#   sbatch --nodes=4 --partition=gpu slurm/pretrain.sh configs/x.yaml train.steps=20000
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
#SBATCH --open-mode=append
set -euo pipefail

if [ $# -eq 0 ]; then
  echo "usage: sbatch [OPTION ...] slurm/pretrain.sh CONFIG [key.sub=value ...]" >&2
  exit 2
fi
if [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "error: this is a batch script: sbatch slurm/pretrain.sh $1 (on one machine: unisphere launch $1)" >&2
  exit 2
fi

# Slurm runs a copy of this script, so the repository is where sbatch was called, not where $0 is.
cd "${SLURM_SUBMIT_DIR:?}"
python=.venv/bin/python
[ -x "$python" ] || python=python3

# Leftovers of another launch in the submitting shell would contradict srun; sbatch --export=NONE must not reach srun.
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE TORCHELASTIC_RUN_ID
export SLURM_EXPORT_ENV=ALL

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR=${hosts%%$'\n'*}
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) # jobs that share a host get different ports
export MASTER_ADDR MASTER_PORT
echo "job $SLURM_JOB_ID: $SLURM_NTASKS processes on $SLURM_JOB_NUM_NODES hosts, rendezvous $MASTER_ADDR:$MASTER_PORT"

# srun takes --cpus-per-task from its own command line only (Slurm 22.05 and later). A process that dies ends the step;
# without --kill-on-bad-exit the others would wait for it.
exec srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  "$python" -m pipeline.train "$@"
