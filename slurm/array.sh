#!/usr/bin/env bash
# One task per seed, or per line of a sweep. Everything after the script's name is for `flgen fit`:
#
#   sbatch --array=0-3 slurm/array.sh --config configs/x.yaml --run_dir runs/x --seeds '[0,1,2,3]'
#   sbatch --array=0-11%4 slurm/array.sh --config configs/x.yaml --sweep configs/sweeps/y.yaml
#
# Every task writes to a folder of its own. One that failed is submitted again alone: the same with --array=2. What is
# finished is not run again. For tasks that may be interrupted and go on, submit slurm/preemptible.sh in the same way.
#SBATCH --job-name=flgen-array
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --time=04:00:00
# For a GPU add `--gpus-per-task=1` here or to sbatch.

# shellcheck source=slurm/job.sh
source slurm/job.sh

[[ -n ${SLURM_ARRAY_TASK_ID:-} ]] || refuse "which tasks? sbatch --array=0-3 slurm/array.sh ..."
fit "$@"
