#!/usr/bin/env bash
# A run that may be interrupted: two minutes before its time is over, or when it is pre-empted, it writes a checkpoint,
# goes back into the queue, and continues from there. Everything after the script's name is for `flgen fit`:
#
#   sbatch --time=01:00:00 slurm/preemptible.sh --config configs/x.yaml --run_dir runs/x
#
# It also takes what array.sh and multi_node.sh take: each task of `--array` is queued again alone, and `--nodes`,
# `--ntasks-per-node` make one run of several processes.
#SBATCH --job-name=flgen-preemptible
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Not `B:USR1`: the signal is for the processes of flgen, not for this shell.
#SBATCH --signal=USR1@120

# shellcheck source=slurm/job.sh
source slurm/job.sh

# Processes that stop do not end at the same moment: those that still write are given time. When one fails, flgen itself
# ends the others, and what hangs is ended after these seconds.
ending=(--wait=300)

# A run that gets nowhere in its time, because a single round takes longer, must not come back for ever.
max_restarts="${FLGEN_MAX_RESTARTS:-100}"
stopped_by_usr1=$((128 + $(kill -l USR1)))

status=0
fit "$@" --ckpt_path auto || status=$?
if ((status != stopped_by_usr1)); then
  exit "$status" # done, or failed; after pre-emption SLURM itself queues the job again
fi
if ((${SLURM_RESTART_COUNT:-0} >= max_restarts)); then
  echo "flgen: error: not queued again after $max_restarts restarts (FLGEN_MAX_RESTARTS)" >&2
  exit "$status"
fi
# A task of an array by its index: its SLURM_JOB_ID may be that of the whole array.
job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"
echo "stopped before the end of its time: back into the queue"
scontrol requeue "${job:-$SLURM_JOB_ID}"
exit "$status"
