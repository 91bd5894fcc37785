"""A round between peers: who hears what of whom, what it costs, and what a failing or stopped client leaves behind."""

from __future__ import annotations

import csv
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import networkx
import pytest
import torch
from peer_trial import Pull, Trial
from torch import Tensor

from flgen import IID, Digits, Evaluation, FederatedTrainer, FixedGraph, FullyConnected, SmallCNN
from flgen.client_turns import ClientFailed, ErrorPolicy
from flgen.errors import UsageError
from flgen.federation.interruption import StopRequest
from flgen.methods import PeerMethod
from flgen.topology.peers import NoEdges
from flgen.wire.codecs import Payload, dense
from flgen.wire.ledger import LedgerRow

SKIP = ErrorPolicy("skip")

# Client 0 reads from 1 and 2, client 1 from 3, client 2 from 3, client 3 from 0.
EDGES = [(1, 0), (2, 0), (3, 1), (3, 2), (0, 3)]
# Client k sends k + 1 numbers under a name of one letter: 20 bytes, 8 for the dimension, 1, and 4 for each number.
SIZES = {0: 33, 1: 37, 2: 41, 3: 45}


class Gossip(PeerMethod):
    """Client k holds k + 1 numbers, at first k, to which a local step of two parts adds ten.

    Args:
        topology: Who reads from whom.
        troubles: Clients that raise ("raise") or make NaN ("nan"), by (client, where).
    """

    def __init__(self, topology: Any, troubles: Mapping[tuple[int, str], str] | None = None) -> None:
        super().__init__(topology)
        self.troubles = dict(troubles or {})
        self.heard: dict[int, dict[int, float]] = {}

    def initial_state(self, client: Any) -> dict[str, Tensor]:
        return {"x": torch.full((client.id + 1,), float(client.id))}

    def choose(self, client: Any, candidates: tuple[int, ...], t: int) -> tuple[int, ...]:
        self._meet_trouble(client, "choose")
        return candidates

    def outgoing(self, client: Any, t: int) -> Payload:
        return {"x": dense(self._meet_trouble(client, "outgoing") * client.state["x"])}

    def mix(self, client: Any, inbox: Mapping[int, dict[str, Tensor]], t: int) -> None:
        self.heard[client.id] = {j: float(inbox[j]["x"][0]) for j in inbox}
        self._meet_trouble(client, "mix")

    def client_step(self, client: Any, t: int) -> None:
        self.on_local_step(1, 2)
        x = client.state["x"] + 10 * self._meet_trouble(client, "client_step")
        self.on_local_step(2, 2)
        client.metrics["x"] = float(x[0])
        client.state = {"x": x}

    def _meet_trouble(self, client: Any, where: str) -> float:
        trouble = self.troubles.get((client.id, where))
        if trouble == "raise":
            raise RuntimeError("the sensor is off")
        return float("nan") if trouble == "nan" else 1.0


def gossip(
    topology: Any = None, troubles: Mapping[tuple[int, str], str] | None = None, **options: Any
) -> tuple[Gossip, Trial]:
    """Four clients on the known graph."""
    method = Gossip(topology or FixedGraph(networkx.DiGraph(EDGES)), troubles)
    return method, Trial(method, Pull([0], [[0]] * 4), [1] * 4, **options)


def values(trial: Trial) -> dict[int, list[float]]:
    """What clients hold, by id, those who never completed a round left out."""
    return {k: state["x"].tolist() for k, state in trial.store.state_dict().items()}


def after_rounds(count: int) -> dict[int, list[float]]:
    return {k: [k + 10.0 * count] * (k + 1) for k in range(4)}


def test_everybody_hears_what_the_others_had_at_the_start_of_the_round() -> None:
    method, trial = gossip()
    for t in (1, 2):
        trial.round(t)
        before = 10.0 * (t - 1)
        readers = {0: [0, 1, 2], 1: [1, 3], 2: [2, 3], 3: [0, 3]}
        assert method.heard == {k: {j: before + j for j in heard} for k, heard in readers.items()}
        assert values(trial) == after_rounds(t)


def test_an_inbox_is_in_ascending_order_and_no_further_than_its_neighbours() -> None:
    method, trial = gossip()
    seen: list[list[int]] = []

    def look(client: Any, inbox: Any, t: int) -> None:
        seen.append(list(inbox))
        for stranger in set(range(4)) - set(inbox):
            with pytest.raises(KeyError):
                inbox[stranger]

    method.mix = look  # type: ignore[method-assign]
    trial.round(1)
    assert seen == [[0, 1, 2], [1, 3], [2, 3], [0, 3]]


def test_payloads_are_the_same_if_none_may_be_kept_decoded() -> None:
    method, trial = gossip()
    trial.round(1, opened_mb=0)
    assert method.heard[0] == {0: 0.0, 1: 1.0, 2: 2.0}
    assert values(trial) == after_rounds(1)


