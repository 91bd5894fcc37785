"""The laws of a federated run (design, section 9). A new method gets them by its name in tests/small_methods.py."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from same_run import assert_same, assert_same_run, server_state, table
from small_methods import METHODS, PEER_METHODS, TRAINING, small_method, small_model

from flgen.experiment.checkpoints import find_checkpoint


@pytest.mark.parametrize("method", METHODS)
def test_law_1_ranks_and_transports_do_not_change_a_bit(method: str, fit_small: Any, tmp_path: Path) -> None:
    fit_small(tmp_path / "one", method=method)
    ways = [(4, "reduce")]  # two ranks: law 2
    if method not in PEER_METHODS:
        ways.append((4, "messages"))
        if small_method(method).collection != "gather":  # else every upload is a message in any case
            ways.append((1, "messages"))
    for ranks, transport in ways:
        other = tmp_path / f"{ranks}-{transport}"
        fit_small(other, method=method, devices=ranks, transport=transport)
        assert_same_run(tmp_path / "one", other)


def test_law_1_holds_for_fidelity_and_for_cohorts(fit_small: Any, tmp_path: Path) -> None:
    from flgen import Evaluation

    for ranks in (1, 2):
        evaluation = Evaluation(every=1, images=48, batch_size=7)
        fit_small(tmp_path / str(ranks), devices=ranks, evaluation=evaluation, clients_per_round=2)
    assert_same_run(tmp_path / "1", tmp_path / "2")
    row = table(tmp_path / "2" / "metrics.csv")[-1]
    assert float(row["fid/digits"]) > 0
    assert {"test/stochastic/fid/digits", "test/sampled_once/kid/digits", "test/threshold/prdc/coverage/digits"} <= set(
        row
    )


@pytest.mark.parametrize("graph", ["Ring", "FullyConnected", "symmetric", "with drop-outs"])
def test_law_1_holds_on_every_graph(graph: str, fit_small: Any, tmp_path: Path) -> None:
    from flgen import FullyConnected, RandomGraph, Ring

    topologies = {
        "Ring": Ring(),
        "FullyConnected": FullyConnected(),
        "symmetric": RandomGraph(degree=2, directed=False),
        "with drop-outs": RandomGraph(degree=3, active=0.6),
    }
    for ranks in (1, 3):
        fit_small(tmp_path / str(ranks), method="DisPFL", devices=ranks, method_options={"topology": topologies[graph]})
    assert_same_run(tmp_path / "1", tmp_path / "3")


@pytest.fixture(scope="module")
def whole_run(fit_small: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the folder of a method's run of three rounds that nothing stopped."""

    @cache
    def run(method: str) -> Path:
        run_dir = tmp_path_factory.mktemp(f"whole-{method}") / "run"
        fit_small(run_dir, method=method, rounds=3, every=1)
        return run_dir

    return run


@pytest.mark.parametrize("method", METHODS)
def test_law_2_stop_and_resume_equals_no_stop(
    method: str, whole_run: Callable[[str], Path], fit_small: Any, tmp_path: Path
) -> None:
    fit_small(tmp_path / "parts", method=method, rounds=2, every=1, devices=2)
    fit_small(tmp_path / "parts", method=method, rounds=3, every=1, ckpt_path="last")
    assert_same_run(whole_run(method), tmp_path / "parts")


@pytest.mark.parametrize("method", METHODS)
def test_law_2_rows_written_after_the_checkpoint_are_written_again_not_twice(
    method: str, whole_run: Callable[[str], Path], fit_small: Any, tmp_path: Path
) -> None:
    shutil.copytree(whole_run(method), tmp_path / "parts")
    # As if the job had been killed in round 3: its rows are there, its checkpoint is not.
    newest = find_checkpoint(tmp_path / "parts" / "checkpoints" / "last")
    (newest.path / "server.pt").write_bytes(b"torn")
    fit_small(tmp_path / "parts", method=method, rounds=3, every=1, ckpt_path="last")
    assert_same_run(whole_run(method), tmp_path / "parts")


