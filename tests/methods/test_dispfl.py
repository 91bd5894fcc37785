"""DisPFL and its variants against the specification's worked examples (dispfl.md, section 13) and its invariants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peer_trial import ONE_STEP, Pull, Trial, mask, row

from flgen import DPSGD, Digits, DisPFL, FullyConnected, My1, My2, RandomGraph, ResNet18, Shards, SmallCNN, Sparsity
from flgen.errors import UsageError
from flgen.federation.training_options import LocalTraining

HALF = Sparsity(density=0.5, erk_scope="weights")


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-6)


def sparse_state(w: torch.Tensor, s: torch.Tensor, m: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"weights": w * s, "support": s, "mask": m}


def test_check_5_aggregation_counts_the_supports_and_projects_on_the_own_new_mask() -> None:
    supports = [mask(1, 1, 0, 1, 0), mask(1, 0, 1, 0, 0), mask(1, 1, 0, 0, 0)]
    weights = [row(1, 2, 0, 4, 0), row(3, 0, 5, 0, 0), row(5, 4, 0, 0, 0)]
    own = mask(1, 0, 1, 0, 1)
    states = {k: sparse_state(weights[k], supports[k], own if k == 0 else supports[k]) for k in range(3)}
    method = DisPFL(ONE_STEP, Sparsity(density=0.6, erk_scope="weights"), "none", topology=FullyConnected())
    model = Pull([0.0] * 5, [[0.0] * 5] * 3, learning_rate=0.0)
    trial = Trial(method, model, (1, 1, 1), states=states)
    inbox = {k: {"dense": row(), "sparse": weights[k], "sparse.support": supports[k]} for k in range(3)}
    assert torch.equal(method.aggregate(inbox), row(3, 3, 5, 4, 0))
    trial.round(1)
    assert torch.equal(trial.state(0)["weights"], row(3, 0, 5, 0, 0))
    assert torch.equal(trial.state(0)["support"], own)


def test_check_6_two_clients_over_three_rounds_lock_the_order_of_operations() -> None:
    w_0 = row(1, -0.6, 0.4, 0.8)
    masks = [mask(1, 1, 0, 0), mask(0, 1, 1, 0)]
    model = Pull(w_0.tolist(), [[2, 0, 1.5, -1], [0, 1, 2, 1]])
    method = DisPFL(ONE_STEP, HALF, "gradient", topology=FullyConnected())
    trial = Trial(method, model, states={k: sparse_state(w_0, masks[k], masks[k]) for k in range(2)}, rounds=4)

    trial.round(1)
    assert close(trial.state(0)["weights"], row(1.1, -0.54, 0, 0))
    assert close(trial.state(1)["weights"], row(0, -0.44, 0.56, 0))
    assert torch.equal(trial.state(0)["mask"], mask(1, 0, 1, 0))
    assert torch.equal(trial.state(1)["mask"], mask(0, 1, 1, 0))

    trial.round(2)
    assert close(trial.state(0)["weights"], row(1.19, 0, 0.654, 0))
    assert close(trial.state(1)["weights"], row(0, -0.341, 0.704, 0))
    assert torch.equal(trial.state(0)["mask"], mask(1, 0, 0, 1))
    assert torch.equal(trial.state(1)["mask"], mask(0, 1, 1, 0))

    trial.round(3)
    assert close(trial.state(0)["weights"], row(1.271, 0, 0, -0.1))
    assert close(trial.state(1)["weights"], row(0, -0.2069, 0.8111, 0))


def test_check_6_tests_after_mixing_and_after_training() -> None:
    w_0 = row(1, -0.6, 0.4, 0.8)
    masks = [mask(1, 1, 0, 0), mask(0, 1, 1, 0)]
    targets = [[2.0, 0, 1.5, -1], [0.0, 1, 2, 1]]
    method = DisPFL(ONE_STEP, HALF, "gradient", topology=FullyConnected())
    states = {k: sparse_state(w_0, masks[k], masks[k]) for k in range(2)}
    outcome = Trial(method, Pull(w_0.tolist(), targets), states=states).round(1)
    for k, trained in enumerate((row(1.1, -0.54, 0, 0), row(0, -0.44, 0.56, 0))):
        reported, target = outcome.clients[k], torch.tensor(targets[k])
        mixed = w_0 * masks[k]  # round 0 with shared weights: every covered coordinate averages equal values
        assert reported["test/accuracy_aggregated"] == pytest.approx(float((mixed - target).square().sum()))
        assert reported["test/accuracy_trained"] == pytest.approx(float((trained - target).square().sum()))


class Fixed(Pull):
    """Its gradient at every point is w - c, and training does not move it."""

    def __init__(self, w: list[float], c: list[float]) -> None:
        super().__init__(w, [c, c], learning_rate=0.0)


def test_check_7_my1_takes_the_gradient_at_the_consensus() -> None:
    w, m = row(0.9, 0.1, 0.5, 0, 0, 0), mask(1, 1, 1, 0, 0, 0)
    wbar, c = row(1, 0.2, 0.4, 2, -1, 0), [1, 1, 1, 0.5, 0.3, 0.7]
    regrown = {}
    for variant in (DisPFL(ONE_STEP, HALF, "gradient", topology=FullyConnected()), My1(ONE_STEP, HALF)):
        variant.topology = FullyConnected()
        trial = Trial(variant, Fixed(w.tolist(), c))
        client = trial.job.federation.clients[0]
        client.state = {"mask": m}
        variant.wbar = wbar
        variant.resident.weights.copy_(w)
        regrown[type(variant)] = variant.search_mask(client, 1)
        assert torch.equal(variant.resident.weights, w)
    assert torch.equal(regrown[DisPFL], mask(1, 1, 0, 0, 0, 1))
    assert torch.equal(regrown[My1], mask(1, 0, 0, 1, 1, 0))


@pytest.mark.parametrize("kept_values", ["mean", "own"])
def test_check_8_my2_searches_by_the_plain_mean_while_mixing(kept_values: Any) -> None:
    states = {
        0: sparse_state(row(0.9, 0.1, 0.5, 0, 0, 0), mask(1, 1, 1, 0, 0, 0), mask(1, 1, 1, 0, 0, 0)),
        1: sparse_state(row(1.2, 0, 0, 1.8, -1.5, 0), mask(1, 0, 0, 1, 1, 0), mask(1, 0, 0, 1, 1, 0)),
        2: sparse_state(row(0, 0.8, 0, 0.6, 0, -0.3), mask(0, 1, 0, 1, 0, 1), mask(0, 1, 0, 1, 0, 1)),
    }
    method = My2(ONE_STEP, HALF, kept_values, topology=FullyConnected())
    trial = Trial(method, Pull([0.0] * 6, [[0.0] * 6] * 3, learning_rate=0.0), (1, 1, 1), states=states)
    trial.round(1)
    state = trial.state(0)
    new = state["mask"].nonzero().flatten().tolist()
    assert torch.equal(state["mask"], state["support"])
    assert len(new) == 3
    assert {0, 3} < set(new)
    (r,) = set(new) - {0, 3}
    a = [0.7, 0.3, 1 / 6, 0.8, -0.5, -0.1]
    expected = torch.zeros(6)
    expected[0], expected[3], expected[r] = (0.9 if kept_values == "own" else a[0]), a[3], a[r]
    assert r in (1, 2, 4, 5)
    assert close(state["weights"], expected)


def test_my2_keeps_mask_and_weights_of_a_client_that_hears_nobody() -> None:
    w, m = row(0.9, 0.1, 0.5, 0, 0, 0), mask(1, 1, 1, 0, 0, 0)
    states = {k: sparse_state(w, m, m) for k in range(2)}
    method = My2(ONE_STEP, HALF, topology=FullyConnected())
    method.topology.sources = lambda t, clients, streams: [(), ()]  # type: ignore[method-assign]
    trial = Trial(method, Pull([0.0] * 6, [[0.0] * 6] * 2, learning_rate=0.0), states=states)
    trial.round(1)
    assert torch.equal(trial.state(0)["mask"], m)
    assert torch.equal(trial.state(0)["weights"], w)


@pytest.mark.parametrize(("order", "direction"), [("after_step", [6.0, 0.0]), ("before_clip", [10.0, 0.0])])
def test_check_9_where_the_gradient_is_masked_decides_how_it_is_clipped(order: Any, direction: list[float]) -> None:
    sparsity = Sparsity(density=0.5, erk_scope="weights", gradient_mask=order)
    training = LocalTraining(batch_size=1000, clip_norm=10.0)
    m = mask(1, 0)
    states = {k: sparse_state(row(0, 0), m, m) for k in range(2)}
    method = DisPFL(training, sparsity, "none", topology=FullyConnected())
    trial = Trial(method, Pull([0.0, 0.0], [[-30.0, -40.0]] * 2, learning_rate=1.0), states=states)
    trial.round(1)
    assert close(trial.state(0)["weights"], -torch.tensor(direction))


def digits_trial(method: Any, model: Any = None, clients: int = 5) -> Trial:
    torch.manual_seed(0)
    model = model or SmallCNN(image_size=8, width=4)
    return Trial(method, model, data=Digits(), partition=Shards(clients=clients), rounds=4)


TWO_EPOCHS = LocalTraining(epochs=2, batch_size=32, clip_norm=10.0)


@pytest.mark.parametrize("search", ["random", "gradient", "none"])
def test_masks_keep_their_counts_and_weights_outside_the_support_are_zero(search: Any) -> None:
    method = DisPFL(TWO_EPOCHS, Sparsity(density=0.4, capacities=[0.3, 0.7]), search, topology=RandomGraph(degree=2))
    trial = digits_trial(method)
    first = {k: method.initial_state(client)["mask"] for k, client in enumerate(trial.job.federation.clients)}
    for t in (1, 2, 3):
        trial.round(t)
        for client in trial.job.federation.clients:
            state = trial.state(client.id)
            assert not state["weights"][method.first :][~state["support"]].any()
            for name, place, _ in method.layers:
                assert int(state["mask"][place].sum()) == method.active_of(client)[name]
            assert torch.equal(state["mask"], first[client.id]) == (search == "none")
    densities = [int(first[k].sum()) for k in range(5)]
    assert densities[0] == densities[2] == densities[4] < densities[1] == densities[3]


def test_the_first_aggregation_with_shared_weights_is_the_identity() -> None:
    method = DisPFL(TWO_EPOCHS, topology=RandomGraph(degree=3))
    trial = digits_trial(method)
    clients = trial.job.federation.clients
    states = [method.initial_state(client) for client in clients]
    assert not torch.equal(states[0]["mask"], states[1]["mask"])
    inbox = {}
    for k, state in enumerate(states):
        w = state["weights"]
        inbox[k] = {"dense": w[: method.first], "sparse": w[method.first :], "sparse.support": state["support"]}
    clients[0].state = dict(states[0])
    method.mix(clients[0], inbox, 1)
    assert torch.allclose(method.resident.weights, states[0]["weights"], atol=1e-7)


def test_shared_masks_are_one_draw_and_independent_weights_are_many() -> None:
    method = DisPFL(TWO_EPOCHS, Sparsity(initial_masks="shared"), init="independent", topology=RandomGraph(degree=2))
    trial = digits_trial(method)
    one, two = (method.initial_state(client) for client in trial.job.federation.clients[:2])
    assert torch.equal(one["mask"], two["mask"])
    assert not torch.equal(one["weights"], two["weights"])
    again = method.initial_state(trial.job.federation.clients[0])
    assert torch.equal(one["weights"], again["weights"])


def run(method: Any, rounds: int = 2, **about: Any) -> list[torch.Tensor]:
    trial = digits_trial(method, **about)
    for t in range(1, rounds + 1):
        trial.round(t)
    return [trial.state(client.id)["weights"] for client in trial.job.federation.clients]


def by_name(method: Any, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return a vector's parts by parameter, whatever order the method keeps them in."""
    method.resident.weights.copy_(weights)
    return {name: parameter.detach().clone() for name, parameter in method.model.named_parameters()}


