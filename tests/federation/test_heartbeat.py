"""Processes of several nodes hear of each other's end; here they are threads, and the nodes are one machine."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from queue import Empty, Queue

import pytest
import torch.distributed as dist

from flgen.errors import FlgenError
from flgen.federation.heartbeat import Heartbeat, Loss, Place, set_keep_alive

LOOPBACK = "127.0.0.1"
SOON_S = 10


class Job:
    """All processes of a job, connected and listening.

    Args:
        nodes: Number of nodes.
        ranks_per_node: Processes on each.
    """

    def __init__(self, nodes: int, ranks_per_node: int) -> None:
        self.store = dist.HashStore()
        self.store.set_timeout(timedelta(seconds=SOON_S))
        self.losses: list[Queue[Loss]] = [Queue() for _ in range(nodes * ranks_per_node)]
        self.ranks: list[Heartbeat] = []
        made: dict[int, Heartbeat] = {}

        def connect(rank: int) -> None:
            node, local_rank = divmod(rank, ranks_per_node)
            place = Place(rank, local_rank, node, nodes, ranks_per_node)
            made[rank] = Heartbeat(place, self.store, LOOPBACK, lost_after_s=30, limit_s=SOON_S)
            made[rank].listen(self.losses[rank].put)

        threads = [threading.Thread(target=connect, args=(rank,)) for rank in range(nodes * ranks_per_node)]
        for thread in reversed(threads):  # in whatever order they come
            thread.start()
        for thread in threads:
            thread.join(SOON_S)
        self.ranks = [made[rank] for rank in range(len(threads))]

    def vanish(self, rank: int) -> None:
        """Let a process be gone, as the kernel does it when one is killed."""
        for connection in self.ranks[rank]._peers:
            with suppress(OSError):  # the other side may be gone already
                connection.shutdown(socket.SHUT_RDWR)

    def hears(self, rank: int) -> Loss:
        """Return what a process hears soon."""
        return self.losses[rank].get(timeout=SOON_S)

    def hear_nothing(self, *ranks: int) -> bool:
        """Whether these processes have heard nothing for a while."""
        time.sleep(0.2)
        return all(self.losses[rank].empty() for rank in ranks)


@pytest.fixture
def job() -> Iterator[Callable[[int, int], Job]]:
    """Return a function that connects a job; its connections are closed afterwards."""
    jobs: list[Job] = []

    def connect(nodes: int, ranks_per_node: int) -> Job:
        jobs.append(Job(nodes, ranks_per_node))
        return jobs[-1]

    yield connect
    for made in jobs:
        for heartbeat in made.ranks:
            heartbeat.end()
    for made in jobs:
        for heartbeat in made.ranks:
            for connection in heartbeat._peers:
                connection.close()


def test_processes_that_come_to_their_end_one_after_another_lose_nobody(job: Callable[[int, int], Job]) -> None:
    three_nodes = job(3, 2)
    for rank in (4, 0, 5, 1):
        three_nodes.ranks[rank].end()
        three_nodes.vanish(rank)
    assert three_nodes.hear_nothing(*range(6))


def test_a_failure_is_told_to_the_other_nodes_and_to_the_processes_beside(job: Callable[[int, int], Job]) -> None:
    two_nodes = job(2, 2)
    two_nodes.ranks[2].end(failed=True)  # the first process of node 1
    host = socket.gethostname()
    assert two_nodes.hears(0) == Loss(f"a process of node 1 ({host}) failed and has said why there", True, told=True)
    beside = two_nodes.hears(3)
    assert (beside.elsewhere, beside.told) == (False, True)
    assert two_nodes.hear_nothing(1)  # its own first process tells it
    two_nodes.ranks[0].end(failed=True)
    assert two_nodes.hears(1).elsewhere is False


def test_a_process_that_is_killed_is_missed(job: Callable[[int, int], Job]) -> None:
    two_nodes = job(2, 2)
    two_nodes.vanish(3)  # known to the first process of its node only
    assert two_nodes.hears(2) == Loss(f"a process of node 1 ({socket.gethostname()}) ended without a word", False)
    assert two_nodes.hear_nothing(0, 1)
    two_nodes.vanish(2)
    assert two_nodes.hears(0) == Loss(f"a process of node 1 ({socket.gethostname()}) ended without a word", True)


def test_a_wake_up_for_nothing_is_no_loss(job: Callable[[int, int], Job], monkeypatch: pytest.MonkeyPatch) -> None:
    class Restless(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
        rested = False

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if self.rested:
                return super().select(timeout)
            self.rested = True
            return [(key, selectors.EVENT_READ) for key in self.get_map().values()]

    monkeypatch.setattr(selectors, "DefaultSelector", Restless)
    two_nodes = job(2, 1)
    assert two_nodes.hear_nothing(0, 1)
    two_nodes.ranks[1].end(failed=True)
    assert two_nodes.hears(0).told  # it has gone on listening


def test_one_loss_is_heard_once(job: Callable[[int, int], Job]) -> None:
    three_nodes = job(3, 1)
    three_nodes.vanish(1)
    three_nodes.vanish(2)
    three_nodes.hears(0)
    with pytest.raises(Empty):
        three_nodes.losses[0].get(timeout=0.2)


def test_strangers_are_not_let_in() -> None:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=SOON_S))
    losses: Queue[Loss] = Queue()
    made: list[Heartbeat] = []

    def connect(node: int) -> None:
        heartbeat = Heartbeat(Place(node, 0, node, 2, 1), store, LOOPBACK, lost_after_s=30, limit_s=SOON_S)
        heartbeat.listen(losses.put)
        made.append(heartbeat)

    first = threading.Thread(target=connect, args=(0,))
    first.start()
    _, address, port = store.get("flgen/heartbeat/0").decode().split()
    for greeting in (b"", b"GET / HTTP/1.1\r\n", bytes(16) + struct.pack("!i", 1)):
        with socket.create_connection((address, int(port)), timeout=SOON_S) as stranger:
            stranger.sendall(greeting)
            stranger.shutdown(socket.SHUT_WR)
            stranger.settimeout(SOON_S)
            assert stranger.recv(1) == b""  # turned away, and nothing is told
    assert first.is_alive()  # it still waits for the process that it knows
    connect(1)
    first.join(SOON_S)
    assert len(made) == 2
    assert losses.empty()
    for heartbeat in made:
        heartbeat.end()


def test_a_node_that_does_not_come_is_an_error_within_the_limit() -> None:
    started = time.monotonic()
    with pytest.raises(FlgenError, match=r"^node 0 \(.*127\.0\.0\.1\) could not be connected .*timed out.*ports"):
        Heartbeat(Place(0, 0, 0, 2, 1), dist.HashStore(), LOOPBACK, lost_after_s=30, limit_s=0.2)
    assert time.monotonic() - started < SOON_S


def test_a_silent_connection_is_asked_about_and_given_up_in_time() -> None:
    with socket.socket() as connection:
        set_keep_alive(connection, 30)
        option = connection.getsockopt
        assert option(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        first, every, times = (
            option(socket.IPPROTO_TCP, name) for name in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert first + every * times == 30
        assert option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