def test_the_ledger_and_the_metrics_of_a_round_on_a_known_graph() -> None:
    _, trial = gossip()
    outcome = trial.round(3)
    total = SIZES[1] + SIZES[2] + SIZES[3] + SIZES[3] + SIZES[0]
    assert outcome.ledger == [LedgerRow(3, "exchange", "client->client", messages=5, bytes=total, wire_bytes=0)]
    assert {name: value for name, value in outcome.metrics.items() if name.startswith("comm/")} == {
        "comm/bytes": total,
        "comm/max_received_bytes": SIZES[1] + SIZES[2],  # by client 0
        "comm/max_sent_bytes": 2 * SIZES[3],  # by client 3
        "comm/busiest_node_bytes": 2 * SIZES[3] + SIZES[0],  # client 3 again, which also receives
        "comm/wire_bytes": 0,
    }
    assert trial.method.topology.ledger.rows == {}


def test_an_evaluated_round_describes_its_graph_and_another_does_not() -> None:
    _, trial = gossip()
    metrics = trial.round(1).metrics
    assert metrics["graph/edges"] == 5
    assert metrics["graph/in_degree_mean"] == 1.25
    assert metrics["graph/out_degree_max"] == 2
    assert metrics["graph/connected"] == 1
    assert metrics["graph/diameter"] == 3  # from 1 to 2: by 0 and 3
    assert not [name for name in trial.round(2, evaluated=False).metrics if name.startswith("graph/")]


def test_what_clients_report_is_averaged_over_those_who_completed_the_round() -> None:
    outcome = gossip(troubles={(3, "mix"): "raise"})[1].round(1, policy=SKIP)
    assert outcome.clients == {0: {"x": 10.0}, 1: {"x": 11.0}, 2: {"x": 12.0}}
    assert outcome.metrics["x"] == 11.0


def test_an_inactive_client_neither_sends_nor_hears_and_trains_all_the_same() -> None:
    topology = FullyConnected(active=0.5)
    method, trial = gossip(topology)
    federation = trial.job.federation
    counts = set()
    for t in range(1, 9):
        present = {k for k in range(4) if federation.streams.numpy("active", round=t, client=k).random() < 0.5}
        counts.add(len(present))
        outcome = trial.round(t)
        for k in range(4):
            assert method.heard[k].keys() == (present if k in present else {k})
        others = len(present) - 1
        sent = sum(SIZES[k] for k in present) * others if present else 0
        assert (outcome.ledger[0].messages, outcome.ledger[0].bytes) == (len(present) * others if present else 0, sent)
        assert values(trial) == after_rounds(t)
    assert len(counts) > 2


FAILURES = {
    "raise": "RuntimeError: the sensor is off",
    "nan": "holds NaN or infinity",
}
BEFORE_SENDING = [("outgoing", "raise"), ("outgoing", "nan"), ("choose", "raise")]
AFTER_SENDING = [("mix", "raise"), ("client_step", "raise"), ("client_step", "nan")]


@pytest.mark.parametrize(("where", "how"), BEFORE_SENDING)
def test_a_client_that_fails_before_it_has_sent_is_heard_by_nobody(where: str, how: str) -> None:
    method, trial = gossip(troubles={(3, where): how})
    outcome = trial.round(1, policy=SKIP)
    assert outcome.failures.keys() == {3}
    assert FAILURES[how] in outcome.failures[3]
    assert method.heard == {0: {0: 0.0, 1: 1.0, 2: 2.0}, 1: {1: 1.0}, 2: {2: 2.0}}
    assert values(trial) == {k: x for k, x in after_rounds(1).items() if k != 3}
    # It does not receive what client 0 would have sent it either.
    assert outcome.ledger[0].messages == 2
    assert outcome.metrics["comm/bytes"] == SIZES[1] + SIZES[2]
    assert outcome.metrics["comm/max_sent_bytes"] == SIZES[2]
    assert outcome.metrics["comm/busiest_node_bytes"] == SIZES[1] + SIZES[2]
    assert outcome.metrics["graph/edges"] == 2


@pytest.mark.parametrize(("where", "how"), AFTER_SENDING)
def test_a_client_that_fails_later_is_heard_as_it_was_and_stays_so(where: str, how: str) -> None:
    method, trial = gossip()
    trial.round(1)
    method.troubles[3, where] = how
    outcome = trial.round(2, policy=SKIP)
    assert outcome.failures.keys() == {3}
    assert FAILURES[how] in outcome.failures[3]
    assert outcome.ledger[0].messages == 5
    assert method.heard[1] == {1: 11.0, 3: 13.0}
    assert values(trial) == {**after_rounds(2), 3: [13.0] * 4}

    method.troubles.clear()
    assert trial.round(3, policy=SKIP).failures == {}
    assert method.heard[1] == {1: 21.0, 3: 13.0}
    assert values(trial) == {**after_rounds(3), 3: [23.0] * 4}


def test_a_client_that_offers_what_is_no_number_is_blamed_itself() -> None:
    _, trial = gossip(troubles={(3, "outgoing"): "nan"})
    with pytest.raises(ClientFailed, match=r"round 1, client 3 \(rank 0\): its offer 'x' holds NaN or infinity"):
        trial.round(1)


