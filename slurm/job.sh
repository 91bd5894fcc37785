# What array.sh, multi_node.sh and preemptible.sh have in common; they read it, it is not submitted.
# shellcheck shell=bash

refuse() {
  echo "flgen: error: $1" >&2
  exit 2
}

[[ -n ${SLURM_JOB_ID:-} ]] || refuse "this is a job script: start it with sbatch"
[[ -f slurm/environment.sh ]] || refuse "no slurm/environment.sh in $PWD: submit from the folder that has slurm/"
# shellcheck source=slurm/environment.sh
source slurm/environment.sh
set -euo pipefail # only now: what activates environments does not always keep to it
command -v flgen >/dev/null || refuse "there is no flgen on PATH: say in slurm/environment.sh how it gets there"

# One thread per core that SLURM gives to a task. Results are the same bits only with the same number of threads.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
# srun does not take this from the job by itself.
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

# When one process fails, the others are ended too.
ending=(--kill-on-bad-exit=1)

# has_option NAME ARGUMENTS...: whether `--NAME value` or `--NAME=value` is among the arguments.
has_option() {
  local name="$1" argument
  shift
  for argument in "$@"; do
    [[ $argument != "--$name" && $argument != "--$name="* ]] || return 0
  done
  return 1
}

# fit ARGUMENTS...: run `flgen fit ARGUMENTS` on every task of the job; an array's task takes its own line or seed.
fit() {
  local arguments=("$@") own=()
  if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
    own+=("--$(index_option "$@")" "$SLURM_ARRAY_TASK_ID")
  fi
  if ((${SLURM_NTASKS:-1} > 1)); then
    [[ -n ${SLURM_NTASKS_PER_NODE:-} ]] || refuse "give --nodes and --ntasks-per-node, not --ntasks $SLURM_NTASKS"
    if [[ -z ${MASTER_ADDR:-} ]]; then
      MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
      export MASTER_ADDR
    fi
    own+=(--trainer.devices "$SLURM_NTASKS_PER_NODE" --trainer.num_nodes "$SLURM_JOB_NUM_NODES")
  fi
  # Under srun even with one task: the signal before the time limit reaches the steps of a job alone.
  local command=(srun "${ending[@]}" flgen fit "${arguments[@]}" "${own[@]}")
  echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST:$(printf ' %q' "${command[@]}")"
  "${command[@]}"
}

# index_option ARGUMENTS...: the option that takes the number of an array's task.
index_option() {
  if has_option sweep "$@"; then echo index; else echo seed_index; fi
}
