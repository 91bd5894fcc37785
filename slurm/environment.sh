# How a job finds flgen on your cluster: the one file here to edit. Every script of this folder reads it, in the folder
# from which the job was submitted; srun hands the environment on to all nodes. For example:
#
#   module load python/3.11 cuda
#   source "$HOME/miniconda3/bin/activate" flgen
#   export WANDB_MODE=offline # nodes that do not reach the internet: `wandb sync` later
# shellcheck shell=bash

if [[ -f .venv/bin/activate ]]; then
  source .venv/bin/activate
fi
