#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=12
#SBATCH --job-name=demo
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=/runs/demo/jobs/%j/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=90

# setup
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT TORCHELASTIC_RUN_ID

# command
export SUBMITIT_EXECUTOR=slurm
/venv/bin/python -u -m submitit.core._submit /runs/demo/jobs/%j
