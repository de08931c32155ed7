#!/usr/bin/env bash
# Build shards as a job array: each member makes its part, byte for byte what one process would have made of it.
#
#   job=$(sbatch --parsable --array=0-15 slurm/prepare.sh pairs.parquet shards/mine --resize 288)
#   sbatch --dependency=afterok:$job slurm/prepare.sh pairs.parquet shards/mine --resize 288     finishes: manifest, rejects, counts
#
# Arguments are those of `unisphere shards build`. If members failed, submit the same array again: what is done is not done again.
#SBATCH --job-name=unisphere-shards
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --output=%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail

if [ $# -lt 2 ] || [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "usage: sbatch --array=0-N slurm/prepare.sh SOURCE OUT [OPTION ...]   (on one machine: unisphere shards build SOURCE OUT)" >&2
  exit 2
fi

cd "${SLURM_SUBMIT_DIR:?}"
python=.venv/bin/python
[ -x "$python" ] || python=python3

part=()
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  first=${SLURM_ARRAY_TASK_MIN:?}
  part=(--part "$((SLURM_ARRAY_TASK_ID - first))/${SLURM_ARRAY_TASK_COUNT:?}")
fi
exec "$python" -u -m data_prep build "$@" --workers "${SLURM_CPUS_PER_TASK:-1}" "${part[@]}"
