"""A cluster of SLURM on this machine: controller, authentication and two nodes on loopback, and nothing left behind.

All daemons and jobs live in a PID namespace of their own, whose first process ends when this one closes its input, or
dies; the kernel then kills whatever is inside.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

NODES = ("127.0.0.1", "127.0.0.2")
"""Names that lead to this machine anywhere: ranks look for the first of them."""

CONFIGURATION = """\
ClusterName=flgen
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=10000
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=10
MinJobAge=3600
FirstJobId={first_job}
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[0]} CPUs=4 RealMemory=4000
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000
PartitionName=low Nodes=ALL Default=YES PriorityTier=1
PartitionName=high Nodes=ALL PriorityTier=10
"""

NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
START = """\
set -eu
munged --force --key-file="$1/munge/key" --socket="$1/munge/socket" --pid-file="$1/munge/pid" \\
  --log-file="$1/munge/log" --seed-file="$1/munge/seed"
slurmctld -c
slurmd -N "$2" -c
slurmd -N "$3" -c
cat >/dev/null
"""

UP_WITHIN_S = 30
GONE_WITHIN_S = 10


class Cluster:
    """What a user of it may do.

    Args:
        folder: Where it keeps everything; the name of a socket in it must stay below 108 characters.
        environment: What is set in the shells of daemons and users besides.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        shell = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        shell.update(environment, SLURM_CONF=str(folder / "slurm.conf"))
        shell["PATH"] = os.pathsep.join((shell["PATH"], "/usr/sbin", "/sbin"))
        self._environment = shell
        self._namespace: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Cluster:
        self._configure()
        with (self.folder / "log" / "start").open("wb") as said:
            self._namespace = subprocess.Popen(
                [*NAMESPACE, "bash", "-c", START, "start", str(self.folder), *NODES],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=self._environment,
                cwd=self.folder,
            )
        try:
            self.until(self._is_up, UP_WITHIN_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._namespace is not None
        assert self._namespace.stdin is not None
        self._namespace.stdin.close()
        try:
            self._namespace.wait(GONE_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._namespace.kill()
            self._namespace.wait()

    def submit(self, folder: Path, *words: str | Path) -> int:
        """Type `sbatch WORDS` in a folder; return the job's number."""
        return int(self.client("sbatch", "--parsable", *words, folder=folder))

    def state(self, job: int | str) -> str:
        """Return a job's state in SLURM's words: PENDING, RUNNING, COMPLETED, FAILED and so on."""
        return self.about(job)["JobState"]

    def about(self, job: int | str) -> dict[str, str]:
        """Return what SLURM knows of a job, or of one task of an array, as `12_3`."""
        return dict(
            word.split("=", 1) for word in self.client("scontrol", "-o", "show", "job", job).split() if "=" in word
        )

    def wait(
        self, job: int | str, limit_s: float, until: tuple[str, ...] = ("COMPLETED", "FAILED", "CANCELLED")
    ) -> str:
        """Return the state in which a job ends, or the first of others that are waited for."""
        self.until(lambda: self.state(job) in until, limit_s, job)
        return self.state(job)

    def signal(self, job: int | str, name: str) -> None:
        """Send a signal to the processes of a job, as `--signal=NAME@seconds` does."""
        self.client("scancel", "--signal", name, job)

    def start_now(self, job: int | str) -> None:
        """Do not wait out the two minutes for which SLURM holds a job that is back in the queue."""
        self.client("scontrol", "update", f"JobId={job}", "StartTime=now+2")

    def cancel_all(self) -> None:
        """Cancel what still runs or waits."""
        self.client("scancel", "--user", "root")

    def printed(self, job: int | str) -> str:
        """Return what a job has printed."""
        return Path(self.about(job)["StdOut"]).read_text(errors="replace")

    def client(self, *words: str | int | Path, folder: Path | None = None) -> str:
        """Run one of SLURM's commands, in a folder if that matters; return what it prints."""
        done = subprocess.run(
            [str(word) for word in words],
            cwd=folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def until(self, holds: Callable[[], bool], limit_s: float, job: int | str | None = None) -> None:
        """Wait until something holds, or a job is over; then fail with what the daemons and the job have said."""
        deadline = time.monotonic() + limit_s
        while not holds():
            over = job is not None and self.state(job) in ("FAILED", "CANCELLED") and not holds()
            if over or time.monotonic() > deadline:
                said = [file.read_text(errors="replace")[-2000:] for file in sorted((self.folder / "log").iterdir())]
                about = "" if job is None else f"{self.about(job)}\n{self.printed(job)}\n"
                raise AssertionError(
                    f"{'the job is over' if over else f'not within {limit_s} s'}\n{about}" + "\n".join(said)
                )
            time.sleep(0.2)

    def _configure(self) -> None:
        for name in ("state", "log", "spool", "munge"):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge" / "key"
        key.touch(mode=0o400)
        key.write_bytes(secrets.token_bytes(1024))
        controller, *nodes = _free_ports(1 + len(NODES))
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=socket.gethostname().partition(".")[0],
                folder=self.folder,
                controller=controller,
                ports=nodes,
                nodes=NODES,
                # The port of a job's process group follows from its number: two clusters should not use the same ones.
                first_job=1 + secrets.randbelow(9000),
            )
        )

    def _is_up(self) -> bool:
        sinfo = ["sinfo", "--noheader", "--Node", "--partition=low", "--format=%T"]
        done = subprocess.run(sinfo, env=self._environment, capture_output=True, text=True, timeout=30)
        return done.stdout.split() == ["idle"] * len(NODES)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        with closing(each):
            pass
    return ports
