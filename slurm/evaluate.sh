#!/usr/bin/env bash
# Evaluate a run's newest checkpoint (zero-shot accuracy, retrieval, geometry), spread over the ranks of a job.
# pretrain.sh submits this by itself when a training is complete; by hand:
#
#   sbatch slurm/evaluate.sh runs/x                        the sets of the run's configuration
#   sbatch slurm/evaluate.sh runs/x sets/a sets/b          others
#   sbatch slurm/evaluate.sh --follow runs/x               every checkpoint as it appears, while the training goes on
#SBATCH --job-name=unisphere-eval
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.out
set -euo pipefail

if [ $# -eq 0 ] || [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "usage: sbatch [OPTION ...] slurm/evaluate.sh [--site FILE] [--follow] RUN [SET ...]   (on one machine: unisphere eval RUN)" >&2
  exit 2
fi

cd "${SLURM_SUBMIT_DIR:?}"
python=.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" -u -m slurm.batch evaluate "$@"
