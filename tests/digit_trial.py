"""Rounds of a method with a server on digits, looked at from inside, and what a round's messages must weigh."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning import LightningModule
from peer_trial import Trial
from torch import Tensor

from flgen import Digits, Dirichlet, LocalTraining, Shards, SmallCNN
from flgen.topology.star import Uploads

TWO_EPOCHS = LocalTraining(epochs=2, batch_size=32)
ENOUGH = LocalTraining(epochs=5, batch_size=16)
"""Training after which a round's models are worth something."""


def digit_trial(method: Any, clients: int = 4, model: LightningModule | None = None, **options: Any) -> Trial:
    """Return a trial of a method whose clients hold a few digits each.

    Args:
        method: The algorithm.
        clients: Number of clients.
        model: What they train; a small CNN by default.
        options: Of the trial.
    """
    if model is None:
        torch.manual_seed(3)
        model = SmallCNN(image_size=8, width=4)
    return Trial(method, model, data=Digits(), partition=Shards(clients=clients), **options)


def skewed_trial(method: Any) -> Trial:
    """Return a trial of three clients with classes in proportions of their own, who learn something in a round."""
    torch.manual_seed(3)
    return Trial(method, SmallCNN(image_size=8, width=4), data=Digits(), partition=Dirichlet(clients=3, alpha=0.5))


def dense_bytes(name: str, *shape: int, item: int = 4) -> int:
    """Return the bytes of a dense entry of a payload: its header and its elements."""
    return 20 + 8 * len(shape) + len(name) + item * math.prod(shape)


def traffic(outcome: Any) -> tuple[int, int]:
    """Return the bytes that clients received and sent in a round, as the ledger has them."""
    return outcome.metrics["comm/down_bytes"], outcome.metrics["comm/up_bytes"]


def gathered(*sent: dict[str, Tensor], samples: int = 2) -> Uploads:
    """Return what the server finds if client k sent the k-th of these."""
    return Uploads(tuple(range(len(sent))), samples, "gather", None, dict(enumerate(sent)))


class Constant(LightningModule):
    """A classifier that says the same about everything: its weights are its logits.

    Args:
        classes: Number of classes.
        fitted: Loss of training: cross-entropy, or none that could move anything.
    """

    def __init__(self, classes: int, fitted: bool = False) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(classes))
        self.fitted = fitted
        self.calls: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(self.training)
        return self.logits.repeat(len(x), 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = torch.nn.functional.cross_entropy(self.logits.expand(len(batch[1]), -1), batch[1])
        return loss if self.fitted else loss * 0

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", torch.nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)
