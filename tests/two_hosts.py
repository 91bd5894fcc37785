"""Two hosts on one machine: network namespaces joined by a cable, each with a command line of its own. Needs root.

Names and addresses are drawn when the hosts are made, so that several pairs may live side by side.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PORT = 29511
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Ended:
    """What a command left behind.

    Args:
        status: Its exit status.
        output: What it printed on both streams.
        seconds: How long it ran.
    """

    status: int
    output: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        """The lines by which flgen says what went wrong."""
        return [line for line in self.output.splitlines() if line.startswith("flgen: error:")]


class Running:
    """A command on its way, with everything that it starts.

    Args:
        words: What is typed.
        folder: Where.
        environment: What is set in the shell besides.
        output: The file that takes what it prints.
    """

    def __init__(self, words: Sequence[str], folder: Path, environment: Mapping[str, str], output: Path) -> None:
        self._output = output
        self._started = time.monotonic()
        shell = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "GLOO_", "NCCL_"))}
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                list(words),
                cwd=folder,
                env={**shell, "OMP_NUM_THREADS": "1", **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def wait(self, limit_s: float) -> Ended:
        """Return what came of it.

        Args:
            limit_s: How long it may take from now, seconds; then it is killed, and the exit status is negative.
        """
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
        return Ended(
            self._process.returncode, self._output.read_text(errors="replace"), time.monotonic() - self._started
        )

    def kill(self) -> None:
        """End it and what it started, if it still runs."""
        if self.is_alive:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)


class TwoHosts:
    """Two hosts, 0 and 1, and the cable between them.

    Args:
        outputs: A folder for what commands print.
    """

    def __init__(self, outputs: Path) -> None:
        tag = secrets.token_hex(4)
        subnet = f"10.{64 + secrets.randbelow(64)}.{secrets.randbelow(256)}"
        self.names = [f"flgen-{tag}-{host}" for host in (0, 1)]
        self.addresses = [f"{subnet}.{1 + host}" for host in (0, 1)]
        self.interfaces = [f"fl{tag}{host}" for host in (0, 1)]
        self._outputs = outputs
        self._commands: list[Running] = []

    def __enter__(self) -> TwoHosts:
        try:
            for name in self.names:
                _ip("netns", "add", name)
            # Made inside the namespaces: nothing of it is ever seen outside.
            one, other = self.interfaces
            _ip("-n", self.names[0], "link", "add", one, "type", "veth", "peer", "name", other, "netns", self.names[1])
            for name, address, interface in zip(self.names, self.addresses, self.interfaces, strict=True):
                _ip("-n", name, "addr", "add", f"{address}/24", "dev", interface)
                _ip("-n", name, "link", "set", interface, "up")
                _ip("-n", name, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for command in self._commands:
            command.kill()
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def cut(self) -> None:
        """Pull the cable."""
        _ip("-n", self.names[1], "link", "set", self.interfaces[1], "down")

    def mend(self) -> None:
        """Put it back."""
        _ip("-n", self.names[1], "link", "set", self.interfaces[1], "up")

    def limit(self, rate: str) -> None:
        """Let the cable carry no more than a rate, such as "1gbit", in each direction."""
        for name, interface in zip(self.names, self.interfaces, strict=True):
            shaping = ("root", "tbf", "rate", rate, "burst", "512kb", "latency", "50ms")
            command = ["ip", "netns", "exec", name, "tc", "qdisc", "replace", "dev", interface, *shaping]
            subprocess.run(command, check=True, capture_output=True)

    def start(
        self, host: int, words: Sequence[str | Path], folder: Path, environment: Mapping[str, str] | None = None
    ) -> Running:
        """Start a command on a host."""
        inside = ["ip", "netns", "exec", self.names[host], *(str(word) for word in words)]
        output = self._outputs / f"command-{len(self._commands):03d}.txt"
        self._commands.append(Running(inside, folder, environment or {}, output))
        return self._commands[-1]

    def torchrun(
        self, arguments: Sequence[str | Path], folders: Sequence[Path], *, per_node: int = 1, nodes: int = 2
    ) -> list[Running]:
        """Start `torchrun flgen ARGUMENTS` on each of the first hosts.

        Args:
            arguments: What is typed after `flgen`.
            folders: Where it is typed, for each host.
            per_node: Processes on each.
            nodes: Number of hosts.
        """
        return [
            self.start(host, self._torchrun(host, nodes, per_node, arguments), folder)
            for host, folder in zip(range(nodes), folders, strict=True)
        ]

    def _torchrun(self, host: int, nodes: int, per_node: int, arguments: Sequence[str | Path]) -> list[str | Path]:
        launcher: list[str | Path] = [BIN / "torchrun", f"--nnodes={nodes}", f"--nproc-per-node={per_node}"]
        launcher += [f"--node-rank={host}", f"--master-addr={self.addresses[0]}", f"--master-port={PORT}"]
        return [*launcher, "--no-python", BIN / "flgen", *arguments]


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
