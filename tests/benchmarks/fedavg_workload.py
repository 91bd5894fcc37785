"""FedAvg of a small CNN over 100 clients: as flgen runs it, and as the bare loop that does the same local steps."""

from __future__ import annotations

import torch
from cnn_workload import BATCH_SIZE, LEARNING_RATE, SEED, Setting, Stripes, initial_model
from torch import Tensor, nn

from flgen import FedAvg, LocalTraining
from flgen.federation.clients import Client, Federation
from flgen.federation.streams import RandomStreams

COHORT = 10


def make_method() -> FedAvg:
    return FedAvg(LocalTraining(batch_size=BATCH_SIZE))


class BareLoop:
    """FedAvg in the fewest lines: the clients' rows, a network, SGD, and an average in float32."""

    def __init__(self, setting: Setting, data: Stripes) -> None:
        streams = RandomStreams(SEED)
        self.rows = setting.rows(data)
        clients = [Client(k, len(rows), streams, k, lambda device: None) for k, rows in enumerate(self.rows)]  # type: ignore[arg-type, return-value]
        self.federation = Federation(clients, streams, clients_per_round=setting.cohort)
        self.images, self.labels = data.train.images, data.train.labels
        self.network: nn.Module = initial_model().network
        self.parameters = list(self.network.parameters())
        self.weights = [parameter.detach().clone() for parameter in self.parameters]

    def plan(self, t: int) -> list[tuple[Tensor, int]]:
        """Return the rows of each client of round t and the seed of its batches: those that flgen draws."""
        cohort = self.federation.cohort(t)
        return [(self.rows[c.id], c.streams.seed_for("batches", round=t, client=c.key)) for c in cohort]

    def round(self, plan: list[tuple[Tensor, int]]) -> None:
        """Train every client from the same weights and average what comes out, weighted by samples."""
        average = [torch.zeros_like(weight) for weight in self.weights]
        samples = sum(len(rows) for rows, _ in plan)
        for rows, seed in plan:
            with torch.no_grad():
                for parameter, weight in zip(self.parameters, self.weights, strict=True):
                    parameter.copy_(weight)
            optimizer = torch.optim.SGD(self.parameters, lr=LEARNING_RATE)
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
            for positions in order.split(BATCH_SIZE):
                chosen = rows[positions]
                inputs = self.images[chosen].float().div_(127.5).sub_(1)
                loss = nn.functional.cross_entropy(self.network(inputs), self.labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                for total, parameter in zip(average, self.parameters, strict=True):
                    total.add_(parameter, alpha=len(rows) / samples)
        self.weights = average

    def meet(self, vector: Tensor) -> float:
        """Return the largest difference from flgen's weights (d,), and go on from those."""
        own = torch.cat([weight.flatten() for weight in self.weights])
        parts = vector.split([weight.numel() for weight in self.weights])
        self.weights = [part.clone().view_as(weight) for part, weight in zip(parts, self.weights, strict=True)]
        return float((own - vector).abs().max())
