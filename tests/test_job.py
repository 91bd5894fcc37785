"""A job: who the clients are, what they train and are tested on, and what a checkpoint must agree with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_methods import small_method, small_model

from flgen import IID, ClientDirichlet, Digits, LocalSplit, RandomGraph, Ring, Shards, Sparsity
from flgen.errors import UsageError
from flgen.experiment.checkpoints import Checkpoint
from flgen.federation.launch import build_fabric
from flgen.job import OPTIONS, Job, prepare_job


@pytest.fixture(scope="module")
def digits() -> Digits:
    data = Digits()
    data.setup()
    return data


Prepare = Callable[..., Job]


@pytest.fixture
def prepare(digits: Digits) -> Prepare:
    """Return a function that makes the job of a small DisPFL run."""

    def prepared(
        partition: Any = None,
        *,
        method: Any = None,
        seed: int = 7,
        world_size: int = 1,
        clients_per_round: int | None = None,
        partition_seed: int | None = None,
        split: Any = None,
        participation: float | None = None,
    ) -> Job:
        return prepare_job(
            method or small_method("DisPFL"),
            small_model("DisPFL"),
            digits,
            partition or Shards(clients=5, shards_per_client=4),
            seed,
            world_size,
            clients_per_round,
            partition_seed=partition_seed,
            split=split,
            participation=participation,
        )

    return prepared


def test_clients_hold_what_the_partition_says(prepare: Prepare) -> None:
    job = prepare()
    assert job.label_table.shape == (5, 10)
    assert job.label_table.sum() == 20 * 71  # equal shards of 1,438 images
    for client, counts in zip(job.federation.clients, job.label_table, strict=True):
        assert client.samples == client.data.samples == counts.sum()
        assert client.data.label_counts.tolist() == counts.tolist()
    assert [client.id for client in job.federation.clients] == list(range(5))


@pytest.mark.parametrize("partition", [Shards(clients=5, shards_per_client=2), ClientDirichlet(clients=8, alpha=0.3)])
def test_local_test_sets_follow_the_clients_class_mixes(partition: Any, prepare: Prepare, digits: Digits) -> None:
    job = prepare(partition)
    held_out = torch.bincount(digits.test.labels, minlength=10).numpy()
    share = -(-len(digits.test) // len(job.federation))  # ceil(N / K)
    for client, counts in zip(job.federation.clients, job.label_table, strict=True):
        expected = np.minimum(-(-counts * share // counts.sum()), held_out)  # ceil(n_kc / n_k ceil(N / K))
        assert client.test_data.label_counts.tolist() == expected.tolist()
    mixes = [client.test_data.label_counts.tolist() for client in job.federation.clients]
    assert len({tuple(mix) for mix in mixes}) > 3


def test_local_test_sets_are_held_out_images_and_drawn_by_each_client_for_itself(
    prepare: Prepare, digits: Digits
) -> None:
    held_out = {image.numpy().tobytes() for image in digits.test.images}
    # All clients have about the same mix: what sets their tests apart is the draw.
    clients = prepare(IID(clients=5)).federation.clients
    drawn = [[image.numpy().tobytes() for x, _ in c.test_data.in_order(1000) for image in x] for c in clients]
    for images in drawn:
        assert len(set(images)) == len(images)  # none twice
        assert set(images) <= held_out
    assert len({tuple(images) for images in drawn}) == 5


def test_local_test_sets_depend_on_the_seed_and_on_nothing_else(prepare: Prepare) -> None:
    def drawn(**options: Any) -> list[bytes]:
        clients = prepare(**options).federation.clients
        return [next(client.test_data.in_order(1000))[0].numpy().tobytes() for client in clients]

    assert drawn() == drawn(world_size=3, method=small_method("FedAvg"), clients_per_round=2)
    assert drawn() != drawn(seed=8)


def test_a_seed_of_its_own_fixes_who_holds_and_is_tested_on_what_and_nothing_else(prepare: Prepare) -> None:
    def drawn(job: Job) -> list[bytes]:
        return [
            next(data.in_order(1000))[0].numpy().tobytes()
            for client in job.federation.clients
            for data in (client.data, client.test_data)
        ]

    seven, eight = prepare(seed=7), prepare(seed=8, partition_seed=7)
    assert drawn(eight) == drawn(seven)
    assert eight.identity["partition"] == seven.identity["partition"]
    assert eight.identity["seed"] == eight.streams.seed == eight.federation.streams.seed == 8
    assert drawn(prepare(seed=8)) != drawn(seven)
    assert drawn(prepare(seed=7, partition_seed=8)) == drawn(prepare(seed=8))


def test_clients_may_bring_their_own_test_and_validation_samples(prepare: Prepare, digits: Digits) -> None:
    job = prepare(split=LocalSplit("own", validation_fraction=0.1))
    count = 0
    for client, counts in zip(job.federation.clients, job.label_table, strict=True):
        assert client.samples == client.data.samples == counts.sum()
        assert client.data.label_counts.tolist() == counts.tolist()
        assert client.validation_data is not None
        assert client.validation_samples == client.validation_data.samples > 0
        assert client.test_samples == client.test_data.samples
        count += client.samples + client.validation_samples + client.test_samples
    assert count == 20 * 89  # equal shards of all 1,797 images
    assert len(job.data.test) == sum(client.test_samples for client in job.federation.clients)
    assert len(digits.test) == 359  # the data set itself is as it was
    assert job.federation.measured_samples["val"] == {c.id: c.validation_samples for c in job.federation.clients}


def test_own_test_samples_depend_on_the_partition_seed_and_on_nothing_else(prepare: Prepare) -> None:
    def drawn(**options: Any) -> list[bytes]:
        clients = prepare(split=LocalSplit("own", validation_fraction=0.2), **options).federation.clients
        return [
            next(data.in_order(1000))[0].numpy().tobytes()
            for client in clients
            for data in (client.data, client.validation_data, client.test_data)
            if data is not None
        ]

    first = drawn()
    assert len(first) == 15
    assert first == drawn(world_size=3, method=small_method("FedAvg"), clients_per_round=2)
    assert first == drawn(seed=8, partition_seed=7)
    assert first != drawn(seed=8)


def test_a_sampling_ratio_is_a_cohort(prepare: Prepare) -> None:
    assert prepare(method=small_method("FedAvg"), participation=0.5).federation.clients_per_round == 2
    assert prepare(method=small_method("FedAvg"), participation=0.01).federation.clients_per_round == 1
    assert len(prepare(participation=1.0).federation.cohort(1)) == 5
    with pytest.raises(
        UsageError, match=r"but with DisPFL every client trains in every round: remove it, or --trainer.p"
    ):
        prepare(participation=0.5)


def test_nothing_is_opened_before_a_client_is_asked(prepare: Prepare) -> None:
    job = prepare()
    assert all({"data", "test_data"}.isdisjoint(vars(client)) for client in job.federation.clients)


def test_what_makes_a_run_another_run_is_in_its_identity(prepare: Prepare) -> None:
    identity = prepare().identity
    assert {**identity, "partition": ""} == {
        "seed": 7,
        "method": "DisPFL",
        "data": "digits",
        "clients": 5,
        "partition": "",
        "split": {"test": "common", "validation_fraction": 0.0},
        "model": identity["model"],
        OPTIONS: identity[OPTIONS],
    }
    assert identity[OPTIONS]["sparsity.density"] == 0.5
    assert not [name for name in identity[OPTIONS] if name.startswith("topology")]
    assert prepare(world_size=2).identity == identity

    def differing(**options: Any) -> set[str]:
        other = prepare(**options).identity
        return {name for name in identity if identity[name] != other[name] and name != OPTIONS}

    assert differing(seed=8) == {"seed", "partition"}
    assert differing(method=small_method("My1")) == {"method"}
    assert differing(method=small_method("FedAvg"), clients_per_round=2) == {"method"}
    assert differing(partition=Shards(clients=5, shards_per_client=2)) == {"partition"}
    assert differing(split=LocalSplit(validation_fraction=0.1)) == {"split", "partition"}
    assert differing(split=LocalSplit("own")) == {"split", "partition"}
    assert differing(split=LocalSplit(test_fraction=0.5)) == set()  # of no use with common test samples
    assert differing(partition=Shards(clients=6, shards_per_client=4)) == {"clients", "partition"}


def test_a_checkpoint_of_the_same_run_is_gone_on_from_and_another_is_refused(prepare: Prepare) -> None:
    job = prepare()
    assert job.first_round == 1
    job.resume_from(Checkpoint(Path("runs/x"), 4, dict(job.identity), ()))
    assert job.first_round == 5
    other = Checkpoint(Path("runs/x"), 4, {**job.identity, "seed": 1, "clients": 9}, ())
    with pytest.raises(UsageError, match=r"^checkpoint runs/x is of another run \(different seed, clients\): use the"):
        prepare().resume_from(other)


def test_going_on_needs_the_options_of_the_method_and_the_shape_of_the_model(prepare: Prepare) -> None:
    job = prepare()
    denser = prepare(method=small_method("DisPFL", sparsity=Sparsity(density=0.75, anneal_rounds=5)))
    written = Checkpoint(Path("runs/x"), 4, json.loads(json.dumps(job.identity)), ())
    job.continue_from(written)
    with pytest.raises(
        UsageError, match=r"^--method.sparsity.density is 0.75, but checkpoint runs/x was trained with 0"
    ):
        denser.continue_from(written)
    denser.resume_from(written)  # to measure it, or to draw from it
    assert denser.first_round == 5
    ring = prepare(method=small_method("DisPFL", topology=Ring()))
    ring.continue_from(written)  # the same bits on any transport; another graph is an experiment
    wider = Checkpoint(Path("runs/x"), 4, {**written.identity, "model": "of another width"}, ())
    with pytest.raises(UsageError, match=r"is of another run \(different model\)"):
        job.continue_from(wider)


@pytest.mark.parametrize("name", ["Prism", "DPFedAvgGAN", "GSWGAN"])
def test_a_run_is_not_made_private_or_public_on_the_way(
    name: str, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flgen import ThetaGaussian

    mechanism = {"privacy": ThetaGaussian()} if name == "Prism" else {}
    private, public = prepare(method=small_method(name, **mechanism)), prepare(method=small_method(name, privacy=None))
    for ours, theirs in ((private, public), (public, private)):
        written = Checkpoint(Path("runs/x"), 4, json.loads(json.dumps(theirs.identity)), ())
        with pytest.raises(UsageError, match=r"^--method\.privacy is .*, but checkpoint runs/x was trained with "):
            ours.continue_from(written)
        ours.resume_from(written)  # to measure it, or to draw from it
        budget = getattr(theirs.method, "budget", None) or getattr(theirs.method.privacy, "budget", None)
        state = {"step": {}, "privacy": budget.state_dict() if budget else {}}
        monkeypatch.setattr(Checkpoint, "server_state", lambda _, state=state: {"method": state})
        theirs.continue_from(written)


def test_an_option_that_the_checkpoint_does_not_know_is_of_another_version(prepare: Prepare) -> None:
    job = prepare()
    older = {name: value for name, value in job.identity[OPTIONS].items() if not name.startswith("sparsity")}
    assert len(older) < len(job.identity[OPTIONS])
    job.continue_from(Checkpoint(Path("runs/x"), 4, {**job.identity, OPTIONS: older}, ()))


def test_an_option_inside_another_is_named_as_it_is_typed(prepare: Prepare) -> None:
    from flgen import ThetaGaussian

    ours, theirs = (prepare(method=small_method("Prism", privacy=ThetaGaussian(update_clip=C))) for C in (1.0, 2.0))
    with pytest.raises(UsageError, match=r"^--method.privacy.update_clip is 1.0, but checkpoint runs/x was .* 2.0"):
        ours.continue_from(Checkpoint(Path("runs/x"), 4, dict(theirs.identity), ()))


def test_what_a_method_cannot_work_with_is_refused_before_anything_starts(prepare: Prepare) -> None:
    with pytest.raises(UsageError, match=r"--method.topology.degree is 5, but 5 clients have at most 4 others"):
        prepare(method=small_method("DisPFL", topology=RandomGraph(degree=5)))
    with pytest.raises(UsageError, match=r"--trainer.clients_per_round is 2, but with DisPFL every client trains"):
        prepare(clients_per_round=2)
    assert prepare(clients_per_round=5).federation.clients_per_round == 5  # everybody, said aloud
    with pytest.raises(UsageError, match="6 processes for 5 clients"):
        prepare(world_size=6)


def test_setting_up_places_clients_by_their_work(prepare: Prepare) -> None:
    job = prepare(ClientDirichlet(clients=6, alpha=100.0, groups=1), world_size=2)
    fabric = build_fabric(accelerator="cpu", devices=1, num_nodes=1, precision="32-true", timeout_s=10, callbacks=[])
    job.method.expected_work = lambda client: 100.0 if client.id == 4 else 1.0  # type: ignore[method-assign]
    job.set_up_method(fabric)
    assert [client.id for client in job.federation.hosted_by(0)] == [4]
    assert [client.id for client in job.federation.hosted_by(1)] == [0, 1, 2, 3, 5]
    assert {str(client.device) for client in job.federation.clients} == {"cpu"}
