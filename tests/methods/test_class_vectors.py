"""Class vectors: means, what is sent of them one by one or as a sum, and what the server has of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from digit_trial import gathered
from mixed_trial import mixed_trial
from small_methods import small_method
from torch import Tensor

from flgen import LocalTraining, SecureAggregation, Star
from flgen.methods import class_vectors
from flgen.topology.star import Uploads
from flgen.wire.codecs import decode_payload, encode_payload

CLASSES = 4
TABLES = [
    torch.tensor([[1.0, 0.0], [0.0, 0.0], [5.0, 6.0], [0.0, 0.0]]),
    torch.tensor([[3.0, 4.0], [9.0, 9.0], [0.0, 0.0], [0.0, 0.0]]),
]
HELD = [torch.tensor([True, False, True, False]), torch.tensor([True, True, False, False])]
MEANS = [[2.0, 2.0], [9.0, 9.0], [5.0, 6.0], [0.0, 0.0]]


def federation(*keys: int) -> Any:
    return SimpleNamespace(clients=[SimpleNamespace(key=key) for key in keys])


def on_the_wire(payload: Any) -> dict[str, Tensor]:
    return decode_payload(encode_payload(payload))


def sent(summed: bool, counts: Tensor | None = None) -> list[dict[str, Tensor]]:
    tables = zip(TABLES, HELD, strict=True)
    return [on_the_wire(class_vectors.send("P", table, held, summed, counts)) for table, held in tables]


def summed_up(of: list[dict[str, Tensor]]) -> Uploads:
    total = {name: torch.stack([one[name] for one in of]).sum(dim=0) for name in of[0]}
    return Uploads((0, 1), 2, "sum", total, None)


def test_the_mean_of_a_class_is_over_all_batches_and_zero_where_there_is_none() -> None:
    batches = [
        (torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]]), torch.tensor([0, 0, 3])),
        (torch.tensor([[5.0, 9.0]]), torch.tensor([0])),
    ]
    total, counts = class_vectors.class_sums(batches, CLASSES)
    assert total.dtype == torch.float64
    assert total.tolist() == [[9, 15], [0, 0], [0, 0], [0, 1]]
    assert counts.tolist() == [3, 0, 0, 1]
    means, counts = class_vectors.class_means(batches, CLASSES)
    assert means.tolist() == [[3, 5], [0, 0], [0, 0], [0, 1]]
    assert counts.tolist() == [3, 0, 0, 1]


def test_without_a_batch_there_are_no_means_of_the_expected_width() -> None:
    means, counts = class_vectors.class_means([], CLASSES, torch.zeros(0, 5))
    assert means.shape == (CLASSES, 5)
    assert not counts.any()


def test_one_by_one_a_client_sends_the_rows_of_its_classes_alone() -> None:
    one, other = sent(summed=False)
    assert one["P"].tolist() == [[1, 0], [5, 6]]
    assert one["labels"].tolist() == [0, 2]
    assert other["labels"].tolist() == [0, 1]
    assert set(one) == {"P", "labels"}


def test_as_a_sum_a_client_sends_the_whole_table_and_nothing_of_a_class_that_it_lacks() -> None:
    table, held = torch.ones(CLASSES, 2), HELD[0]
    whole = on_the_wire(class_vectors.send("P", table, held, summed=True))
    assert whole["P"].tolist() == [[1, 1], [0, 0], [1, 1], [0, 0]]
    assert whole["held"].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("summed", [False, True])
def test_the_server_has_the_mean_over_the_clients_that_hold_a_class(summed: bool) -> None:
    uploads = summed_up(sent(True)) if summed else gathered(*sent(False))
    got = class_vectors.receive("P", uploads, federation(0, 1), CLASSES, summed)
    assert got.means.tolist() == MEANS
    assert got.holders.tolist() == [2, 1, 1, 0]
    assert got.held.tolist() == [True, True, True, False]
    assert got.pairs == 4
    assert got.weights.tolist() == [1.0] * len(got.rows)
    if summed:  # of single rows nothing is known: those of the means stand for them
        assert got.rows.tolist() == MEANS[:3]
        assert got.labels.tolist() == [0, 1, 2]
    else:
        assert got.rows.tolist() == [[1, 0], [5, 6], [3, 4], [9, 9]]
        assert got.labels.tolist() == [0, 2, 0, 1]


def test_rows_stand_in_the_order_of_the_clients_names_and_not_of_their_numbers() -> None:
    got = class_vectors.receive("P", gathered(*sent(False)), federation(1, 0), CLASSES, False)
    assert got.rows.tolist() == [[3, 4], [9, 9], [1, 0], [5, 6]]
    assert got.labels.tolist() == [0, 1, 0, 2]


def test_rows_weigh_as_many_samples_as_clients_say() -> None:
    counts = torch.tensor([7, 1, 300, 0])
    got = class_vectors.receive("P", gathered(*sent(False, counts)), federation(0, 1), CLASSES, False)
    assert got.weights.tolist() == [7, 300, 7, 1]


def test_a_client_without_samples_adds_no_row() -> None:
    means, counts = class_vectors.class_means([], CLASSES, torch.zeros(0, 2))
    nothing = on_the_wire(class_vectors.send("P", means, counts > 0, summed=False))
    got = class_vectors.receive("P", gathered(nothing, sent(False)[0]), federation(0, 1), CLASSES, False)
    assert got.rows.tolist() == [[1, 0], [5, 6]]
    assert got.pairs == 2


def test_a_table_comes_back_with_zeros_for_the_classes_that_nobody_held() -> None:
    means, held = torch.tensor(MEANS, dtype=torch.float64), torch.tensor([True, True, True, False])
    message = on_the_wire(class_vectors.send_table("P", means, held))
    assert message["P"].shape == (3, 2)  # what nobody held is not sent
    table, there = class_vectors.receive_table("P", message)
    assert table.dtype == torch.float32
    assert table.tolist() == MEANS
    assert torch.equal(there, held)


# ---- several rounds of methods whose clients send such tables ---------------------------------------------------

FEW_EACH = ([0, 1], [2, 3, 4], [4, 5], [6, 7, 0], [8, 9, 1])
"""Classes of five clients, of which every one lacks seven or eight."""


def largest_means(method: Any, watched: list[Tensor]) -> float:
    """Run rounds, in which the server's means are noted; return the largest coordinate of those."""
    trial = mixed_trial(method, held=FEW_EACH)
    receive = class_vectors.receive
    with pytest.MonkeyPatch.context() as patch:

        def spied(*about: Any) -> Any:
            received = receive(*about)
            watched.append(received.means)
            return received

        patch.setattr(class_vectors, "receive", spied)
        for t in range(1, 6):
            trial.round(t)
    return max(float(means.abs().max()) for means in watched)


