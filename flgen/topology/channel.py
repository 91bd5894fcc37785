"""The process group of a topology, and what goes through it.

With one process there is no group and every operation is a local no-op with the same result. Payload bytes
go through the job's own back end (gloo, NCCL); agreements about a round go through a small gloo group, whose
longer limit is how long a fast rank waits for a slow one's local training.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Transfer(NamedTuple):
    """One message on its way.

    Args:
        key: Name of the message.
        source: Rank that has it.
        destination: Rank that needs it.
        bytes: Its size.
    """

    key: int
    source: int
    destination: int
    bytes: int


class TimeSpent(NamedTuple):
    """Where a rank's time went in the channel.

    Args:
        waiting_s: At the meetings of all ranks, which end when the slowest one comes, seconds.
        moving_s: While payloads moved, seconds; on a GPU only until they were under way.
    """

    waiting_s: float = 0.0
    moving_s: float = 0.0


class Channel:
    """Exchange of bytes and sums between the ranks of one topology.

    Args:
        rank: This process.
        world_size: Number of processes.
        device: Where collectives of the job's back end want their tensors.
        timeout_s: Limit of one data exchange, seconds.
        round_timeout_s: How long to wait for the slowest rank at the end of local training, seconds.
    """

    def __init__(
        self, rank: int, world_size: int, device: torch.device, timeout_s: float, round_timeout_s: float
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = device
        self._spent = TimeSpent()
        self._data: Any = None
        self._control: Any = None
        if world_size > 1:
            ranks = list(range(world_size))
            self._data = dist.new_group(ranks, timeout=timedelta(seconds=timeout_s))
            self._control = dist.new_group(ranks, timeout=timedelta(seconds=round_timeout_s), backend="gloo")
            dist.barrier(self._control)  # connected everywhere: whoever fails from here on is noticed at once
            # NCCL wants every rank in a group's first operation, and an exchange may leave some of them out.
            dist.all_reduce(torch.zeros(1, device=device), group=self._data)

    def take_time(self) -> TimeSpent:
        """Return where the time went since the last call."""
        spent, self._spent = self._spent, TimeSpent()
        return spent

    @contextmanager
    def _moving(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._spent = self._spent._replace(moving_s=self._spent.moving_s + time.perf_counter() - started)

    def agree(self, statement: Any) -> list[Any]:
        """Every rank says something small; all ranks get the list of what was said, by rank."""
        if self.world_size == 1:
            return [statement]
        statements: list[Any] = [None] * self.world_size
        started = time.perf_counter()
        dist.all_gather_object(statements, statement, group=self._control)
        self._spent = self._spent._replace(waiting_s=self._spent.waiting_s + time.perf_counter() - started)
        return statements

    def broadcast(self, message: Tensor | None, source: int) -> Tensor:
        """Return the source's uint8 message (bytes,) on every rank; elsewhere `message` is None."""
        if self.world_size == 1:
            assert message is not None
            return message
        # Ranks meet under the long limit: the source may have evaluated or written files for minutes.
        size = self.agree(None if message is None else message.numel())[source]
        if message is None:
            message = torch.empty(size, dtype=torch.uint8, device=self.device)
        message = message.to(self.device)
        if size:
            with self._moving():
                dist.broadcast(message, source, group=self._data)
        return message

    def reduce(self, total: Tensor, destination: int) -> None:
        """Add up a tensor of the same shape and type over all ranks, in place on the destination."""
        if self.world_size > 1:
            with self._moving():
                dist.reduce(total, destination, op=dist.ReduceOp.SUM, group=self._data)

    def exchange(self, messages: Mapping[int, Tensor], plan: Sequence[Transfer]) -> dict[int, Tensor]:
        """Carry messages between ranks, all of them at once.

        Every operation is posted before any is waited for, so that no graph can make two ranks wait for each other;
        between two ranks messages arrive in the order of the plan.

        Args:
            messages: This rank's messages, uint8 (bytes,), by key.
            plan: Every transfer, the same list on every rank; a message may go to several ranks.

        Returns:
            The messages that the plan brings to this rank, by key, its own to itself included.
        """
        received: dict[int, Tensor] = {}
        sent: dict[int, Tensor] = {}  # where the back end can reach it, once for all who need it
        operations = []
        for key, source, destination, size in plan:
            if source == destination == self.rank:
                received[key] = messages[key]
            elif destination == self.rank:
                received[key] = torch.empty(size, dtype=torch.uint8, device=self.device)
                if size:
                    operations.append(dist.P2POp(dist.irecv, received[key], source, group=self._data))
            elif source == self.rank and size:
                if key not in sent:
                    sent[key] = messages[key].to(self.device)
                operations.append(dist.P2POp(dist.isend, sent[key], destination, group=self._data))
        if operations:
            with self._moving():
                for work in dist.batch_isend_irecv(operations):
                    work.wait()
        return received

    def gather_messages(
        self, messages: Mapping[int, Tensor], plan: Sequence[tuple[int, int, int]], destination: int
    ) -> dict[int, Tensor]:
        """Carry each message to the destination rank.

        Args:
            messages: This rank's messages, uint8 (bytes,), by key.
            plan: (key, source rank, bytes) of every message, the same list on every rank.
            destination: The rank that receives.

        Returns:
            All messages by key on the destination, nothing elsewhere.
        """
        return self.exchange(messages, [Transfer(key, source, destination, size) for key, source, size in plan])

    def gather_tensors(self, part: Tensor, destination: int) -> list[Tensor]:
        """Return every rank's tensor on the destination, by rank (nothing elsewhere); shapes may differ."""
        message = part.contiguous().view(-1).view(torch.uint8)
        described = self.agree((tuple(part.shape), message.numel()))
        plan = [(rank, rank, size) for rank, (_, size) in enumerate(described)]
        received = self.gather_messages({self.rank: message}, plan, destination)
        if self.rank != destination:
            return []
        return [
            received[rank].view(part.dtype).view(shape).to(part.device) for rank, (shape, _) in enumerate(described)
        ]
