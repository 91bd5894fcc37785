"""What methods with public data share: the samples, the losses, the order in which clients are looked at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from digit_trial import Constant, digit_trial, gathered
from peer_trial import Pull, row

from flgen import CIFAR10, DSFL, Digits, FedAvg, FedDF, FedET, SmallCNN
from flgen.errors import FlgenError, UsageError
from flgen.methods import distillation

PUBLIC = pytest.mark.parametrize("method", [FedDF, DSFL, FedET])


@PUBLIC
def test_a_method_without_public_data_says_which_option_names_them(method: Any) -> None:
    with pytest.raises(UsageError, match=rf"^--method.public_data is missing: {method.__name__} .*CIFAR100"):
        method()


@PUBLIC
def test_public_data_of_another_shape_are_refused_before_a_run(method: Any) -> None:
    with pytest.raises(UsageError, match=r"of shape \(1, 16, 16\), --data has images of shape \(1, 8, 8\): make"):
        method(public_data=Digits(image_size=16)).prepare(SmallCNN(image_size=8), Digits())


@PUBLIC
def test_a_module_that_gives_no_logits_is_refused_before_a_run(method: Any) -> None:
    data = Digits()
    with pytest.raises(UsageError, match=r"Constant must be .* \(2, 10\) for a batch of 2; it returns shape \(2, 7\)"):
        method(public_data=data).prepare(Constant(7), data)
    with pytest.raises(UsageError, match=r"Pull must be a classifier of batches .* of samples of shape \(1, 8, 8\)"):
        method(public_data=data).prepare(Pull([0], [[1]]), data)
    distillation.check_logits(Constant(10), data)


def test_files_of_public_data_that_are_missing_are_named_by_their_own_option(tmp_path: Any) -> None:
    with pytest.raises(FlgenError, match=r"`--method.public_data.root`.*`--method.public_data.download true`"):
        distillation.load_public_data(CIFAR10(str(tmp_path)), CIFAR10())


def test_a_look_at_the_module_leaves_it_in_the_mode_it_was_in() -> None:
    model = Constant(10)
    distillation.check_logits(model.train(), Digits())
    assert model.training
    distillation.check_logits(model.eval(), Digits())
    assert not model.training
    assert model.calls == [False, False]


def test_a_public_sample_carries_its_position_and_not_its_label() -> None:
    data = Digits()
    rows = torch.tensor([5, 900, 3])
    samples = distillation.unlabelled(data, rows, "cpu")
    ((images, positions),) = samples.in_order(10)
    assert torch.equal(images, data.train.images[rows])
    assert positions.tolist() == [0, 1, 2]
    for images, positions in samples.batches(2, torch.Generator().manual_seed(0), epochs=3):
        assert torch.equal(images, data.train.images[rows[positions]])


def test_soft_cross_entropy_is_the_hard_one_for_certain_labels_and_the_entropy_at_its_minimum() -> None:
    logits = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 0.2]], dtype=torch.float64)
    hard = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 0]))
    certain = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert float(distillation.soft_cross_entropy(logits, certain)) == pytest.approx(float(hard), rel=1e-6)
    p = torch.softmax(logits, dim=1)
    entropy = float(torch.special.entr(p).sum(dim=1).mean())
    assert float(distillation.soft_cross_entropy(logits, p)) == pytest.approx(entropy, rel=1e-6)


def test_logits_are_those_of_eval_mode_in_the_order_of_the_samples() -> None:
    trial = digit_trial(FedAvg())
    method: Any = trial.method
    rows = torch.arange(700, 100, -2)
    method.model.train()
    logits = distillation.logits_on(method.resident, distillation.unlabelled(Digits(), rows, "cpu"))
    assert not method.model.training
    with torch.no_grad():
        expected = method.model(method.data.standardize(method.data.train.images[rows]))
    assert torch.allclose(logits, expected, atol=1e-5)
    assert not logits.requires_grad


def test_clients_are_looked_at_by_their_keys_and_weighted_by_their_samples() -> None:
    trial = digit_trial(FedAvg(), clients=3)
    federation = trial.job.federation
    for client, key, samples in zip(federation.clients, (2, 0, 1), (10, 30, 60), strict=True):
        client.key, client.samples = key, samples
    uploads = gathered(*({"weights": row(*w)} for w in ((1, -2), (3, 0), (-1, 4))))
    received = distillation.received_in_order(uploads, federation)
    assert [client.id for client, _ in received] == [1, 2, 0]
    # Check 1 of the specification.
    mean = distillation.sample_weighted_mean(received)
    assert mean.dtype == torch.float64
    assert mean.tolist() == pytest.approx([0.4, 2.2], abs=1e-9)


def test_training_on_the_server_takes_a_step_per_batch_and_reports_the_mean_loss() -> None:
    trial = digit_trial(FedAvg(), model=Constant(10))
    method: Any = trial.method
    seen: list[int] = []

    def loss(x: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
        return (method.model.logits - 1).square().sum() / 2

    batches = [(torch.zeros(1), torch.zeros(1))] * 2
    optimizer = torch.optim.SGD(method.model.parameters(), lr=0.5)
    mean = distillation.train_on_server(
        method.resident, optimizer, batches, loss, seed=0, after_step=lambda: seen.append(len(seen))
    )
    assert seen == [0, 1]
    assert method.w.tolist() == pytest.approx([0.75] * 10)
    assert mean == pytest.approx((5 + 1.25) / 2)
