"""One vector per class from every client: class means, what of them is sent, and what the server makes of them.

A class that a client does not hold is absent from what it sends. Under secure aggregation all clients must send the
same shapes, so a client sends a table of all classes, in which those that it lacks add nothing, and a flag for each
class that it holds: from the two sums the server has the means over holders.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flgen.deferred import TYPE_CHECKING
from flgen.wire import codecs

if TYPE_CHECKING:
    from flgen.federation.clients import Federation
    from flgen.topology.star import Uploads


@dataclass(frozen=True)
class ClassVectors:
    """What the server has of one round.

    Args:
        rows: Every vector that was sent (M, d), client by client; under secure aggregation the mean of each class.
        labels: The class of each, int64 (M,).
        means: Plain mean over the clients that hold a class (classes, d); zero for a class that nobody holds.
        holders: Number of clients that hold each class, int64 (classes,).
        weights: Number of samples behind each row (M,), where clients say it; ones where they do not.
    """

    rows: Tensor
    labels: Tensor
    means: Tensor
    holders: Tensor
    weights: Tensor

    @property
    def held(self) -> Tensor:
        """Whether anybody holds a class, bool (classes,)."""
        return self.holders > 0

    @property
    def pairs(self) -> int:
        """Number of client-class pairs, sum_i C_i."""
        return int(self.holders.sum())


def class_sums(
    batches: Iterable[tuple[Tensor, Tensor]], classes: int, nothing: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the sum of the vectors of each class, float64 (classes, d), and their number, int64 (classes,).

    Args:
        batches: Vectors (B, d) and their labels int64 (B,).
        classes: Number of classes.
        nothing: Vectors (0, d) on the right device, where there may be no batch.
    """
    no_labels = torch.zeros(0, dtype=torch.int64)
    total, counts = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    for vectors, y in itertools.chain([] if nothing is None else [(nothing, no_labels)], batches):
        # As a product: index_add_ on a GPU adds in no fixed order.
        one_hot = torch.nn.functional.one_hot(y.to(vectors.device), classes).to(torch.float64)
        total = total.to(vectors.device) + one_hot.T @ vectors.detach().double()
        counts = counts.to(vectors.device) + one_hot.sum(dim=0).to(torch.int64)
    return total, counts


def class_means(
    batches: Iterable[tuple[Tensor, Tensor]], classes: int, nothing: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the mean vector of each class, float64 (classes, d), zero where there is none, and the numbers behind it.

    Args:
        batches: Vectors (B, d) and their labels int64 (B,).
        classes: Number of classes.
        nothing: Vectors (0, d) on the right device, where there may be no batch.
    """
    total, counts = class_sums(batches, classes, nothing)
    return total / counts.clamp(min=1).unsqueeze(1), counts


def send(name: str, table: Tensor, held: Tensor, summed: bool, counts: Tensor | None = None) -> codecs.Payload:
    """Return what a client sends of its vectors.

    Args:
        name: Of the vectors among what is sent.
        table: One row per class (classes, d).
        held: Whether the client holds each class, bool (classes,).
        summed: Whether only sums over clients will be seen.
        counts: Samples of each class, int64 (classes,), if those are sent too.
    """
    table = table.float()
    if summed:
        whole = torch.where(held.unsqueeze(1), table, torch.zeros_like(table))
        return {name: codecs.dense(whole), "held": codecs.dense(held.to(torch.int64))}
    labels = held.nonzero().squeeze(1)
    small = torch.uint8 if len(held) <= 256 else torch.int16
    sent = {name: codecs.dense(table[labels]), "labels": codecs.dense(labels.to(small))}
    return sent if counts is None else {**sent, "label_counts": codecs.dense(counts[labels].to(torch.int32))}


def receive(name: str, uploads: Uploads, federation: Federation, classes: int, summed: bool) -> ClassVectors:
    """Return what the server has of the vectors that clients sent.

    Args:
        name: As in `send`.
        uploads: What arrived.
        federation: Orders single uploads, so that numbering the clients otherwise changes nothing.
        classes: Number of classes.
        summed: As in `send`.
    """
    if summed:
        sums = uploads.sum()
        holders = sums["held"].round().to(torch.int64)
        means = sums[name].double() / holders.clamp(min=1).unsqueeze(1)
        means = torch.where((holders > 0).unsqueeze(1), means, torch.zeros_like(means))
        labels = (holders > 0).nonzero().squeeze(1)
        return ClassVectors(means[labels].float(), labels, means, holders, torch.ones(len(labels)))
    received = sorted(uploads.gather().items(), key=lambda pair: federation.clients[pair[0]].key)
    rows = torch.cat([sent[name] for _, sent in received])
    labels = torch.cat([sent["labels"] for _, sent in received]).to(torch.int64)
    means, holders = class_means([(rows, labels)], classes)
    weights = torch.cat([_weights(sent) for _, sent in received])
    return ClassVectors(rows, labels, means, holders, weights)


def send_table(name: str, means: Tensor, held: Tensor) -> codecs.Payload:
    """Return what the server sends of a table of classes: the rows of the classes that somebody held, and which.

    Args:
        name: Of the rows among what is sent; another one than that under which clients send theirs.
        means: One row per class (classes, d).
        held: Whether there is a row, bool (classes,).
    """
    # Under secure aggregation an upload of a download's name and shape travels as the difference of the two. That fits
    # weights, which clients move a little; of a class that a client lacks it would be minus the whole row, cut off at
    # the clip, and the sum over clients would be wrong by what was cut.
    return {name: codecs.dense(means[held].float()), "held": codecs.bits(held)}


def receive_table(name: str, download: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the table that a server sent, float32 (classes, d) with zeros for absent classes, and which are there."""
    held, rows = download["held"], download[name]
    table = rows.new_zeros(len(held), rows.shape[1])
    table[held] = rows
    return table, held


def _weights(sent: Mapping[str, Tensor]) -> Tensor:
    return sent["label_counts"].double() if "label_counts" in sent else sent["labels"].double() * 0 + 1
