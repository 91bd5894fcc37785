"""Several networks for one federation, and the rule that says which client has which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from flgen.deferred import TYPE_CHECKING, LightningModule, deferred_module
from flgen.errors import UsageError

if TYPE_CHECKING:
    import torch
else:
    torch = deferred_module("torch")


class ModelGroup(LightningModule):
    """Networks of different architectures, of which every client of a federation has one.

    It computes nothing itself: methods whose clients keep networks of their own pick a client's from it, and a process
    holds one module of each, in which its clients take turns.

    Args:
        models: The networks; a list in place of --model stands for a group of these.
        assignment: Client i has network i mod X of X ("cyclic"), or clients are cut into X runs of equal length, give
            or take one ("blocks"), or the list says each client's network, counted from 0.

    Raises:
        UsageError: There is no network, or the list names one that does not exist.
    """

    def __init__(
        self, models: list[LightningModule], assignment: Literal["cyclic", "blocks"] | list[int] = "cyclic"
    ) -> None:
        super().__init__()
        if not models:
            raise UsageError("--model is an empty group: give it at least one network")
        if not isinstance(assignment, str):
            wrong = [number for number in assignment if not 0 <= number < len(models)]
            if wrong:
                raise UsageError(
                    f"--model.assignment names network {wrong[0]}, but there are {len(models)}: count them from 0"
                )
        self.networks = torch.nn.ModuleList(models)
        self.assignment = assignment

    @property
    def models(self) -> list[LightningModule]:
        """The networks, in the order of their numbers."""
        return list(self.networks)  # type: ignore[arg-type]

    def check_clients(self, clients: int) -> None:
        """Refuse a list of assignments that is not one for each client.

        Args:
            clients: Number of clients of the federation.

        Raises:
            UsageError: It has another length.
        """
        if not isinstance(self.assignment, str) and len(self.assignment) != clients:
            raise UsageError(
                f"--model.assignment names networks for {len(self.assignment)} clients, but there are {clients} "
                "(--partition.clients): give one number for each"
            )

    def architecture_of(self, client: int, clients: int) -> int:
        """Return the number of a client's network, from 0.

        Args:
            client: The client's number, from 0.
            clients: Number of clients of the federation.

        Source: FedKTL, section 3.
        """
        if not isinstance(self.assignment, str):
            return self.assignment[client]
        if self.assignment == "blocks":
            return client * len(self.models) // clients
        return client % len(self.models)

    def forward(self, *batch: Any) -> Any:
        """Refuse: there is no common network."""
        raise UsageError("a group of networks has none in common: use a method whose clients keep their own networks")


def networks_of(model: LightningModule) -> list[LightningModule]:
    """Return the networks of a group, or the only one."""
    return model.models if isinstance(model, ModelGroup) else [model]


def as_one_module(model: LightningModule | Sequence[LightningModule]) -> LightningModule:
    """Return a list of networks as a group, anything else as it is."""
    return ModelGroup(list(model)) if isinstance(model, (list, tuple)) else model  # type: ignore[return-value]
