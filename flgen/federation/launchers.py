"""What started the processes of a job: torchrun, SLURM's srun, or flgen itself; and whether the options agree."""

from __future__ import annotations

import os
from typing import NamedTuple

from flgen.errors import UsageError

_BY_HAND = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")


class Started(NamedTuple):
    """Processes that a launcher has started, this one among them.

    Args:
        by: The launcher's name.
        processes: All of them.
        per_node: Those on each node.
    """

    by: str
    processes: int
    per_node: int

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return max(1, self.processes // self.per_node)


def started_processes() -> Started | None:
    """Return what torchrun or srun has started; None where flgen starts the ranks itself.

    A batch job of one task counts as the latter, and so does one named `bash` or `interactive`, as for Lightning.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        processes = _number("WORLD_SIZE")
        return Started("torchrun", processes, _number("LOCAL_WORLD_SIZE", processes))
    tasks = _number("SLURM_STEP_NUM_TASKS", _number("SLURM_NTASKS"))
    if tasks > 1 and _in_step() and _in_batch():
        # SLURM_NTASKS_PER_NODE is what sbatch was told, whatever srun was.
        nodes = _number("SLURM_STEP_NUM_NODES", _number("SLURM_NNODES"))
        return Started("srun", tasks, max(1, tasks // nodes))
    return None


def is_job_of_one_task() -> bool:
    """Whether this process is all there is of a SLURM job, so that flgen starts the ranks although SLURM is there."""
    return "SLURM_NTASKS" in os.environ and started_processes() is None


def check_launcher(devices: int | str, num_nodes: int) -> None:
    """Refuse numbers of processes that are not those which have been started, or which nobody would start.

    Args:
        devices: Processes per node, or "auto": as many as there are.
        num_nodes: Number of nodes.

    Raises:
        UsageError: Ranks would be missing, or there would be too many.
    """
    started = started_processes()
    if started is not None:
        spread = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "") if started.by == "srun" else ""
        if "," in spread:
            raise UsageError(
                f"srun has started {spread} processes on its nodes, and every node must have as many as the "
                "others: give --ntasks as a multiple of --nodes, or --ntasks-per-node"
            )
        per_node = started.per_node if devices == "auto" else int(devices)
        if (per_node, num_nodes) != (started.per_node, started.nodes):
            raise UsageError(
                f"--trainer.devices {devices} --trainer.num_nodes {num_nodes} does not fit the {started.processes} "
                f"processes that {started.by} has started: give --trainer.devices {started.per_node} "
                f"--trainer.num_nodes {started.nodes}"
            )
        return
    tasks, alone = _number("SLURM_NTASKS"), str(devices) in ("1", "auto") and num_nodes == 1
    if tasks > 1 and not _in_step() and _in_batch() and not alone:
        raise UsageError(
            f"SLURM has given this job {tasks} tasks and nothing has started them: write srun before flgen in the "
            "batch script"
        )
    missing = [name for name in _BY_HAND if name not in os.environ]
    if num_nodes > 1 and missing:
        raise UsageError(
            f"--trainer.num_nodes {num_nodes}: start flgen on every node with torchrun or srun, or set "
            f"{', '.join(missing)} on each"
        )
    if num_nodes > 1 and not 0 <= _number("NODE_RANK", 0) < num_nodes:
        raise UsageError(f"NODE_RANK is {os.environ['NODE_RANK']}: give 0 to {num_nodes - 1}, another on each node")


def _in_step() -> bool:
    return bool(os.environ.get("SLURM_STEP_ID"))


def _in_batch() -> bool:
    return os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def _number(name: str, default: int = 1) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() and int(value) else default
