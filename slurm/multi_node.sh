#!/usr/bin/env bash
# One run on several nodes, or on several GPUs of one: srun starts a process per task. Everything after the script's
# name is for `flgen fit`:
#
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 slurm/multi_node.sh --config configs/x.yaml
#   sbatch --nodes=2 --ntasks-per-node=8 slurm/multi_node.sh --config configs/x.yaml --trainer.accelerator cpu
#
# The tasks are the run's processes: --trainer.devices and --trainer.num_nodes are taken from SLURM, whatever the
# configuration says. --run_dir must lie on a file system that all nodes share.
#SBATCH --job-name=flgen-nodes
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --time=04:00:00

# shellcheck source=slurm/job.sh
source slurm/job.sh

fit "$@"
