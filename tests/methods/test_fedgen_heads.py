"""FedGen for mixed federations: both variants' losses, and a generator that reaches the clients (fedktl.md, 5.2)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from digit_trial import gathered
from mixed_trial import HELD, ONE_EPOCH, mixed_trial, offered_by, sent_by, watch_uploads, with_state
from torch import Tensor

from flgen import FedGenHeads, LGFedAvg, LocalTraining, SecureAggregation, Star
from flgen.client_turns import state_of
from flgen.errors import UsageError
from flgen.methods.fedgen import diversity_loss
from flgen.methods.fedgen_heads import ensemble_loss
from flgen.models.feature_generator import FeatureGenerator

SMALL: dict[str, Any] = {"hidden": 16, "noise": 8, "generator_steps": 4}
P_H = 16 * 10 + 10
THETA_G = (8 + 10) * 16 + 16 + 2 * 16 + 16 * 16 + 16

F = torch.nn.functional


def small(variant: Any = "htfllib", training: LocalTraining = ONE_EPOCH, **options: Any) -> FedGenHeads:
    return FedGenHeads(training, variant, **{**SMALL, **options})


def watch_draws(method: FedGenHeads) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return a list that gets (labels, noise, features) whenever features are generated."""
    drawn: list[tuple[Tensor, Tensor, Tensor]] = []
    draw = method.G.draw

    def watched(y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        eps, z = draw(y, generator)
        drawn.append((y, eps, z.detach()))
        return eps, z

    method.G.draw = watched  # type: ignore[method-assign]
    return drawn


def some_heads(method: FedGenHeads) -> Tensor:
    draws = torch.Generator().manual_seed(1)
    return torch.stack([method.w_bar + 0.3 * torch.randn(P_H, generator=draws) for _ in range(2)])


def test_the_ensemble_answers_by_the_weighted_mean_of_the_logits() -> None:
    logits = torch.tensor([[[2.0, 0.0]], [[0.0, 2.0]]], dtype=torch.float64)
    a = torch.tensor([0.25, 0.75], dtype=torch.float64)
    # Mean logits (0.5, 1.5): ln(1 + e). The mean of the two cross-entropies would be 1.626928.
    assert float(ensemble_loss(logits, a, torch.tensor([0]))) == pytest.approx(1.3132616875, abs=1e-9)


def test_the_generator_has_the_published_size() -> None:
    # Section 6: noise 32, hidden 512, features 512, 100 classes.
    G = FeatureGenerator(classes=100, features=512, hidden=512, noise=32)
    assert sum(parameter.numel() for parameter in G.parameters()) == 331_776


def test_the_generator_learns_what_the_heads_together_take_for_a_label() -> None:
    method = small(generator_steps=1)
    mixed_trial(method)
    w, a = some_heads(method), torch.tensor([0.25, 0.75], dtype=torch.float64)
    method.counts[0, 3], method.counts[2, 7] = 5, 1  # the third client is not in this round
    drawn, before = watch_draws(method), method.g_t.clone()
    loss = method.train_generator(1, w, a, method.counts[:2])
    ((y, eps, z),) = drawn
    assert len(y) == ONE_EPOCH.batch_size
    assert set(y.tolist()) <= {3, 7}
    assert 0 <= float(eps.min()) < float(eps.max()) < 1
    logits = sum(share * method.h(w_k, z) for share, w_k in zip((0.25, 0.75), w, strict=True))
    assert loss == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-5)  # type: ignore[arg-type]
    assert not torch.equal(method.g_t, before)


def test_in_the_original_each_head_answers_by_the_share_of_a_label_that_its_client_holds() -> None:
    method = small("original", generator_steps=1, diversity=0.5)
    mixed_trial(method)
    w, a = some_heads(method), torch.tensor([0.25, 0.75], dtype=torch.float64)
    counts = torch.zeros(2, 10, dtype=torch.int64)
    counts[0, 3], counts[1, 3], counts[1, 7] = 1, 3, 2
    drawn = watch_draws(method)
    loss = method.train_generator(1, w, a, counts)
    ((y, eps, z),) = drawn
    assert set(y.tolist()) == {3, 7}  # nobody of the round has another
    expected = 0.5 * float(diversity_loss(eps, z))
    for k in range(2):
        share = torch.where(y == 3, (0.25, 0.75)[k], (0.0, 1.0)[k])
        expected += float((share * F.cross_entropy(method.h(w[k], z), y, reduction="none")).mean())
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("variant", "factor"), [("htfllib", 1.0), ("original", 0.25)])
def test_the_generators_learning_rate_decays_in_the_original_alone(variant: Any, factor: float) -> None:
    method = small(variant, decay=0.5)
    trial = mixed_trial(method)
    for t in (1, 2, 3):
        trial.round(t)
    assert method.adam.param_groups[0]["lr"] == pytest.approx(0.1 * factor)


def test_the_generators_loss_falls() -> None:
    method = small(generator_steps=50, generator_learning_rate=0.01)
    mixed_trial(method)
    method.counts[0] = 1
    w, a = some_heads(method), torch.tensor([0.5, 0.5])
    losses = [method.train_generator(t, w, a, method.counts[:2]) for t in (1, 2, 3)]
    assert losses[2] < losses[1] < losses[0]