@pytest.mark.parametrize(("where", "how"), BEFORE_SENDING + AFTER_SENDING)
def test_raise_names_round_and_client_and_leaves_every_state_as_it_was(where: str, how: str) -> None:
    method, trial = gossip()
    trial.round(1)
    method.troubles[2, where] = how
    with pytest.raises(ClientFailed, match=rf"round 2, client 2 \(rank 0\): .*{FAILURES[how]}"):
        trial.round(2)
    assert values(trial) == after_rounds(1)


def test_the_fewest_clients_that_a_round_may_end_with() -> None:
    troubles = {(1, "outgoing"): "raise", (2, "client_step"): "raise"}
    outcome = gossip(troubles=troubles)[1].round(1, policy=ErrorPolicy("skip", min_clients=2))
    assert outcome.failures.keys() == {1, 2}
    _, trial = gossip(troubles=troubles)
    with pytest.raises(
        ClientFailed, match=r"2 of 4 clients are left, --trainer.min_clients asks for 3; client 1: RuntimeError"
    ):
        trial.round(1, policy=ErrorPolicy("skip", min_clients=3))
    assert values(trial) == {}


def test_everybody_failing_is_too_few_for_any_policy() -> None:
    _, trial = gossip(troubles={(k, "outgoing"): "raise" for k in range(4)})
    with pytest.raises(ClientFailed, match=r"0 of 4 clients are left, --trainer.min_clients asks for 1; client 0"):
        trial.round(1, policy=SKIP)


@pytest.mark.parametrize("step", [1, 2])
def test_a_round_that_is_stopped_half_way_leaves_no_trace(step: int) -> None:
    method, trial = gossip()
    trial.round(1)
    stop = StopRequest()
    hooks: list[tuple[str, int]] = []

    def call(hook: str, **about: Any) -> None:
        hooks.append((hook, about["client"]))
        if hook == "on_local_step" and (about["client"], about["step"]) == (2, step):
            stop.receive(signal.SIGTERM)

    outcome = trial.round(2, stop=stop, call=call)
    assert outcome.stop == signal.SIGTERM
    assert (outcome.metrics, outcome.ledger, outcome.failures, outcome.clients) == ({}, [], {}, {})
    assert [client for hook, client in hooks if hook == "on_client_start"] == [0, 1, 2]
    assert [client for hook, client in hooks if hook == "on_client_end"] == [0, 1]
    assert values(trial) == after_rounds(1)
    assert method.topology.ledger.rows == {}

    # The round again. What client 0 had done in it is not remembered when it fails now.
    method.troubles[0, "client_step"] = "raise"
    again = trial.round(2, policy=SKIP)
    assert again.ledger[0].messages == 5
    assert method.heard[3] == {0: 10.0, 3: 13.0}
    assert values(trial) == {**after_rounds(2), 0: [10.0]}


def test_a_signal_is_not_lost_if_clients_fail_in_the_same_round() -> None:
    _, trial = gossip(troubles={(3, "outgoing"): "raise"})
    stop = StopRequest()
    stop.receive(signal.SIGINT)
    outcome = trial.round(1, stop=stop, policy=ErrorPolicy("skip", min_clients=4))
    assert outcome.stop == signal.SIGINT
    assert values(trial) == {}


def test_clients_take_their_turns_in_order_and_say_so() -> None:
    hooks: list[tuple[str, int]] = []
    gossip()[1].round(1, call=lambda hook, **about: hooks.append((hook, about["client"])))
    turn = ["on_client_start", "on_local_step", "on_local_step", "on_client_end"]
    assert hooks == [(hook, k) for k in range(4) for hook in turn]


def test_a_cohort_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--trainer.clients_per_round is 2, but with Gossip every client trains"):
        gossip(clients_per_round=2)
    gossip(clients_per_round=4)[1].round(1)


def test_clients_without_edges_train_and_send_nothing() -> None:
    method, trial = gossip(NoEdges())
    outcome = trial.round(1)
    assert method.heard == {k: {k: float(k)} for k in range(4)}
    assert outcome.metrics["comm/bytes"] == outcome.metrics["comm/busiest_node_bytes"] == 0
    assert values(trial) == after_rounds(1)


def test_between_two_processes_a_message_travels_once_however_many_read_it_there(tmp_path: Path) -> None:
    # Clients 0 and 2 on one rank, 1 and 3 on the other. Client 3 is read twice there, client 0 on both.
    edges = [*EDGES, (3, 0), (0, 2)]
    FederatedTrainer(rounds=1, accelerator="cpu", devices=2, callbacks=[]).fit(
        Gossip(FixedGraph(networkx.DiGraph(edges))),
        SmallCNN(image_size=8, width=2),
        Digits(),
        IID(clients=4),
        evaluation=Evaluation(extractors=[]),
        run_dir=tmp_path / "run",
    )
    with (tmp_path / "run" / "ledger.csv").open() as file:
        (exchange,) = csv.DictReader(file)
    assert int(exchange["messages"]) == 7
    assert int(exchange["bytes"]) == sum(SIZES[source] for source, _ in edges)
    assert int(exchange["wire_bytes"]) == SIZES[1] + SIZES[3] + SIZES[0]