def test_law_3_a_prism_upload_is_its_bits_and_at_most_64_bytes(fit_small: Any, tmp_path: Path) -> None:
    fit_small(tmp_path / "run", devices=2, method_options={"uplink": "bits", "downlink": "scores"})
    d = server_state(tmp_path / "run")["scores"].numel()
    rows = {row["phase"]: row for row in table(tmp_path / "run" / "ledger.csv", leave_out=()) if row["round"] == "1"}
    upload, download = rows["upload"], rows["download"]
    assert int(upload["messages"]) == int(download["messages"]) == 5
    packed = (d + 7) // 8
    assert 5 * packed <= int(upload["bytes"]) <= 5 * (packed + 64)
    assert 5 * 4 * d <= int(download["bytes"]) <= 5 * (4 * d + 64)
    # One other rank: one copy of the download went there, one byte per weight of its sum came back.
    assert int(download["wire_bytes"]) == int(download["bytes"]) // 5
    assert int(upload["wire_bytes"]) == d


@pytest.mark.parametrize("method", ["DisPFL", "DPSGD", "FedFOMO"])
def test_law_3_between_peers_the_ledger_counts_the_bytes_handed_to_the_process_group(
    method: str, fit_small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.distributed as dist

    exchange = dist.batch_isend_irecv

    def counted(operations: list[dist.P2POp]) -> list[dist.Work]:
        sent = sum(operation.tensor.numel() for operation in operations if operation.op is dist.isend)
        with (tmp_path / f"sent-{os.getpid()}").open("a") as file:
            file.write(f"{sent}\n")
        return exchange(operations)

    monkeypatch.setattr(dist, "batch_isend_irecv", counted)
    fit_small(tmp_path / "run", method=method, devices=3)
    handed_over = sum(int(line) for path in tmp_path.glob("sent-*") for line in path.read_text().split())
    rows = table(tmp_path / "run" / "ledger.csv", leave_out=())
    assert {row["phase"] for row in rows} == {"exchange"}
    assert sum(int(row["wire_bytes"]) for row in rows) == handed_over > 0
    # One message per edge of the graph, whether or not its ends share a process; 5 clients hear 2 each.
    assert [int(row["messages"]) for row in rows] == [10, 10]


def test_law_4_fedavg_with_one_client_is_plain_training(fit_small: Any, tmp_path: Path) -> None:
    from flgen import IID, Digits, SmallCNN
    from flgen.data.image_set import to_unit_range
    from flgen.federation.flat_parameters import flatten_model
    from flgen.federation.streams import RandomStreams

    fit_small(tmp_path / "run", method="FedAvg", partition=IID(clients=1), rounds=3)

    torch.set_num_threads(1)
    data, streams = Digits(), RandomStreams(7)
    data.setup()
    rows = torch.from_numpy(data.split_clients(IID(clients=1), streams.numpy("partition"))[0])
    torch.manual_seed(7)  # as fit_small before it builds its model
    model = SmallCNN(image_size=8, width=4)
    for t in range(1, 4):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        order = torch.randperm(len(rows), generator=streams.torch("batches", round=t, client=0))
        for picked in order.split(32):
            x, y = to_unit_range(data.train.images[rows[picked]]), data.train.labels[rows[picked]]
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert torch.equal(server_state(tmp_path / "run")["weights"], flatten_model(model))


@pytest.mark.parametrize(
    ("method", "options", "stronger"),
    [
        ("FedProx", {"mu": 0.0}, {"mu": 0.5}),
        ("FedOpt", {"rule": "sgd", "server_learning_rate": 1.0}, {"rule": "sgd", "server_learning_rate": 0.5}),
    ],
)
def test_law_5_fedprox_without_a_pull_and_fedopt_by_plain_steps_are_fedavg(
    method: str, options: dict[str, Any], stronger: dict[str, Any], fit_small: Any, tmp_path: Path
) -> None:
    fit_small(tmp_path / "fedavg", method="FedAvg", method_options={"training": TRAINING}, rounds=3)
    fit_small(tmp_path / "same", method=method, method_options=options, rounds=3)
    fit_small(tmp_path / "other", method=method, method_options=stronger, rounds=3)
    fedavg = server_state(tmp_path / "fedavg")["weights"]
    assert torch.equal(server_state(tmp_path / "same")["weights"], fedavg)
    assert table(tmp_path / "same" / "metrics.csv") == table(tmp_path / "fedavg" / "metrics.csv")
    assert not torch.equal(server_state(tmp_path / "other")["weights"], fedavg)


@pytest.mark.parametrize("clients", [5, 1])
def test_law_5_scaffold_without_control_variates_is_uniform_fedavg(
    clients: int, fit_small: Any, tmp_path: Path
) -> None:
    """Corrections c - c_k are zero in the first round, and in every round if there is one client: then c is its c_k."""
    from flgen import Dirichlet

    training = replace(TRAINING, clip_norm=None)
    partition = Dirichlet(clients=clients, alpha=1.0)
    for rounds in (1, 3):
        run = tmp_path / str(rounds)
        for method in ("FedAvg", "Scaffold"):
            options: dict[str, Any] = {"training": training}
            if method == "FedAvg":
                options["weighting"] = "uniform"
            fit_small(run / method, method=method, method_options=options, partition=partition, rounds=rounds)
        state = server_state(run / "Scaffold")
        same = torch.equal(state["weights"], server_state(run / "FedAvg")["weights"])
        assert same == (rounds == 1 or clients == 1)
        assert state["control"].abs().max() > 0


def one_process_rounds(job: Any, rounds: int = 2) -> dict[int, dict[str, float]]:
    """Run rounds of a job without a trainer; return the last round's metrics and the clients' states by client key."""
    from flgen.client_turns import ErrorPolicy
    from flgen.federation.interruption import StopRequest
    from flgen.federation.launch import build_fabric
    from flgen.federation.state_store import ClientStateStore
    from flgen.methods import PeerMethod
    from flgen.peer_round import run_peer_round
    from flgen.star_round import run_star_round
    from flgen.topology.channel import Channel
    from flgen.wire.ledger import Ledger

    fabric = build_fabric(accelerator="cpu", devices=1, num_nodes=1, precision="32-true", timeout_s=60, callbacks=[])
    job.set_up_method(fabric)
    job.method.topology.open(Channel(0, 1, fabric.device, 60, 60), Ledger())
    store = ClientStateStore(fabric.device, len(job.federation), 100, Path("unused"))
    run_round: Any = run_peer_round if isinstance(job.method, PeerMethod) else run_star_round
    for t in range(1, rounds + 1):
        run_round(
            job.method, job.federation, store, t, stop=StopRequest(), policy=ErrorPolicy(), call=lambda *_, **__: None
        )
    return {client.key: (client.metrics, store.load(client.id)) for client in job.federation.clients}


SUMMED_METHODS = [name for name in METHODS if name not in PEER_METHODS and small_method(name).collection != "gather"]


def received_by_the_server(
    method: str, topology: Any, lost_client: int | None, fit: Any, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, list[int]]:
    """Run one round; return the uploads that `aggregate` was given, and the cohort's numbers of samples."""
    seen = []
    class_ = type(small_method(method))
    aggregate, client_step = class_.aggregate, class_.client_step

    def watched(self: Any, t: int, uploads: Any) -> None:
        seen.append((uploads, [client.samples for client in self.federation.clients]))
        aggregate(self, t, uploads)

    def failing(self: Any, client: Any, download: Any, t: int) -> Any:
        if client.id == lost_client:
            raise RuntimeError("its battery is empty")
        return client_step(self, client, download, t)

    with monkeypatch.context() as patch:
        patch.setattr(class_, "aggregate", watched)
        patch.setattr(class_, "client_step", failing)
        options = {"topology": topology}
        fit(run_dir, method=method, method_options=options, rounds=1, on_client_error="skip")
    (only,) = seen
    return only


@pytest.mark.parametrize("lost_client", [None, 3], ids=["everybody", "a drop-out"])
@pytest.mark.parametrize("method", SUMMED_METHODS)
def test_law_7_secure_aggregation_returns_the_same_sum(
    method: str, lost_client: int | None, fit_small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flgen import Star
    from flgen.privacy import SecureAggregation

    about = (lost_client, fit_small)
    plain, samples = received_by_the_server(method, Star(), *about, tmp_path / "plain", monkeypatch)
    star = Star(secure_aggregation=SecureAggregation(fraction_bits=20))
    secure, _ = received_by_the_server(method, star, *about, tmp_path / "secure", monkeypatch)
    assert secure.metrics == {"privacy/clipped_fraction": 0.0}
    assert secure.clients == plain.clients == tuple(k for k in range(5) if k != lost_client)
    assert secure.samples == plain.samples
    assert secure.sum().keys() == plain.sum().keys()
    heaviest = max(samples) if small_method(method).collection == "sample_weighted_sum" else 1
    error = len(secure) * heaviest * (2.0**-21 + 2.0**-33)  # of both sums, each summand rounded once
    for name, total in plain.sum().items():
        if total.dtype.is_floating_point:
            assert float((secure.sum()[name] - total).abs().max()) <= error
            assert float(total.abs().max()) > 100 * error
        else:
            assert torch.equal(secure.sum()[name].long(), total.long())


def hidden_star() -> Any:
    from flgen import Star
    from flgen.privacy import SecureAggregation

    return Star(secure_aggregation=SecureAggregation(fraction_bits=20))


# They gather the rows of the classes that a client holds, and under secure aggregation sum tables of all classes.
TABLE_METHODS = [
    name
    for name in METHODS
    if name not in PEER_METHODS
    and small_method(name).collection == "gather"
    and small_method(name, topology=hidden_star()).collection == "sum"
]


@pytest.mark.parametrize("method", TABLE_METHODS)
def test_law_7_sums_of_tables_are_the_sums_of_the_rows_that_would_be_gathered(
    method: str, fit_small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flgen import Star

    plain, _ = received_by_the_server(method, Star(), 3, fit_small, tmp_path / "plain", monkeypatch)
    secure, _ = received_by_the_server(method, hidden_star(), 3, fit_small, tmp_path / "secure", monkeypatch)
    total = secure.sum()
    (name,) = total.keys() - {"held"}
    rows = torch.cat([sent[name] for sent in plain.gather().values()]).double()
    labels = torch.cat([sent["labels"] for sent in plain.gather().values()]).long()
    one_hot = torch.nn.functional.one_hot(labels, 10)
    assert total["held"].long().tolist() == one_hot.sum(dim=0).tolist()
    assert 0 < float((total[name].double() - one_hot.double().T @ rows).abs().max()) < 5 * 2.0**-20


@pytest.mark.parametrize("method", ["FedAvg", "Prism"])
def test_law_1_holds_under_secure_aggregation(method: str, fit_small: Any, tmp_path: Path) -> None:
    from flgen import Star
    from flgen.privacy import SecureAggregation

    ways = [(1, "reduce"), (2, "reduce"), (1, "messages"), (3, "messages")]
    for ranks, transport in ways:
        star = Star(transport=transport, secure_aggregation=SecureAggregation())  # type: ignore[arg-type]
        run = tmp_path / f"{ranks}-{transport}"
        fit_small(run, method=method, method_options={"topology": star}, devices=ranks, clients_per_round=4)
        assert_same_run(tmp_path / "1-reduce", run)


@pytest.mark.parametrize("method", METHODS)
def test_law_8_permuting_clients_permutes_results_and_changes_no_aggregate(method: str) -> None:
    from flgen import Digits, Shards
    from flgen.job import prepare_job

    def job() -> Any:
        torch.manual_seed(0)
        data = Digits()
        data.setup()
        return prepare_job(small_method(method), small_model(method), data, Shards(clients=5), 7, 1, None)

    straight, permuted = job(), job()
    order = [3, 0, 4, 1, 2]
    permuted.federation.clients = [replace(permuted.federation.clients[old], id=new) for new, old in enumerate(order)]
    results, permuted_results = one_process_rounds(straight), one_process_rounds(permuted)
    assert_same(results, permuted_results)
    assert len({tuple(metrics.items()) for metrics, _ in results.values()}) == 5
    assert_same(straight.method.state_dict(), permuted.method.state_dict())


def test_law_9_frozen_weights_are_identical_before_and_after_a_run(tmp_path: Path) -> None:
    from flgen import Digits, Evaluation, FederatedTrainer, KernelMMD, Prism, ResnetGenerator, Shards
    from flgen.federation.streams import RandomStreams
    from flgen.masks.network import weights_vector

    model = ResnetGenerator(image_size=8, latent=8, width=8, loss=KernelMMD(real_batch=8))
    model.reset_weights(RandomStreams(7).seed_for("weights"))
    before = weights_vector(model)
    FederatedTrainer(rounds=2, accelerator="cpu", devices=1, callbacks=[]).fit(
        Prism(local_steps=2, batch_size=8, recalibration_batches=2),
        model,
        Digits(),
        Shards(clients=5),
        evaluation=Evaluation(images=16, extractors=[]),
        run_dir=tmp_path / "run",
        seed_everything=7,
    )
    assert torch.equal(weights_vector(model), before)
    state = server_state(tmp_path / "run")
    assert "weights" not in state
    assert not torch.equal(state["scores"], torch.zeros_like(state["scores"]))