def test_labels_follow_the_pooled_histogram_and_in_the_original_are_all_as_likely() -> None:
    counts, draws = torch.tensor([0, 90, 0, 10]), torch.Generator().manual_seed(0)
    for variant, share in (("htfllib", 0.9), ("original", 0.5)):
        y = small(variant).some_labels(counts, 20_000, draws)
        assert set(y.tolist()) == {1, 3}
        assert float((y == 1).double().mean()) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("variant", ["htfllib", "original"])
def test_a_clients_loss_is_its_own_and_that_of_generated_features(variant: Any) -> None:
    method = small(variant, alpha=4.0, beta=3.0, decay=0.5)
    trial = mixed_trial(method)
    trial.round(1)
    client, download = with_state(trial, 0), offered_by(method, 2)
    at = method.residents.load(client)
    loss = method.local_loss(at, client, download, 2) or pytest.fail("there is a generator")
    drawn = watch_draws(method)
    x, y = next(at.batches(client, client.data, "trial", 2, epochs=1))
    at.module.zero_grad()
    method.G.zero_grad()
    L = loss((x, y), 0)

    f, head = at.module.features(x), at.module.head
    y_hat, _, z_hat = drawn[0]
    assert len(y_hat) == 8
    own, generated = F.cross_entropy(head(f), y), F.cross_entropy(head(z_hat), y_hat)
    if variant == "htfllib":
        expected = own + generated
        assert len(drawn) == 1
    else:
        y_again, _, z = drawn[1]
        assert torch.equal(y_again, y)
        target = torch.softmax(head(z), dim=1).detach()
        kl = (target * (target.log() - torch.log_softmax(head(f), dim=1))).sum(dim=1).mean()
        expected = own + 2.0 * generated + 1.5 * kl  # after one decay
    assert float(L.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    L.backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in method.G.parameters())
    assert at.gradients().any()


def test_the_strengths_decay_and_have_a_floor() -> None:
    assert small(alpha=4.0).strengths(3) == (1.0, 0.0)
    assert small("original", alpha=10.0, beta=1.0).strengths(2) == pytest.approx((9.8, 0.98))
    assert small("original").strengths(10_000) == (1e-4, 1e-4)


