"""DisPFL of a small CNN over 100 clients: as flgen runs it, and as the bare loop that does the same work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from cnn_workload import BATCH_SIZE, LEARNING_RATE, SEED, Setting, Stripes, initial_model
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, vector_to_parameters

from flgen import DisPFL, LocalTraining, RandomGraph, Sparsity
from flgen.federation.streams import RandomStreams
from flgen.masks.prune_regrow import positions_moved, prune_rate, prune_smallest, random_mask, regrow_random

SPARSITY = Sparsity(density=0.5)
CLIP_NORM = 10.0
DEGREE = 10


def make_method() -> DisPFL:
    training = LocalTraining(batch_size=BATCH_SIZE, clip_norm=CLIP_NORM)
    return DisPFL(training, SPARSITY, search="random", topology=RandomGraph(degree=DEGREE))


class Turn(NamedTuple):
    """What a client does in a round.

    Args:
        client: k.
        heard: N_k, itself included, ascending.
        alpha: Prune rate of the round.
        batches: Seed of its batches.
        regrow: Seed of the positions that it regrows.
    """

    client: int
    heard: list[int]
    alpha: float
    batches: int
    regrow: int


class BareLoop:
    """DisPFL in the fewest lines: w (K, d), m and s (K, P) stacked in memory, a network, masked SGD.

    Weights that are masked come last in a row. A second stack takes what a round makes, so that everybody reads what
    the others had at its start.
    """

    def __init__(self, setting: Setting, data: Stripes) -> None:
        self.streams = RandomStreams(SEED)
        self.rows = setting.rows(data)
        self.T, self.K = setting.rounds, setting.clients
        self.graph = RandomGraph(degree=DEGREE)
        self.images, self.labels = data.train.images, data.train.labels

        self.network: nn.Module = initial_model().network
        named = dict(self.network.named_parameters())
        active = SPARSITY.active({name: tuple(parameter.shape) for name, parameter in named.items()})[0]
        dense = [name for name, parameter in named.items() if active[name] == parameter.numel()]
        masked = [name for name in named if name not in dense]
        self.parameters = [named[name] for name in dense + masked]
        self.masked = [named[name] for name in masked]
        self.first = sum(named[name].numel() for name in dense)
        self.active = [active[name] for name in masked]

        self.m = torch.empty(self.K, sum(layer.numel() for layer in self.masked), dtype=torch.bool)
        for k in range(self.K):
            self.m[k] = self.first_mask(k)
        self.w = torch.cat([parameter.detach().flatten() for parameter in self.parameters]).repeat(self.K, 1)
        self.w[:, self.first :] *= self.m
        self.s = self.m.clone()
        self.next_w, self.next_m = self.w.clone(), self.m.clone()

    def first_mask(self, k: int) -> Tensor:
        """Return m_k (P,) before the first round."""
        draws = self.streams.torch("masks", client=k)
        counts = zip(self.masked, self.active, strict=True)
        return torch.cat([random_mask(layer.numel(), a_l, draws) for layer, a_l in counts])

    def plan(self, t: int) -> list[Turn]:
        """Return every client's turn in round t, with the neighbours and seeds that flgen draws."""
        alpha = prune_rate(t - 1, self.T, SPARSITY.anneal_factor)
        turns = []
        for k, sources in enumerate(self.graph.sources(t, self.K, self.streams)):
            batches, regrow = (self.streams.seed_for(what, round=t, client=k) for what in ("batches", "regrow"))
            turns.append(Turn(k, sorted((*sources, k)), alpha, batches, regrow))
        return turns

    def round(self, plan: list[Turn]) -> None:
        """Let each client mix what its neighbours had, train, and move its mask."""
        for turn in plan:
            self.mix(turn)
            self.train(turn)
            self.search(turn)
        self.w, self.next_w = self.next_w, self.w
        self.s, self.m, self.next_m = self.m, self.next_m, self.s

    def mix(self, turn: Turn) -> None:
        """Take the mean of each weight over those who have it, on the newest mask."""
        x, count = self.next_w[turn.client], torch.zeros(self.m.shape[1], dtype=torch.uint8)
        x.zero_()
        for j in turn.heard:
            x += self.w[j]
            count += self.s[j]
        x[: self.first] /= len(turn.heard)
        x[self.first :] /= count.clamp_(min=1)
        x[self.first :] *= self.m[turn.client]

    def train(self, turn: Turn) -> None:
        """Take one epoch of SGD steps with masked and clipped gradients, within the client's row."""
        vector_to_parameters(self.next_w[turn.client], self.parameters)
        masks = list(self.layers(self.m[turn.client].float()))
        optimizer = torch.optim.SGD(self.parameters, lr=LEARNING_RATE)
        rows = self.rows[turn.client]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(turn.batches))
        for positions in order.split(BATCH_SIZE):
            chosen = rows[positions]
            inputs = self.images[chosen].float().div_(127.5).sub_(1)
            loss = nn.functional.cross_entropy(self.network(inputs), self.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            for parameter, mask in zip(self.masked, masks, strict=True):
                parameter.grad.mul_(mask.view_as(parameter))  # type: ignore[union-attr]
            clip_grad_norm_(self.parameters, CLIP_NORM)
            optimizer.step()

    def search(self, turn: Turn) -> None:
        """Prune the smallest weights of each layer and regrow as many at random."""
        draws = torch.Generator().manual_seed(turn.regrow)
        parts = zip(
            self.active,
            self.layers(self.m[turn.client]),
            self.layers(self.next_w[turn.client, self.first :]),
            self.layers(self.next_m[turn.client]),
            strict=True,
        )
        for a_l, mask, weights, new in parts:
            q = positions_moved(turn.alpha, a_l)
            new.copy_(regrow_random(prune_smallest(mask, weights, q), q, draws))

    def layers(self, flat: Tensor) -> Iterator[Tensor]:
        """Return views of a row (P,), one per masked layer."""
        return iter(flat.split([layer.numel() for layer in self.masked]))

    def meet(self, states: Mapping[int, Mapping[str, Tensor]]) -> float:
        """Return the largest difference from the weights of flgen's clients, and go on from their states.

        Masks must be the same: a weight that only one of the two has would differ by all it is worth.
        """
        assert len(states) == self.K
        largest = 0.0
        for k, state in states.items():
            assert torch.equal(self.m[k], state["mask"])
            assert torch.equal(self.s[k], state["support"])
            largest = max(largest, float((self.w[k] - state["weights"]).abs().max()))
            self.w[k] = state["weights"]
        return largest
