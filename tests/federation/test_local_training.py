"""Local training is Lightning's automatic optimisation: the same bits as the bare loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning
import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from flgen.errors import UsageError
from flgen.federation import local_training
from flgen.federation.launch import build_fabric
from flgen.federation.local_training import LoggedValues, only_optimizer, train_locally
from flgen.metrics.classification import f1_scores

Batch = tuple[Tensor, Tensor]


class Classifier(lightning.LightningModule):
    """A user's module: dropout, BatchNorm, an optimiser of its own, and things it logs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))

    def training_step(self, batch: Batch, index: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("train/loss", loss)
        self.log_dict({"train/index": index, "train/size": float(len(y))})
        return loss

    def test_step(self, batch: Batch, index: int) -> None:
        x, y = batch
        self.log("test/accuracy", (self.net(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def batches(sizes: tuple[int, ...] = (8, 8, 5)) -> Iterator[Batch]:
    draws = torch.Generator().manual_seed(0)
    for size in sizes:
        yield torch.randn(size, 6, generator=draws), torch.randint(3, (size,), generator=draws)


@pytest.fixture
def fabric() -> Fabric:
    options: dict[str, Any] = {"devices": 1, "num_nodes": 1, "precision": "32-true"}
    return build_fabric(accelerator="cpu", timeout_s=10, callbacks=[], **options)


def train(module: Any, fabric: Fabric, *, seed: int = 11, steps: list[tuple[int, int]] | None = None) -> LoggedValues:
    logged = LoggedValues(fabric)
    module.fabric = logged
    train_locally(
        module,
        only_optimizer(module),
        batches(),
        fabric,
        seed=seed,
        steps=3,
        on_step=lambda step, total: None if steps is None else steps.append((step, total)),
    )
    return logged


def test_training_equals_the_bare_loop_bit_for_bit(fabric: Fabric) -> None:
    module, bare = Classifier(), Classifier()
    train(module, fabric)

    optimizer = torch.optim.Adam(bare.parameters(), lr=0.01)
    bare.train()
    torch.manual_seed(11)
    for x, y in batches():
        loss = F.cross_entropy(bare.net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    trained, expected = module.state_dict(), bare.state_dict()
    assert trained.keys() == expected.keys()
    assert all(torch.equal(trained[name], expected[name]) for name in expected)
    assert not torch.equal(trained["net.0.weight"], Classifier().state_dict()["net.0.weight"])
    assert trained["net.1.num_batches_tracked"].item() == 3


def test_a_modules_own_draws_depend_on_the_seed_alone(fabric: Fabric) -> None:
    def trained(seed: int, global_seed: int) -> Tensor:
        module = Classifier()
        torch.manual_seed(global_seed)
        train(module, fabric, seed=seed)
        return module.net[0].weight.detach()

    assert torch.equal(trained(11, 0), trained(11, 1))
    assert not torch.equal(trained(11, 0), trained(12, 0))


def test_the_global_generator_is_given_back(fabric: Fabric) -> None:
    module = Classifier()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(module, fabric)
    assert torch.equal(torch.rand(3), expected)


def test_a_module_in_evaluation_mode_is_put_to_training(fabric: Fabric) -> None:
    module = Classifier().eval()
    train(module, fabric)
    assert module.training
    assert module.net[1].num_batches_tracked.item() == 3


def test_every_step_is_announced(fabric: Fabric) -> None:
    steps: list[tuple[int, int]] = []
    train(Classifier(), fabric, steps=steps)
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_what_the_module_logs_is_averaged_over_steps(fabric: Fabric) -> None:
    module = Classifier()
    logged = train(module, fabric)
    means = logged.means()
    assert list(means) == ["train/loss", "train/index", "train/size"]
    assert means["train/index"] == pytest.approx((0 + 1 + 2) / 3)
    assert means["train/size"] == pytest.approx((8 + 8 + 5) / 3)
    bare = Classifier().train()
    torch.manual_seed(11)
    x, y = next(batches())
    first = F.cross_entropy(bare.net(x), y).item()
    assert 0.3 * first < means["train/loss"] < 2 * first
    assert logged.means() == {}


def test_a_log_reading_keeps_no_graph_alive(fabric: Fabric) -> None:
    logged = LoggedValues(fabric)
    weight = torch.ones(1, requires_grad=True)
    logged.log_dict({"loss": weight.sum() * 3})
    logged.log_dict({"loss": 5})
    assert not logged._sums["loss"].requires_grad
    assert logged.means() == {"loss": 4.0}


def test_logged_values_are_the_fabric_for_everything_else(fabric: Fabric) -> None:
    assert LoggedValues(fabric).device == fabric.device
    assert LoggedValues(fabric).world_size == 1


def test_a_step_may_return_a_dictionary_or_pass_over_a_batch(fabric: Fabric) -> None:
    class Picky(Classifier):
        def training_step(self, batch: Batch, index: int) -> Any:  # type: ignore[override]
            loss = super().training_step(batch, index)
            return None if index == 1 else {"loss": loss, "more": 1}

    class Plain(Classifier):
        def training_step(self, batch: Batch, index: int) -> Any:  # type: ignore[override]
            loss = super().training_step(batch, index)
            return loss if index != 1 else None

    picky, plain, whole = Picky(), Plain(), Classifier()
    steps: list[tuple[int, int]] = []
    train(picky, fabric, steps=steps)
    train(plain, fabric)
    train(whole, fabric)
    assert len(steps) == 3
    assert torch.equal(picky.net[0].weight, plain.net[0].weight)
    assert not torch.equal(picky.net[0].weight, whole.net[0].weight)


def test_an_error_on_the_way_restores_the_global_generator(fabric: Fabric) -> None:
    class Broken(Classifier):
        def training_step(self, batch: Batch, index: int) -> Tensor:
            torch.rand(1)
            raise ArithmeticError("no")

    torch.manual_seed(5)
    module = Broken()
    state = torch.get_rng_state()
    with pytest.raises(ArithmeticError):
        train(module, fabric)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_step_can_be_looked_at_before_and_after_the_optimiser(fabric: Fabric) -> None:
    module = Classifier()
    logged = LoggedValues(fabric)
    module.fabric = logged
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    weight = module.net[0].weight
    moments: list[str] = []
    seen: list[tuple[Tensor, Tensor]] = []

    def before_step() -> None:
        moments.append("before")
        assert weight.grad is not None
        weight.grad.clamp_(-0.01, 0.01)
        seen.append((weight.detach().clone(), weight.grad.clone()))

    def after_step() -> None:
        moments.append("after")
        unchanged, gradient = seen[-1]
        assert torch.equal(weight, unchanged - 0.5 * gradient)  # the step took the gradient that was left to it
        with torch.no_grad():
            weight[:, 0] = 0

    train_locally(
        module,
        optimizer,
        batches(),
        fabric,
        seed=11,
        steps=3,
        on_step=lambda done, steps: moments.append(f"{done} of {steps}"),
        before_step=before_step,
        after_step=after_step,
    )
    assert moments == ["before", "after", "1 of 3", "before", "after", "2 of 3", "before", "after", "3 of 3"]
    assert (weight[:, 0] == 0).all()
    assert (seen[1][0][:, 0] == 0).all()  # what is done after a step is where the next one begins


def test_a_batch_that_is_passed_over_has_no_step_to_look_at(fabric: Fabric) -> None:
    class Picky(Classifier):
        def training_step(self, batch: Batch, index: int) -> Any:  # type: ignore[override]
            return None if index == 1 else super().training_step(batch, index)

    moments: list[str] = []
    module = Picky()
    logged = LoggedValues(fabric)
    module.fabric = logged
    train_locally(
        module,
        only_optimizer(module),
        batches(),
        fabric,
        seed=11,
        steps=3,
        on_step=lambda done, steps: moments.append(str(done)),
        before_step=lambda: moments.append("before"),
        after_step=lambda: moments.append("after"),
    )
    assert moments == ["before", "after", "1", "2", "before", "after", "3"]


def with_optimizers(configured: Any) -> Classifier:
    module = Classifier()
    made = configured(module)
    module.configure_optimizers = lambda: made  # type: ignore[method-assign]
    return module


def sgd(module: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), lr=0.1)


def test_one_optimiser_may_come_in_a_list() -> None:
    for wrap in (lambda made: made, lambda made: [made], lambda made: (made,)):
        module = with_optimizers(lambda module, wrap=wrap: wrap(sgd(module)))
        assert isinstance(only_optimizer(module), torch.optim.SGD)


@pytest.mark.parametrize(
    ("configured", "returned"),
    [
        (lambda module: [sgd(module), sgd(module)], "list"),
        (lambda module: {"optimizer": sgd(module), "lr_scheduler": None}, "dict"),
        (lambda module: None, "NoneType"),
    ],
)
def test_anything_but_one_optimiser_is_refused_in_one_line(configured: Any, returned: str) -> None:
    with pytest.raises(UsageError, match=f"must return one optimiser .* it returned {returned}$") as refusal:
        only_optimizer(with_optimizers(configured))
    assert "Classifier.configure_optimizers" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_module_that_takes_its_own_steps_is_refused() -> None:
    module = Classifier()
    module.automatic_optimization = False
    with pytest.raises(UsageError, match="Classifier takes its optimiser steps itself"):
        only_optimizer(module)


def test_test_metrics_weigh_every_sample_alike_and_change_nothing(fabric: Fabric) -> None:
    module = Classifier()
    logged = LoggedValues(fabric)
    module.fabric = logged
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    metrics = local_training.test_module(module, batches(), fabric, logged)
    module.eval()
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    accuracy = (module.net(x).argmax(1) == y).double().mean().item()
    assert metrics == {"test/accuracy": pytest.approx(accuracy, abs=1e-6)}
    assert 0 < accuracy < 1
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("stage", ["test", "val"])
def test_a_step_that_returns_its_answers_gives_the_f1_of_the_whole_pass(fabric: Fabric, stage: str) -> None:
    class Answering(lightning.LightningModule):
        def answer(self, batch: Batch, index: int) -> dict[str, Tensor]:
            return {"predictions": (batch[0][:, 0] > 0).long() + (batch[0][:, 1] > 0).long(), "labels": batch[1]}

    step = {"test": "test_step", "val": "validation_step"}[stage]
    module = type("Answering", (Answering,), {step: Answering.answer})()
    logged = LoggedValues(fabric)
    module.fabric = logged
    found = local_training.test_module(module, batches(), fabric, logged)
    answers = [module.answer(batch, 0) for batch in batches()]
    predictions, labels = (torch.cat([answer[name] for answer in answers]) for name in ("predictions", "labels"))
    whole = f1_scores(predictions, labels)
    assert found == {f"{stage}/f1_macro": whole["f1_macro"], f"{stage}/f1_weighted": whole["f1_weighted"]}
    of_batches = [f1_scores(answer["predictions"], answer["labels"])["f1_macro"] for answer in answers]
    assert sum(of_batches) / 3 != pytest.approx(whole["f1_macro"], abs=1e-3)


def test_a_module_without_test_step_is_tested_by_its_validation_step_or_not_at_all(fabric: Fabric) -> None:
    class Validated(lightning.LightningModule):
        def validation_step(self, batch: Batch, index: int) -> None:
            self.log("valid", 2.0)

    for kind, expected in ((Validated, {"valid": 2.0}), (lightning.LightningModule, {})):
        module = kind()
        logged = LoggedValues(fabric)
        module.fabric = logged
        assert local_training.test_module(module, batches(), fabric, logged) == expected