def test_clients_generate_with_the_generator_that_the_server_has_trained() -> None:
    # Section 8, item 16: the published one was trained and never sent.
    method = small()
    trial = mixed_trial(method)
    first = method.g_t.clone()
    trial.round(1)
    trained = method.g_t.clone()
    assert (trained[:THETA_G] != first[:THETA_G]).any()
    assert (trained[THETA_G:] != first[THETA_G:]).all()  # BatchNorm's statistics
    method.g.copy_(first)  # as on a rank that has not trained it
    drawn = watch_draws(method)
    sent_by(trial, 0, 2)
    assert torch.equal(method.g, trained)
    assert not method.G.training
    assert len(drawn) == -(-3 * 12 // 8)  # once per local step
    y, eps, z = drawn[0]
    assert torch.allclose(z, method.G(eps, y).detach(), atol=1e-6)


def test_the_first_round_is_lg_fedavg() -> None:
    method, averaged = small(), LGFedAvg(ONE_EPOCH)
    trials = [mixed_trial(each) for each in (method, averaged)]
    assert set(offered_by(method, 1)) == {"head"}  # there is no generator yet
    for trial in trials:
        trial.round(1)
    assert torch.allclose(method.w_bar, averaged.w_bar, atol=1e-6)
    for trial in trials:
        trial.round(2)
    assert not torch.allclose(method.w_bar, averaged.w_bar, atol=1e-3)


def test_the_head_is_averaged_by_the_numbers_of_samples() -> None:
    method = small()
    trial = mixed_trial(method, held=([0, 1], [2, 3, 4]), samples=[6, 12])
    counts = [client.data.label_counts for client in trial.job.federation.clients]
    w = some_heads(method)
    sent = [{"head": w_k, "label_counts": counts_k} for w_k, counts_k in zip(w, counts, strict=True)]
    method.aggregate(1, gathered(*sent))
    assert torch.allclose(method.w_bar, (12 * w[0] + 36 * w[1]) / 48, atol=1e-6)


@pytest.mark.parametrize("variant", ["htfllib", "original"])
def test_the_generator_learns_from_the_clients_of_the_round_by_their_shares_of_the_samples(variant: Any) -> None:
    method = small(variant, alpha=1.0, beta=1.0)
    trial = mixed_trial(method, samples=(4, 12, 7), clients_per_round=2)
    clients, uploads = trial.job.federation.clients, watch_uploads(method)
    train_generator, cohorts = method.train_generator, set()

    def watched(t: int, w: Tensor, a: Tensor, counts: Tensor) -> float:
        present = sorted(uploads[-1])
        cohorts.add(tuple(present))
        samples = [clients[k].samples for k in present]
        assert torch.equal(w, torch.stack([uploads[-1][k]["head"] for k in present]))
        assert a.tolist() == pytest.approx([n / sum(samples) for n in samples])
        assert torch.equal(counts, torch.stack([clients[k].data.label_counts for k in present]))
        return train_generator(t, w, a, counts)

    method.train_generator = watched  # type: ignore[method-assign]
    for t in range(1, 5):
        trial.round(t)
    assert len(cohorts) > 1


def test_a_client_says_its_label_counts_once_and_is_remembered() -> None:
    method = small()
    trial = mixed_trial(method, clients_per_round=2)
    seen = watch_uploads(method)
    heard: set[int] = set()
    for t in range(1, 5):
        trial.round(t)
        for k, sent in seen[-1].items():
            assert ("label_counts" in sent) == (k not in heard)
        heard |= set(seen[-1])
        for k in range(3):
            known = method.counts[k].nonzero().flatten().tolist()
            assert known == (sorted(HELD[k]) if k in heard else [])
        assert torch.equal(offered_by(method, t + 1)["label_counts"].long(), method.counts.sum(dim=0))
    assert heard == {0, 1, 2}


def test_a_client_whose_first_round_failed_says_its_label_counts_in_the_next() -> None:
    from flgen.client_turns import ErrorPolicy

    method = small()
    trial = mixed_trial(method)
    seen = watch_uploads(method)
    step = method.client_step

    def failing(client: Any, download: Any, t: int) -> Any:
        sent = step(client, download, t)
        if t == 1 and client.id == 1:
            raise RuntimeError("its battery is empty")
        return sent

    method.client_step = failing  # type: ignore[method-assign]
    trial.round(1, policy=ErrorPolicy("skip"))
    assert not method.counts[1].any()
    trial.round(2)
    assert [k for k, sent in seen[1].items() if "label_counts" in sent] == [1]


def test_heads_of_clients_that_do_not_take_part_stay_as_they_are() -> None:
    # Section 8, item 15.
    method = small()
    trial = mixed_trial(method, clients_per_round=2)
    clients = trial.job.federation.clients
    for t in (1, 2):
        before = [state_of(method, trial.store, client)["weights"] for client in clients]
        trial.round(t)
        present = {client.id for client in trial.job.federation.cohort(t)}
        for client, old in zip(clients, before, strict=True):
            new = state_of(method, trial.store, client)["weights"]
            assert torch.equal(new, old) == (client.id not in present)


def test_traffic_is_what_the_formula_says() -> None:
    method = small()
    trial = mixed_trial(method)
    first, second = trial.round(1).metrics, trial.round(2).metrics
    formula = method.round_metrics(2)
    assert first["comm/up_scalars/label_counts"] == 3 * 10
    assert "comm/up_scalars/label_counts" not in second
    assert second["comm/up_scalars/head"] == formula["comm/up_scalars_formula"] == 3 * P_H
    down = second["comm/down_scalars/head"] + second["comm/down_scalars/generator"]
    assert down == formula["comm/down_scalars_formula"] == 3 * (P_H + THETA_G)
    assert second["comm/down_scalars/generator_statistics"] == 3 * 2 * 16  # the formula leaves them out


def test_the_formula_gives_the_published_numbers() -> None:
    # Section 6: CIFAR-100, 20 clients, features 512 wide.
    method = FedGenHeads()
    method.w_bar, method.Theta_g = torch.zeros(512 * 100 + 100), 331_776
    assert method.published_scalars(20, 900) == (1_026_000, 7_661_520)


def test_clients_with_different_networks_learn() -> None:
    training = LocalTraining(epochs=5, batch_size=8)
    method = FedGenHeads(training, hidden=32, noise=8, generator_steps=20, generator_learning_rate=0.01)
    trial = mixed_trial(method)
    before = trial.evaluate(0)  # of clients that never took part
    for t in range(1, 5):
        trial.round(t)
    after = trial.evaluate(4)
    for k in range(3):
        for point in ("trained", "aggregated"):
            assert before[k][f"test/accuracy_{point}"] < 0.5 < 0.7 < after[k][f"test/accuracy_{point}"]


def test_it_refuses_secure_aggregation_and_says_why() -> None:
    method = FedGenHeads(topology=Star(secure_aggregation=SecureAggregation()))
    with pytest.raises(UsageError, match=r"FedGenHeads cannot run .* \(its generator learns from every client's head"):
        mixed_trial(method)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("hidden", 0),
        ("noise", 0),
        ("generator_steps", 0),
        ("generator_learning_rate", 0.0),
        ("generator_weight_decay", -1.0),
        ("alpha", -1.0),
        ("beta", -1.0),
        ("diversity", -1.0),
        ("decay", 1.5),
    ],
)
def test_a_number_out_of_its_range_is_one_line(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"^--method\.{option} is {value}: give [^\n]+$"):
        FedGenHeads(**{option: value})


def test_batches_of_one_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^--method.training.batch_size is 1: give 2 or more, FedGenHeads [^\n]+$"):
        FedGenHeads(LocalTraining(batch_size=1))
