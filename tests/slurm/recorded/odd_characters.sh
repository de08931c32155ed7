#!/bin/bash

# Parameters
#SBATCH --comment='a; rm -rf /'
#SBATCH --cpus-per-task=12
#SBATCH --gpus-per-node=4
#SBATCH --job-name='it'"'"'s $HOME; echo no'
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output='/runs/a b/jobs/%j/%j_0_log.out'
#SBATCH --partition=gpu
#SBATCH --qos=low
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=90

# setup
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT TORCHELASTIC_RUN_ID

# command
export SUBMITIT_EXECUTOR=slurm
/venv/bin/python -u -m submitit.core._submit '/runs/a b/jobs/%j'
