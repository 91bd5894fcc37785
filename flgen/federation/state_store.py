"""Where clients' persistent state lives between rounds: the device, pinned host memory, or files.

Changes are staged during a round and take effect together when it is complete, so a round that is
interrupted leaves no trace and can be run again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from flgen.errors import FlgenError

State = dict[str, Tensor]
Tier = Literal["device", "host", "disk"]
TIERS: tuple[Tier, ...] = ("device", "host", "disk")


class ClientStateStore:
    """State of the clients that one rank hosts.

    Args:
        device: Where clients compute.
        clients: Number of clients hosted, to foresee the size of everything from the states staged so far.
        budget_mb: Megabytes (2^20 bytes) that may be kept on the device, and again as many times four in host
            memory, before the next tier is used.
        folder: Where the files of the last tier go; made when needed and removed by `close`.
    """

    def __init__(self, device: torch.device, clients: int, budget_mb: float, folder: Path) -> None:
        self._device = device
        self._clients = clients
        self._budget_bytes = budget_mb * 2**20
        self._folder = folder
        self._tier: Tier | None = None
        self._bytes: dict[int, int] = {}  # of each client's latest state
        self._committed: dict[int, State | Path] = {}
        self._staged: dict[int, State | Path] = {}
        self._generation = 0

    @property
    def tier(self) -> Tier | None:
        """Where states are kept; None until the first one is staged. Larger ones than expected may lower it."""
        return self._tier

    def load(self, client: int) -> State:
        """Return a working copy of a client's committed state on the device; empty if it has none."""
        kept = _opened(self._committed.get(client, {}))
        return {name: tensor.to(self._device, copy=True) for name, tensor in kept.items()}

    def stage(self, client: int, state: Mapping[str, Tensor]) -> None:
        """Keep a copy of a client's new state aside until `commit`.

        Raises:
            FlgenError: The files of the last tier cannot be written.
        """
        if not state:
            return
        self._bytes[client] = sum(tensor.nbytes for tensor in state.values())
        self._move_to(self._expected_tier())
        _discard([self._staged.pop(client, None)])
        self._staged[client] = self._keep(client, state)

    def commit(self) -> None:
        """Make every staged state the committed one."""
        replaced = [self._committed.get(client) for client in self._staged]
        self._committed.update(self._staged)
        self._staged = {}
        _discard(replaced)

    def rollback(self) -> None:
        """Forget every staged state."""
        _discard(self._staged.values())
        self._staged = {}

    def state_dict(self) -> dict[int, State]:
        """Return every committed state by client id, not copied, for a checkpoint to write."""
        return {client: _opened(self._committed[client]) for client in sorted(self._committed)}

    def load_state_dict(self, states: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Replace everything by the states of a checkpoint."""
        self.rollback()
        _discard(self._committed.values())
        self._committed = {}
        for client, state in states.items():
            self.stage(client, {name: tensor.to(self._device) for name, tensor in state.items()})
        self.commit()

    def close(self) -> None:
        """Remove the files of the last tier."""
        if self._tier == "disk":
            shutil.rmtree(self._folder, ignore_errors=True)

    def _expected_tier(self) -> Tier:
        # Clients that have staged nothing yet are taken for average ones: their networks may differ in size. Twice: a
        # round's staged states stand beside the committed ones until it is complete.
        expected = 2 * self._clients * sum(self._bytes.values()) / len(self._bytes)
        if expected <= self._budget_bytes:
            return "device"
        return "host" if expected <= 4 * self._budget_bytes else "disk"

    def _move_to(self, tier: Tier) -> None:
        """Keep everything in this tier from now on, unless the present one is further down already."""
        if self._tier is not None and TIERS.index(tier) <= TIERS.index(self._tier):
            return
        self._tier = tier
        for states in (self._committed, self._staged):
            for client, kept in states.items():
                states[client] = self._keep(client, _opened(kept))

    def _keep(self, client: int, state: Mapping[str, Tensor]) -> State | Path:
        # Always a copy: a method may hand over a view of a buffer that the next client computes in.
        if self._tier == "device":
            return {name: tensor.detach().clone() for name, tensor in state.items()}
        if self._tier == "host":
            pin = self._device.type == "cuda"
            return {
                name: tensor.detach().cpu().pin_memory() if pin else tensor.detach().to("cpu", copy=True)
                for name, tensor in state.items()
            }
        self._generation += 1
        path = self._folder / f"client-{client:06d}-{self._generation}.pt"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            torch.save({name: tensor.detach().cpu().clone() for name, tensor in state.items()}, path)
        except (OSError, RuntimeError) as error:
            raise FlgenError(
                f"the state of client {client} cannot be written to {path} ({' '.join(str(error).split())[:200]}): "
                "free some space, or raise --trainer.client_state_mb"
            ) from error
        return path


def _opened(kept: State | Path) -> State:
    return torch.load(kept, mmap=True, weights_only=True) if isinstance(kept, Path) else kept


def _discard(states: Iterable[State | Path | None]) -> None:
    """Remove the files among states that are no longer needed."""
    for kept in states:
        if isinstance(kept, Path):
            kept.unlink(missing_ok=True)
