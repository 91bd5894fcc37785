"""FedKTL end to end on small things (fedktl.md, checks 9.4, 9.13 and 9.14, and the defects of section 8)."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from digit_trial import gathered
from lightning import LightningModule
from peer_trial import Trial
from torch import Tensor

from flgen import (
    Digits,
    Dirichlet,
    FedKTL,
    LocalTraining,
    ModelGroup,
    Pathological,
    RandomProjection,
    SecureAggregation,
    SmallCNN,
    SpokenDigits,
    Star,
)
from flgen.data import ImageData
from flgen.data.image_data import ImageLayout
from flgen.data.image_set import ImageSet
from flgen.errors import UsageError
from flgen.job import OPTIONS
from flgen.methods import class_vectors
from flgen.methods.latent_alignment import AlignmentTraining
from flgen.models.simplex_etf import unit_length

CLASSES, H, SIDE = 3, 8, 8
QUICK = AlignmentTraining(epochs=5)


class Colours(ImageData):
    """Colour images of three kinds, of a common size; nobody holds a class that is left out.

    Args:
        samples: Training images of each class.
    """

    def __init__(self, samples: tuple[int, ...] = (20, 20, 20)) -> None:
        super().__init__()
        self._samples = samples

    def layout(self) -> ImageLayout:
        return ImageLayout("colours", ("red", "green", "blue"), channels=3, image_size=SIDE)

    def load(self) -> tuple[ImageSet, ImageSet]:
        draws = torch.Generator().manual_seed(0)
        labels = torch.cat([torch.full((n,), c) for c, n in enumerate(self._samples)])
        images = torch.randint(0, 120, (len(labels), 3, SIDE, SIDE), generator=draws)
        images[torch.arange(len(labels)), labels] += 100
        split = ImageSet(images.to(torch.uint8), labels)
        return split, split


class TwoLayers(LightningModule):
    """A network of two linear layers.

    Args:
        width: Of the hidden layer.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3 * SIDE * SIDE, width)
        self.second = torch.nn.Linear(width, 4)
        self.head = torch.nn.Linear(4, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        z: Tensor = self.second(torch.relu(self.first(x.flatten(1))))
        return z

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def trial(
    method: FedKTL | None = None, data: ImageData | None = None, clients: int = 4, partition: Any = None, **options: Any
) -> Trial:
    torch.manual_seed(0)
    group = ModelGroup([TwoLayers(6), TwoLayers(9)])
    method = method or FedKTL(generator=RandomProjection(), alignment=QUICK)
    partition = partition or Pathological(clients=clients, classes_per_client=2)
    return Trial(method, group, data=data or Colours(), partition=partition, **options)


def digest(module: torch.nn.Module) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in module.parameters())).hexdigest()


def test_the_first_round_has_no_transfer_and_later_ones_have() -> None:
    of = trial()
    first, second = of.round(1), of.round(2)
    assert "train/transfer_loss" not in first.metrics
    assert second.metrics["train/transfer_loss"] > 0
    assert "comm/down_scalars/images" not in first.metrics


def test_clients_send_a_row_for_each_class_that_they_hold_and_get_one_pair_for_each_class() -> None:
    of = trial()
    of.round(1)
    sent = of.round(2).metrics
    held = sum(int((client.data.label_counts > 0).sum()) for client in of.job.federation.clients)
    assert held == 8
    assert sent["comm/up_scalars/prototypes"] == held * CLASSES
    assert sent["comm/up_scalars/labels"] == held
    assert sent["comm/down_scalars/images"] + sent["comm/down_scalars/latents"] == 4 * 3 * (3 * 64 + 8)
    formula = of.method.round_metrics(2)
    assert formula["comm/up_scalars_formula"] == sent["comm/up_scalars/prototypes"]
    assert formula["comm/down_scalars_formula"] == 4 * 3 * (3 * 64 + 8)


def test_what_is_shared_once_is_a_seed_on_a_line_of_its_own() -> None:
    of = trial()
    phases = [{row.phase: row for row in of.round(t).ledger} for t in (1, 2)]
    assert phases[0]["setup"].messages == 4
    assert phases[0]["setup"].bytes < 4 * 64
    assert set(phases[1]) == {"download", "upload"}


def test_the_generator_does_not_change() -> None:
    of = trial()
    network = of.method.generator.networks()[0]
    before = digest(network)
    for t in (1, 2):
        of.round(t)
    assert digest(network) == before
    assert not any(p.requires_grad for p in network.parameters())


