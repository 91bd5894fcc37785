"""Noticing that another node is out of reach, long before a collective would give up.

One process of each node, its leader, keeps a connection to the leader of every other node, and one to every other
process of its own. Nothing is sent while all is well: the kernel asks on a silent connection whether the other side is
there (TCP keep-alive). So a rank that computes for an hour, or holds the interpreter's lock, is not taken for lost,
and one that is blocked in a collective hears of a loss all the same.

A process says so when it leaves, at its end or because it failed. One that vanishes without a word was killed.
"""

from __future__ import annotations

import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import NamedTuple

from torch.distributed import Store

from flgen.errors import FlgenError

_DONE, _FAILED = b"d", b"f"
_TOKEN_BYTES = 16
_RANK = struct.Struct("!i")
_GREETING_LIMIT_S = 5


@dataclass(frozen=True)
class Place:
    """Where a process stands in the job.

    Args:
        rank: Global rank.
        local_rank: Rank on its node; 0 is the node's leader.
        node: The node's number.
        nodes: Number of nodes.
        ranks_per_node: Processes on each.
    """

    rank: int
    local_rank: int
    node: int
    nodes: int
    ranks_per_node: int


class Loss(NamedTuple):
    """Why a job cannot go on.

    Args:
        reason: What happened, for the user.
        elsewhere: Whether it happened between nodes or on another one; if not, this node's processes say more.
        told: Whether the process that failed has told so, so that this one may be about to find the same.
    """

    reason: str
    elsewhere: bool
    told: bool = False


class _Peer(NamedTuple):
    """The other end of a connection."""

    node: int
    host: str


class Heartbeat:
    """This process's connections, and the thread that listens to them.

    Args:
        place: This process's.
        store: What all processes of the job can read and write; its own time limit bounds every wait.
        address: This node's address on the network of the process group.
        lost_after_s: How long another node may be silent, seconds.
        limit_s: How long to wait for the others' connections, seconds.

    Raises:
        FlgenError: The processes could not be connected.
    """

    def __init__(self, place: Place, store: Store, address: str, *, lost_after_s: float, limit_s: float) -> None:
        self._place = place
        self._lost_after_s = lost_after_s
        self._peers: dict[socket.socket, _Peer] = {}
        self._over = threading.Event()
        try:
            self._connect(store, address, limit_s)
        except (OSError, RuntimeError) as error:  # the latter is the store's
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise FlgenError(
                f"node {place.node} ({socket.gethostname()}, {address}) could not be connected with the others "
                f"({reason}): every node must reach the ports of every other"
            ) from error

    def listen(self, on_loss: Callable[[Loss], None]) -> None:
        """Begin to listen to the others.

        Args:
            on_loss: Called once, in a thread of its own, with what happened. It ends the process.
        """
        threading.Thread(target=self._listen, args=(on_loss,), name="heartbeat", daemon=True).start()

    @property
    def over(self) -> bool:
        """Whether this process has come to its end."""
        return self._over.is_set()

    def end(self, *, failed: bool = False) -> None:
        """Tell the others that this process leaves; from now on nothing is a loss."""
        self._over.set()
        for connection in self._peers:
            with suppress(OSError):
                connection.send(_FAILED if failed else _DONE)

    def _connect(self, store: Store, address: str, limit_s: float) -> None:
        place = self._place
        deadline = time.monotonic() + limit_s
        if place.rank == 0:
            store.set("flgen/heartbeat/token", secrets.token_hex(_TOKEN_BYTES))
        if place.local_rank != 0:
            self._call(store, place.node, deadline)
            return
        callers = place.nodes - 1 - place.node + place.ranks_per_node - 1
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with closing(socket.socket(family, socket.SOCK_STREAM)) as door:
            door.bind((address, 0))
            door.listen(max(1, callers))
            where = f"{socket.gethostname()} {address} {door.getsockname()[1]}"
            store.set(f"flgen/heartbeat/{place.node}", where)
            for node in range(place.node):
                self._call(store, node, deadline)
            token = bytes.fromhex(store.get("flgen/heartbeat/token").decode())
            known: dict[int, str] = {}
            while callers:
                door.settimeout(max(0.001, deadline - time.monotonic()))
                connection, _ = door.accept()
                rank = _greeting(connection, token)
                if rank is None:  # nobody of this job
                    connection.close()
                    continue
                node = rank // place.ranks_per_node
                if node not in known:
                    known[node] = store.get(f"flgen/heartbeat/{node}").decode().split()[0]
                self._keep(connection, _Peer(node, known[node]))
                callers -= 1

    def _call(self, store: Store, node: int, deadline: float) -> None:
        """Connect with the leader of a node."""
        host, address, port = store.get(f"flgen/heartbeat/{node}").decode().split()
        token = bytes.fromhex(store.get("flgen/heartbeat/token").decode())
        connection = socket.create_connection((address, int(port)), timeout=max(0.001, deadline - time.monotonic()))
        connection.sendall(token + _RANK.pack(self._place.rank))
        self._keep(connection, _Peer(node, host))

    def _keep(self, connection: socket.socket, peer: _Peer) -> None:
        set_keep_alive(connection, self._lost_after_s)
        connection.setblocking(False)
        self._peers[connection] = peer

    def _listen(self, on_loss: Callable[[Loss], None]) -> None:
        with selectors.DefaultSelector() as selector:
            for connection, peer in self._peers.items():
                selector.register(connection, selectors.EVENT_READ, peer)
            while selector.get_map():
                for key, _ in selector.select():
                    assert isinstance(key.fileobj, socket.socket)
                    try:
                        loss = self._hear(key.fileobj, key.data)
                    except BlockingIOError:  # woken for nothing
                        continue
                    if loss is None:
                        selector.unregister(key.fileobj)
                        continue
                    if not self.over:
                        on_loss(loss)
                    return

    def _hear(self, connection: socket.socket, peer: _Peer) -> Loss | None:
        """Return what the news on a connection means, None if the other side has come to its end.

        Raises:
            BlockingIOError: There is no news yet.
        """
        elsewhere = peer.node != self._place.node
        who = f"node {peer.node} ({peer.host})"
        try:
            news = connection.recv(1)
        except (ConnectionResetError, BrokenPipeError):
            news = b""
        except BlockingIOError:
            raise
        except OSError:
            return Loss(f"lost contact with {who} for {self._lost_after_s:g} s", elsewhere)
        if news == _DONE:
            return None
        if news == _FAILED:
            return Loss(f"a process of {who} failed and has said why there", elsewhere, told=True)
        return Loss(f"a process of {who} ended without a word", elsewhere)


def set_keep_alive(connection: socket.socket, lost_after_s: float) -> None:
    """Let the kernel end a connection whose other side has not answered for so many seconds."""
    every = max(1, round(lost_after_s / 6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, every)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, every)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, max(1, round(lost_after_s / every) - 1))
    # Also while something sent is not acknowledged, when the kernel does not ask.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * lost_after_s))


def _greeting(connection: socket.socket, token: bytes) -> int | None:
    """Return the rank of who has connected, None if it does not know the job's token."""
    connection.settimeout(_GREETING_LIMIT_S)
    said = b""
    wanted = _TOKEN_BYTES + _RANK.size
    try:
        while len(said) < wanted:
            part = connection.recv(wanted - len(said))
            if not part:
                return None
            said += part
    except OSError:
        return None
    if not secrets.compare_digest(said[:_TOKEN_BYTES], token):
        return None
    return int(_RANK.unpack(said[_TOKEN_BYTES:])[0])