def test_law_6_density_one_is_dpsgd_on_the_same_graph() -> None:
    dense = run(DisPFL(TWO_EPOCHS, Sparsity(density=1.0), "gradient", topology=RandomGraph(degree=2)))
    plain = run(DPSGD(TWO_EPOCHS, topology=RandomGraph(degree=2)))
    for ours, theirs in zip(dense, plain, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("method", [DisPFL(TWO_EPOCHS, Sparsity(density=1.0)), DPSGD(TWO_EPOCHS)])
def test_law_6_everybody_hearing_everybody_is_uniform_averaging(method: Any) -> None:
    method.topology = FullyConnected()
    trial = digits_trial(method)
    trial.round(1)
    clients = trial.job.federation.clients
    trained = torch.stack([trial.state(client.id)["weights"] for client in clients])
    mixed = []
    step = method.client_step
    method.client_step = lambda client, t: (mixed.append(method.resident.weights.clone()), step(client, t))
    trial.round(2)
    for x in mixed:
        assert torch.equal(x, mixed[0])
        assert torch.allclose(x, trained.mean(0), atol=1e-6)


def test_static_shared_masks_are_dpsgd_on_the_fixed_subnetwork() -> None:
    method = DisPFL(TWO_EPOCHS, Sparsity(initial_masks="shared"), "none", topology=RandomGraph(degree=2))
    trial = digits_trial(method)
    plain = DPSGD(TWO_EPOCHS, topology=RandomGraph(degree=2))
    other = digits_trial(plain)
    m = method.initial_state(trial.job.federation.clients[0])["mask"]
    keep = {name: m[place] for name, place, _ in method.layers}
    # The same sub-network by other means: D-PSGD whose gradients and first weights are masked by hooks.
    for name, parameter in other.job.model.named_parameters():
        if name in keep:
            parameter.data *= keep[name].view(parameter.shape)
            parameter.register_hook(lambda g, bits=keep[name]: g * bits.view(g.shape))
    plain.residents.first_states[0]["weights"] = plain.resident.weights.clone()
    for t in (1, 2):
        trial.round(t)
        other.round(t)
    for client in trial.job.federation.clients:
        ours = by_name(method, trial.state(client.id)["weights"])
        theirs = by_name(plain, other.state(client.id)["weights"])
        for name in ours:
            assert torch.allclose(ours[name], theirs[name], atol=1e-6)


@pytest.mark.parametrize("buffers", ["local", "mean"])
def test_buffers_stay_local_or_are_averaged(buffers: Any) -> None:
    class Normed(SmallCNN):
        def __init__(self) -> None:
            super().__init__(image_size=8, width=4)
            self.network.insert(1, torch.nn.BatchNorm2d(4))

    method = DisPFL(TWO_EPOCHS, buffers=buffers, topology=FullyConnected())
    torch.manual_seed(0)
    trial = digits_trial(method, Normed())
    trial.round(1)
    states = [trial.state(client.id) for client in trial.job.federation.clients]
    assert all(int(state["counters"]) > 0 for state in states)
    assert not torch.equal(states[0]["buffers"], states[1]["buffers"])
    seen = []
    step = method.client_step
    method.client_step = lambda client, t: (seen.append(method.resident.buffers.clone()), step(client, t))
    trial.round(2)
    mean = torch.stack([state["buffers"] for state in states]).mean(0)
    for state, loaded in zip(states, seen, strict=True):
        assert torch.allclose(loaded, mean if buffers == "mean" else state["buffers"], atol=1e-6)


def test_masks_attach_to_the_layers_that_patterns_name() -> None:
    method = DisPFL(TWO_EPOCHS, Sparsity(density=0.3, masked=["network.7.*"]), topology=RandomGraph(degree=2))
    digits_trial(method)
    assert [layer.name for layer in method.layers] == ["network.7.weight"]
    with pytest.raises(UsageError, match=r"--method.sparsity.masked has 'head\*', which names no parameter"):
        digits_trial(DisPFL(sparsity=Sparsity(masked=["head*"]), topology=RandomGraph(degree=2)))


def test_check_10_bytes_of_a_published_model_on_the_wire() -> None:
    from flgen.wire.codecs import encode_payload

    method = DisPFL(TWO_EPOCHS, topology=RandomGraph(degree=2))

    class Pictures(Digits):
        def layout(self) -> Any:
            from flgen.data.image_data import ImageLayout

            return ImageLayout("pictures", tuple("0123456789"), channels=3, image_size=32)

        def load(self) -> Any:
            from flgen.data.image_set import ImageSet

            labels = torch.arange(20) % 10
            return (ImageSet(torch.zeros(20, 3, 32, 32, dtype=torch.uint8), labels),) * 2

    trial = Trial(method, ResNet18(), data=Pictures(), partition=Shards(clients=5, shards_per_client=1))
    client = trial.job.federation.clients[0]
    client.state = method.initial_state(client)
    message = encode_payload(method.outgoing(client, 1))
    assert sum(layer.size for layer in method.layers) == 10_027_008
    assert int(client.state["mask"].sum()) == 4_440_023
    assert 23_601_284 <= message.numel() <= 23_601_284 + 128
    trial.method.report = lambda client, point: None
    metrics = client.metrics
    method.resident.add_flops(client, 500 * 5, method.active_of(client))
    assert metrics["flops/client_round"] == pytest.approx(6.63336e12, rel=1e-5)