@pytest.mark.parametrize(
    ("name", "clip"), [("FedDistill", 1.0), ("FedProto", 1.0), ("FedTGP", 0.5), ("FedGH", 1.0), ("FedKTL", 0.4)]
)
def test_under_secure_aggregation_a_client_adds_nothing_to_the_classes_that_it_lacks(name: str, clip: float) -> None:
    """Also where the server's vectors lie beyond the clip: sums that held minus what was cut of them would grow."""
    training = LocalTraining(epochs=2, batch_size=8, clip_norm=5.0)
    assert largest_means(small_method(name, training=training), []) > 1.5 * clip

    star = Star(secure_aggregation=SecureAggregation(clip=clip))
    method = small_method(name, training=training, topology=star)
    client_step, said, means = method.client_step, [], []

    def watched(client: Any, download: Any, t: int) -> Any:
        said.append(client_step(client, download, t))
        return said[-1]

    method.client_step = watched
    assert largest_means(method, means) <= clip + 1e-4
    for t in range(5):
        in_round = said[t * len(FEW_EACH) : (t + 1) * len(FEW_EACH)]
        tables = [next(entry.tensor for entry_name, entry in sent.items() if entry_name != "held") for sent in in_round]
        holders = sum(sent["held"].tensor for sent in in_round)
        expected = sum(table.clamp(-clip, clip) for table in tables) / holders.unsqueeze(1)
        assert torch.allclose(means[t].float(), expected, atol=1e-4), t
