"""Rounds of a federation of two different networks on a few digits, with the classes that each client holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from peer_trial import Trial
from torch import Tensor

from flgen import Digits, LocalTraining, ModelGroup, SmallCNN, SmallResNet
from flgen.client_turns import state_of
from flgen.data import Partitioner
from flgen.federation.clients import Client
from flgen.topology.star import Uploads
from flgen.wire.codecs import decode_payload, encode_payload

HELD = ([0, 1, 2], [2, 3, 4, 5], [5, 6, 7, 8, 9, 0])
"""Classes of three clients, who together hold all ten."""

PAIRS = sum(map(len, HELD))

ONE_EPOCH = LocalTraining(batch_size=8)


class HeldClasses(Partitioner):
    """Client k holds some samples of each of its classes and none of others.

    Args:
        held: Classes of each client.
        samples: Of each class; one number, or one for each client.
    """

    def __init__(self, held: Sequence[Sequence[int]], samples: int | Sequence[int] = 12) -> None:
        super().__init__(len(held))
        self.held = held
        self.samples = [samples] * len(held) if isinstance(samples, int) else samples

    def _deal(self, labels: np.ndarray, attributes: Mapping[str, np.ndarray], generator: Any) -> list[np.ndarray]:
        rows = {c: list(np.flatnonzero(labels == c)) for of_client in self.held for c in of_client}
        dealt = []
        for of_client, n in zip(self.held, self.samples, strict=True):
            dealt.append(np.array([rows[c].pop(0) for c in of_client for _ in range(n)]))
        return dealt


def two_networks(learning_rate: float = 0.1) -> ModelGroup:
    """Return a group of a narrow and a wide network with 16 features each."""
    torch.manual_seed(3)
    options: dict[str, Any] = {"image_size": 8, "feature_width": 16, "learning_rate": learning_rate}
    return ModelGroup([SmallCNN(width=width, **options) for width in (4, 6)])


def two_kinds(learning_rate: float = 0.1) -> ModelGroup:
    """Return a group of two kinds of networks with 16 features each; the second has BatchNorm."""
    torch.manual_seed(3)
    options: dict[str, Any] = {"image_size": 8, "width": 4, "feature_width": 16, "learning_rate": learning_rate}
    return ModelGroup([SmallCNN(**options), SmallResNet(**options)])


def logits_of_check_9_10() -> tuple[Tensor, Tensor]:
    """Return o and o_g of that check of the specification, float64 (2, 3), which want gradients."""
    o, o_g = [[2.0, 0, 0], [0, 1, 0]], [[0.0, 2, 0], [0, 1, 0]]
    return tuple(torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (o, o_g))  # type: ignore[return-value]


def mixed_trial(
    method: Any,
    held: Sequence[Sequence[int]] = HELD,
    samples: int | Sequence[int] = 12,
    model: Any = None,
    **options: Any,
) -> Trial:
    """Return a trial of a method whose clients have the two networks in turn.

    Args:
        method: The algorithm.
        held: Classes of each client.
        samples: Of each class.
        model: Replaces the two networks.
        options: Of the trial.
    """
    model = model or two_networks()
    return Trial(method, model, data=Digits(), partition=HeldClasses(held, samples), **options)


def with_state(trial: Trial, client: int) -> Client:
    """Return a client as a round finds it: with its state, and nobody who counts its steps."""
    found = trial.job.federation.clients[client]
    found.state, found.metrics = state_of(trial.method, trial.store, found), {}
    trial.method.on_local_step = lambda done, of: None
    return found


def sent_by(trial: Trial, client: int, t: int) -> dict[str, Tensor]:
    """Let a client do its step of round t, and return what it sends; its new state stays with it."""
    method = trial.method
    payload = method.client_step(with_state(trial, client), offered_by(method, t), t)
    return decode_payload(encode_payload(payload))


def offered_by(method: Any, t: int) -> dict[str, Tensor]:
    """Return what a client receives from the server in round t."""
    return decode_payload(encode_payload(method.download(t)))


def watch_uploads(method: Any) -> list[dict[int, dict[str, Tensor]]]:
    """Return a list that gets what the clients sent, by client, whenever the server of a method aggregates."""
    seen: list[dict[int, dict[str, Tensor]]] = []
    aggregate = method.aggregate

    def watched(t: int, uploads: Uploads) -> None:
        seen.append(uploads.gather())
        aggregate(t, uploads)

    method.aggregate = watched
    return seen