def test_every_client_begins_every_round_with_the_same_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    of = trial()
    of.round(1)
    seen: list[Tensor] = []
    linear = torch.nn.functional.linear

    def spied(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.shape == (H, 4):
            seen.append(weight.detach().clone())
        return linear(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", spied)
    of.round(2)
    of.round(3)
    start = of.method.h_0["weight"]
    begins = [number for number, weight in enumerate(seen) if torch.equal(weight, start)]
    assert len(begins) == 8  # each of four clients in each of two rounds
    assert len(seen) > 8
    assert any(not torch.equal(weight, start) for weight in seen)


def test_pairs_are_finite_and_a_class_that_nobody_holds_is_never_among_them() -> None:
    method = FedKTL(generator=RandomProjection(), alignment=QUICK)
    of = trial(method, Colours((20, 0, 20)), partition=Dirichlet(clients=4, alpha=10, min_samples=2))
    for t in (1, 2):
        of.round(t)
    down = {name: entry.tensor for name, entry in method.download(3).items()}
    assert sorted(method.class_pictures()) == [0, 2]
    assert down["images"].shape == (2, 3, SIDE, SIDE)
    assert down["latents"].shape == (2, H)
    assert all(torch.isfinite(tensor).all() for tensor in down.values())
    assert 0 <= float(down["images"].min()) <= float(down["images"].max()) <= 1


def test_equal_seeds_give_equal_runs() -> None:
    runs = []
    for _ in range(2):
        of = trial()
        runs.append([of.round(t).metrics["train/loss"] for t in (1, 2, 3)])
        runs[-1] += [of.state(k)["weights"].tolist() for k in range(4)]
    assert runs[0] == runs[1]


def test_who_does_not_take_part_is_left_as_it_is_and_its_classes_keep_their_last_pair() -> None:
    class Alone(Pathological):
        """Client k holds class k, of which the last is only its."""

        def _deal(self, labels: Any, attributes: Any, generator: Any) -> Any:
            return [(labels == k).nonzero()[0] for k in range(3)]

    of = trial(partition=Alone(clients=3), clients=3, clients_per_round=2)
    method = of.method
    absent = []
    for t in range(1, 9):
        before = [of.state(k) for k in range(3)]
        latents, images = method.Q_bar.clone(), method.images.clone()
        of.round(t)
        (missing,) = {0, 1, 2} - {client.id for client in of.job.federation.cohort(t)}
        absent.append(missing)
        after = of.state(missing)
        assert after.keys() == before[missing].keys()
        assert all(torch.equal(after[name], before[missing][name]) for name in after)
        assert torch.equal(method.Q_bar[missing], latents[missing])
        assert torch.equal(method.images[missing], images[missing])
        metrics = method.round_metrics(t)
        assert metrics["generator/images_drawn"] == 2  # one that did not change is not drawn again
    ages = [next((i for i, m in enumerate(reversed(absent)) if m != k), len(absent)) for k in range(3)]
    assert method.age.tolist() == ages
    assert metrics["generator/oldest_pair"] == max(ages)


def test_pairs_stay_as_they_are_while_the_prototypes_do() -> None:
    of = trial()
    of.round(1)
    method = of.method
    sent = class_vectors.send("prototypes", method.V.T.contiguous(), torch.ones(3, dtype=torch.bool), False)
    arrived = {name: entry.tensor for name, entry in sent.items()}
    drawn = []
    for t in (2, 3, 4):
        method.aggregate(t, gathered(arrived, arrived))
        drawn.append((method.round_metrics(t)["generator/images_drawn"], method.Q_bar.clone()))
        assert method.age.tolist() == [0, 0, 0]
    assert [count for count, _ in drawn] == [3, 0, 0]
    assert torch.equal(drawn[0][1], drawn[2][1])


def test_a_run_goes_on_with_the_generator_that_it_began_with_alone() -> None:
    class Weighty(RandomProjection):
        def provenance(self) -> dict[str, str | None]:
            return {**super().provenance(), "sha256": f"of seed {self.seed}"}

    of = trial(FedKTL(generator=Weighty(), alignment=QUICK))
    of.round(1)
    kept = of.method.state_dict()
    trial(FedKTL(generator=Weighty(), alignment=QUICK)).method.load_state_dict(kept)
    other = trial(FedKTL(generator=Weighty(seed=1), alignment=QUICK)).method
    with pytest.raises(UsageError, match=r"--method\.generator is another one than that of the checkpoint"):
        other.load_state_dict(kept)


def test_a_run_may_go_on_with_smaller_batches_of_the_generator_but_not_with_another_mu() -> None:
    def options(method: FedKTL) -> Any:
        return trial(method).job.identity[OPTIONS]

    begun = options(FedKTL(generator=RandomProjection(batch_size=64), alignment=QUICK))
    assert options(FedKTL(generator=RandomProjection(batch_size=2), alignment=QUICK)) == begun
    assert options(FedKTL(generator=RandomProjection(batch_size=64), mu=1, alignment=QUICK)) != begun


def test_prototypes_are_means_of_unit_vectors_made_unit_again() -> None:
    z = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    means, counts = class_vectors.class_means([(unit_length(z), torch.tensor([0, 0, 1]))], 3)
    expected = torch.tensor([[0.894427, 0.447214], [0, 1], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(unit_length(means), expected, atol=1e-6, rtol=0)
    assert counts.tolist() == [2, 1, 0]


def test_the_transfer_loss_is_a_mean_over_elements() -> None:
    predicted, q = torch.tensor([[1.0, 0.0, 3.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    L_M = torch.nn.functional.mse_loss(predicted, q)
    assert float(L_M) == pytest.approx(1.333333, abs=1e-6)
    assert 50 * float(L_M) == pytest.approx(66.666667, abs=1e-5)


def test_the_transfer_reaches_the_features_and_not_the_head() -> None:
    """Without the supervised loss the head stays: here every cosine is the true class's, so that its slope is nil."""
    weights = []
    for mu in (0.0, 50.0):
        method = FedKTL(LocalTraining(), RandomProjection(), mu, 1e-9, alignment=QUICK, init="shared")
        of = trial(method)
        for t in (1, 2):
            of.round(t)
        weights.append({k: of.state(k)["weights"] for k in range(4)})
    p_h = 4 * CLASSES + CLASSES
    for k in range(4):
        without, with_pairs = weights[0][k], weights[1][k]
        torch.testing.assert_close(without[-p_h:], with_pairs[-p_h:])
        assert not torch.allclose(without[:-p_h], with_pairs[:-p_h])


def test_under_secure_aggregation_the_server_aligns_the_means_over_holders() -> None:
    star = Star(secure_aggregation=SecureAggregation())
    ways = {
        "hidden": trial(FedKTL(generator=RandomProjection(), alignment=QUICK, topology=star)),
        "seen": trial(FedKTL(generator=RandomProjection(), alignment=QUICK)),
    }
    received = {}
    for name, of in ways.items():
        receive = class_vectors.receive

        def spied(*about: Any, receive: Any = receive, name: str = name) -> Any:
            received[name] = receive(*about)
            return received[name]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(class_vectors, "receive", spied)
            of.round(1)
    hidden, seen = received["hidden"], received["seen"]
    assert hidden.holders.tolist() == seen.holders.tolist()
    torch.testing.assert_close(hidden.means, seen.means, atol=1e-4, rtol=0)
    assert len(hidden.rows) == CLASSES
    assert len(seen.rows) == 8
    assert ways["hidden"].method.class_pictures().keys() == {0, 1, 2}


def test_a_single_prototype_trains_nothing_and_a_single_pair_is_not_learnt() -> None:
    class OneClass(Pathological):
        """One client, which holds class 1."""

        def _deal(self, labels: Any, attributes: Any, generator: Any) -> Any:
            return [(labels == 1).nonzero()[0]]

    of = trial(partition=OneClass(clients=1))
    before = {name: tensor.clone() for name, tensor in of.method.F.state_dict().items()}
    of.round(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in of.method.F.state_dict().items())
    assert of.method.class_pictures() == {}

    class SameClass(Pathological):
        """Two clients with class 1 alone."""

        def _deal(self, labels: Any, attributes: Any, generator: Any) -> Any:
            rows = (labels == 1).nonzero()[0]
            return [rows[:10], rows[10:]]

    of = trial(partition=SameClass(clients=2))
    of.round(1)
    assert sorted(of.method.class_pictures()) == [1]
    assert "train/transfer_loss" not in of.round(2).metrics


def test_images_may_travel_as_bytes() -> None:
    downs = {}
    for bits in (8, 32):
        of = trial(FedKTL(generator=RandomProjection(), alignment=QUICK, image_bits=bits))  # type: ignore[arg-type]
        of.round(1)
        downs[bits] = of.method.download(2)["images"].tensor
        of.round(2)
    assert downs[8].dtype == torch.uint8
    torch.testing.assert_close(downs[8] / 255, downs[32], atol=0.5 / 255 + 1e-6, rtol=0)


@pytest.mark.parametrize(("reproject", "rescaled"), [(None, True), ("norm", True), ("none", False)])
def test_means_of_gaussian_latents_are_scaled_to_the_shell_unless_told_not_to(reproject: Any, rescaled: bool) -> None:
    of = trial(FedKTL(generator=RandomProjection(), alignment=QUICK, reproject=reproject))
    of.round(1)
    norms = of.method.Q_bar.norm(dim=1)
    assert torch.allclose(norms, torch.full_like(norms, H**0.5), atol=1e-4) == rescaled


def test_the_reference_draws_a_table_that_began_as_noise_and_drops_the_samples_that_fill_no_batch() -> None:
    method = FedKTL(generator=RandomProjection(), alignment=QUICK, fidelity="reference")
    of = trial(method)
    noise = method.e.clone()
    steps: list[int] = []
    of.round(1, call=lambda hook, **about: steps.append(about["client"]) if hook == "on_local_step" else None)
    held = method.age == 0
    assert torch.equal(method.Q_bar[held], method.e[held])  # rendered as they are
    moved = (method.e - noise).abs()[held]
    assert 0 < float(moved.max()) <= 5 * 0.01 * 1.1  # by Adam's few steps alone
    full = {client.id: client.samples // 10 for client in of.job.federation.clients}
    assert {k: steps.count(k) for k in full} == full
    # Both clients with a network of six began alike.
    first = [method.initial_state(of.job.federation.clients[k])["weights"] for k in range(4)]
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0].sum(), first[1].sum())


def test_a_client_with_fewer_samples_than_a_batch_sends_nothing_in_the_reference_and_its_prototypes_otherwise() -> None:
    partition = Pathological(clients=20, classes_per_client=1)  # three samples each
    for fidelity, rows in (("reference", 0), ("corrected", 20)):
        of = trial(
            FedKTL(generator=RandomProjection(), alignment=QUICK, fidelity=fidelity),  # type: ignore[arg-type]
            partition=partition,
        )
        assert of.round(1).metrics["comm/up_scalars/labels"] == rows


def test_bandwidths_fit_the_latent_space_unless_told_otherwise() -> None:
    for chosen, published in ((None, False), ("median", False), ("paper", True)):
        options = AlignmentTraining(epochs=1, bandwidths=chosen)  # type: ignore[arg-type]
        of = trial(FedKTL(generator=RandomProjection(), alignment=options))
        of.round(1)
        betas = of.method._prior()[0].tolist()
        assert (betas == [10, 15, 20, 50]) == published
        if not published:
            assert betas[2] == pytest.approx(H, rel=0.15)  # med / 2 of N(0, I): about H


def test_predicted_is_the_class_whose_vector_is_nearest() -> None:
    of = trial()
    for t in range(1, 7):
        of.round(t)
    measured = of.evaluate(6)
    method = of.method
    client = of.job.federation.clients[1]
    client.state = of.state(1)
    at = method.residents.load(client)
    x = torch.cat([of.job.data.standardize(x) for x, _ in client.test_data.in_order(1000)])
    y = torch.cat([y for _, y in client.test_data.in_order(1000)])
    at.module.eval()
    with torch.no_grad():
        predicted = (unit_length(at.module(x)) @ method.V).argmax(dim=1)
    assert measured[1]["test/accuracy_trained"] == pytest.approx(float((predicted == y).double().mean()))


def test_health_and_provenance_are_reported() -> None:
    of = trial()
    of.round(1)
    metrics = of.method.round_metrics(1)
    expected = {"mmd_loss", "mse_loss", "mmd_excess", "norm_ratio", "separation_ratio", "mse"}
    assert {f"alignment/{name}" for name in expected} <= metrics.keys()
    assert of.method.provenance()["name"] == "RandomProjection"


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"--method.generator is missing: FedKTL's server draws images with"):
        FedKTL()
    with pytest.raises(UsageError, match=r"--method\.mu is -1"):
        FedKTL(generator=RandomProjection(), mu=-1)
    with pytest.raises(UsageError, match=r"--method\.margin is 4: give an angle below pi / 2"):
        FedKTL(generator=RandomProjection(), margin=4)
    with pytest.raises(UsageError, match=r"--method\.scale is 0"):
        FedKTL(generator=RandomProjection(), scale=0)
    with pytest.raises(UsageError, match=r"--method\.alignment\.centroids batch learns no table, but --method\.fid"):
        FedKTL(generator=RandomProjection(), alignment=AlignmentTraining(centroids="batch"), fidelity="reference")
    method = FedKTL(generator=RandomProjection())
    with pytest.raises(UsageError, match="features of one width from every network, but they give 16, 24"):
        method.prepare(ModelGroup([SmallCNN(image_size=8, width=4), SmallCNN(image_size=8, width=6)]), Digits())
    with pytest.raises(UsageError, match="FedKTL needs images, but --data SpokenDigits holds"):
        method.prepare(ModelGroup([TwoLayers(3)]), SpokenDigits())
