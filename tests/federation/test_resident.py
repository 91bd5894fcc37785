"""The resident module: flat vectors behind it, and training and tests that equal the bare loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from flgen.data import ImageData, LabelledData
from flgen.data.augmentation import AUGMENTATIONS, crop_and_flip
from flgen.data.image_data import ImageLayout
from flgen.data.image_set import ImageSet
from flgen.data.labelled_data import Layout
from flgen.data.labelled_set import LabelledSet
from flgen.errors import UsageError
from flgen.federation.clients import Client
from flgen.federation.launch import build_fabric
from flgen.federation.resident import ResidentModel
from flgen.federation.streams import RandomStreams
from flgen.federation.training_options import LocalTraining

BATCHED = LocalTraining(epochs=2, batch_size=4)
ROWS = np.arange(10)  # of client 0: batches of 4, 4 and 2
PER_SAMPLE = 3 * (2 * 16 * 5 + 5 + 2 * 5 * 3 + 3)  # three times the two linear layers' forward pass
COUNTED_BY_TORCH = 2 * 16 * 5 + 2 * 5 * 3 + 2 * 16 * 5 + 2 * (2 * 5 * 3)  # no biases, no gradient of the images


class Images(ImageData):
    """24 random training and 9 test images of 4x4 pixels, 3 classes, with a mean and a deviation of their own."""

    def layout(self) -> ImageLayout:
        return ImageLayout("images", ("a", "b", "c"), channels=1, image_size=4, mean=(0.4,), std=(0.25,))

    def load(self) -> tuple[ImageSet, ImageSet]:
        return self._drawn(24, 0), self._drawn(9, 1)

    def _drawn(self, count: int, seed: int) -> ImageSet:
        draws = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (count, 1, 4, 4), dtype=torch.uint8, generator=draws)
        return ImageSet(images, torch.randint(0, 3, (count,), generator=draws))


class Net(LightningModule):
    """Two linear layers around BatchNorm; it keeps what it was shown in training mode."""

    def __init__(self, learning_rate: float = 0.1, weight_decay: float = 0.01) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.hidden, self.norm, self.out = nn.Linear(16, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        return self.out(torch.tanh(self.norm(self.hidden(images.flatten(1)))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.training:
            self.seen.append(batch[0])
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)


Make = Callable[..., ResidentModel]


@pytest.fixture
def data() -> Images:
    images = Images()
    images.setup()
    return images


@pytest.fixture
def make(data: Images) -> Make:
    """Return a function that puts a module behind vectors."""
    fabric = build_fabric(accelerator="cpu", devices=1, num_nodes=1, precision="32-true", timeout_s=10, callbacks=[])

    def made(training: LocalTraining = BATCHED, module: Any = None, last: tuple[str, ...] = ()) -> ResidentModel:
        return ResidentModel(module or Net(), data, fabric, training, last)

    return made


@pytest.fixture
def client(data: Images) -> Client:
    return client_of(data, 0, ROWS)


def client_of(data: LabelledData, key: int, rows: np.ndarray, tested: int = 7) -> Client:
    return Client(
        id=key,
        samples=len(rows),
        streams=RandomStreams(5),
        key=key,
        open_data=partial(data.client_data, key, rows),
        open_test=partial(data.client_test_data, np.arange(tested)),
    )


def ignore(done: int, steps: int) -> None:
    """Nobody counts the steps."""


def flat(module: nn.Module, *names: str) -> Tensor:
    """Return the named parameters in one vector."""
    named = dict(module.named_parameters())
    return torch.cat([named[name].detach().reshape(-1) for name in names])


def trained_by_hand(
    module: Net, client: Client, data: Images, t: int, *, rate: float, clip_norm: float | None = None
) -> list[float]:
    """Train by plain SGD on the client's batches of round t; return the losses."""
    module.train()
    losses = []
    optimizer = torch.optim.SGD(module.parameters(), lr=rate, weight_decay=module.weight_decay)
    for x, y in client.data.batches(4, client.random("batches", t), epochs=2):
        loss = F.cross_entropy(module(data.standardize(x)), y)
        optimizer.zero_grad()
        loss.backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


# ---- vectors ----------------------------------------------------------------------------------------------------


def test_the_vector_is_the_modules_parameters_and_then_its_floating_buffers(make: Make) -> None:
    module = Net()
    names = [name for name, _ in module.named_parameters()]
    expected = torch.cat([flat(module, *names), torch.zeros(5), torch.ones(5)])
    resident = make(module=module)
    assert torch.equal(resident.vector, expected)
    assert len(resident.weights) == 16 * 5 + 5 + 5 + 5 + 5 * 3 + 3
    assert torch.equal(resident.buffers, expected[-10:])
    assert resident.counters.dtype == torch.int64
    assert resident.counters.tolist() == [0]


def test_what_is_written_into_the_vectors_is_what_the_module_computes_with(make: Make) -> None:
    module = Net()
    resident = make(module=module)
    resident.vector.copy_(torch.arange(float(len(resident.vector))))
    assert module.hidden.weight[0, :3].tolist() == [0.0, 1.0, 2.0]
    assert module.norm.running_var.tolist() == [118.0, 119.0, 120.0, 121.0, 122.0]
    resident.weights.fill_(0.5)
    resident.buffers.fill_(2.0)
    resident.counters.fill_(7)
    assert set(flat(module, *dict(module.named_parameters())).tolist()) == {0.5}
    assert module.norm.running_mean.tolist() == [2.0] * 5
    assert module.norm.num_batches_tracked.item() == 7


def test_training_moves_the_vectors(make: Make, client: Client) -> None:
    resident = make()
    before = resident.vector.clone()
    resident.train(client, 1, ignore)
    changed = (resident.vector != before).double()
    assert changed[:80].mean() == 1
    assert changed[-10:].mean() == 1
    assert resident.counters.tolist() == [6]


def test_the_named_parameters_come_last_in_the_modules_order(make: Make) -> None:
    module = Net()
    first = flat(module, "hidden.bias", "norm.weight", "norm.bias", "out.bias")
    last = flat(module, "hidden.weight", "out.weight")
    resident = make(module=module, last=("out.weight", "hidden.weight"))
    assert torch.equal(resident.weights, torch.cat([first, last]))
    assert len(resident.buffers) == 10
    parts = resident.split_last(resident.weights[-95:])
    assert [tuple(part.shape) for part in parts] == [(5, 16), (3, 5)]
    assert torch.equal(parts[1], module.out.weight)
    assert parts[0].data_ptr() == module.hidden.weight.data_ptr()  # a view, nothing is copied


def test_a_module_without_buffers_has_empty_ones(make: Make) -> None:
    module = Net()
    module.norm = nn.Identity()  # type: ignore[assignment]
    resident = make(module=module)
    assert (len(resident.buffers), len(resident.counters)) == (0, 0)
    assert len(resident.vector) == len(resident.weights) == 103


def test_a_term_is_added_to_the_gradients_of_all_trained_parameters_in_the_order_of_the_weights(make: Make) -> None:
    module = Net()
    module.norm.weight.requires_grad_(False)
    resident = make(module=module, last=("hidden.weight",))
    loss = module.hidden(torch.ones(1, 16)).sum()  # does not need `norm` and `out`
    loss.backward()
    assert torch.equal(resident.gradients(), torch.cat([torch.ones(5), torch.zeros(28), torch.ones(80)]))
    term = torch.arange(float(len(resident.weights)))
    for times in (1, 2):  # the second time every trained parameter has a gradient
        resident.add_to_gradients(term)
        expected = torch.cat([torch.ones(5), torch.zeros(28), torch.ones(80)]) + times * term
        expected[5:10] = 0  # norm.weight is frozen
        assert torch.equal(resident.gradients(), expected)
    assert module.norm.weight.grad is None
    assert torch.equal(term, torch.arange(float(len(term))))


# ---- training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_norm", [None, 0.3])
def test_training_is_plain_sgd_with_clipping_and_a_decaying_rate(
    clip_norm: float | None, make: Make, client: Client, data: Images
) -> None:
    module, bare = Net(), Net()
    resident = make(LocalTraining(2, 4, learning_rate_decay=0.5, clip_norm=clip_norm), module)
    resident.train(client, 3, ignore)
    losses = trained_by_hand(bare, client, data, 3, rate=0.1 * 0.25, clip_norm=clip_norm)
    expected = bare.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())
    assert client.metrics["train/loss"] == pytest.approx(np.mean(losses), rel=1e-6)

    unclipped = Net()
    trained_by_hand(unclipped, client, data, 3, rate=0.1 * 0.25)
    assert torch.equal(unclipped.out.weight, module.out.weight) == (clip_norm is None)


def test_the_learning_rate_falls_by_a_factor_per_round_from_the_modules_own(make: Make) -> None:
    resident = make(LocalTraining(learning_rate_decay=0.998))
    # dispfl.md, section 13, check 3, whose rounds count from 0
    published = {0: 0.1, 1: 0.0998, 50: 0.090474682, 100: 0.081856680, 250: 0.060622707, 499: 0.036824775}
    for t, rate in published.items():
        assert resident.learning_rate(t + 1) == pytest.approx(rate, rel=1e-6)
        assert resident.learning_rate_factor(t + 1) == pytest.approx(rate / 0.1, rel=1e-6)


def test_the_rate_of_another_round_may_be_asked_for(make: Make, client: Client, data: Images) -> None:
    module, bare = Net(), Net()
    make(LocalTraining(2, 4, learning_rate_decay=0.5), module).train(client, 3, ignore, decay_round=1)
    trained_by_hand(bare, client, data, 3, rate=0.1)  # round 3's batches
    assert torch.equal(module.out.weight, bare.out.weight)


def test_every_step_is_told_among_those_before_and_after(make: Make, client: Client) -> None:
    told: list[tuple[int, int]] = []
    resident = make()
    resident.train(client, 1, lambda done, steps: told.append((done, steps)))
    assert told == [(step, 6) for step in range(1, 7)]
    told.clear()
    resident.train(client, 1, lambda done, steps: told.append((done, steps)), epochs=1, steps_before=4, steps_after=2)
    assert told == [(5, 9), (6, 9), (7, 9)]


def test_a_last_batch_of_one_sample_joins_the_one_before_it_if_wanted(data: Images) -> None:
    fabric = build_fabric(accelerator="cpu", devices=1, num_nodes=1, precision="32-true", timeout_s=10, callbacks=[])
    for rows, sizes in [(9, [4, 5]), (10, [4, 4, 2])]:
        module, told = Net(), []
        resident = ResidentModel(module, data, fabric, BATCHED, joins_single_samples=True)
        resident.train(client_of(data, 0, np.arange(rows)), 1, lambda *steps, told=told: told.append(steps))
        assert [len(x) for x in module.seen] == 2 * sizes
        assert told == [(step, 2 * len(sizes)) for step in range(1, 2 * len(sizes) + 1)]
    with pytest.raises(ValueError, match="more than 1 value per channel"):  # PyTorch's own BatchNorm
        ResidentModel(Net(), data, fabric, BATCHED).train(client_of(data, 0, np.arange(9)), 1, ignore)


def test_batches_differ_by_round_client_and_purpose_and_by_nothing_else(
    make: Make, client: Client, data: Images
) -> None:
    def shown(t: int = 1, who: Client = client, purpose: str = "batches") -> list[Tensor]:
        module = Net()
        resident = make(module=module)
        resident.train(who, t, ignore, purpose=purpose)
        return module.seen

    def same(a: list[Tensor], b: list[Tensor]) -> bool:
        return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    assert [len(x) for x in shown()] == [4, 4, 2, 4, 4, 2]
    assert same(shown(), shown())
    for other in (shown(2), shown(who=client_of(data, 1, ROWS)), shown(purpose="fine tuning")):
        assert not same(shown(), other)


def test_part_of_the_data_may_stand_for_all_of_it(make: Make, client: Client) -> None:
    rest, _ = client.data.split(4, torch.Generator().manual_seed(0))
    module = Net()
    told: list[int] = []
    make(module=module).train(client, 1, lambda done, steps: told.append(steps), data=rest)
    assert [len(x) for x in module.seen] == [4, 2, 4, 2]
    assert told == [4] * 4
    assert client.metrics["flops/client_round"] == 2 * 6 * PER_SAMPLE


@pytest.mark.parametrize("augmentation", ["none", "crop_flip", "resized_crop_flip"])
def test_images_are_augmented_only_if_asked_and_from_the_clients_own_stream(
    augmentation: Any, make: Make, client: Client, data: Images
) -> None:
    module = Net()
    make(LocalTraining(2, 4, augmentation=augmentation), module).train(client, 2, ignore)
    shifts = RandomStreams(5).torch("batches augmentation", round=2, client=0)
    batches = client.data.batches(4, client.random("batches", 2), epochs=2)
    for (x, _), seen in zip(batches, module.seen, strict=True):
        expected = AUGMENTATIONS[augmentation](x, shifts) if augmentation != "none" else x
        assert torch.equal(seen, (expected.float() / 255 - 0.4) / 0.25)
        assert torch.equal(seen, data.standardize(x)) == (augmentation == "none")


def test_a_caller_may_take_batches_without_augmentation(make: Make, client: Client, data: Images) -> None:
    resident = make(LocalTraining(2, 4, augmentation="crop_flip"))
    ((plain, _),) = resident.batches(client, client.data, "search", 1, steps=1, augmented=False)
    ((x, _),) = client.data.batches(4, client.random("search", 1), steps=1)
    assert torch.equal(plain, data.standardize(x))
    (whole,) = make(LocalTraining(1, 100)).batches(client, client.data, "search", 1, steps=1)
    assert len(whole[1]) == 10  # no sample twice, however large a batch may be


def test_gradients_can_be_masked_before_they_are_clipped(make: Make, client: Client) -> None:
    module = Net(weight_decay=0.0)
    resident = make(LocalTraining(1, 4, clip_norm=0.01), module, last=("hidden.weight",))
    mask = torch.zeros(5, 16, dtype=torch.bool)
    mask[:, :3] = True
    before = module.hidden.weight.detach().clone()
    norms: list[tuple[float, float]] = []

    def norm() -> float:
        return float(torch.cat([p.grad.reshape(-1) for p in module.parameters() if p.grad is not None]).norm())

    def on_gradient() -> None:
        dense = norm()
        resident.mask_gradients([mask])
        norms.append((dense, norm()))

    def after_step() -> None:
        assert norm() == pytest.approx(0.01, rel=1e-3)  # clipped since
        assert torch.equal(module.hidden.weight[~mask], before[~mask])

    resident.train(client, 1, ignore, on_gradient=on_gradient, after_step=after_step)
    assert len(norms) == 3
    assert all(dense > masked > 0.01 for dense, masked in norms)
    assert (module.hidden.weight[mask] != before[mask]).all()


def test_what_training_costs_adds_up_and_what_it_says_is_the_last_word(make: Make, client: Client) -> None:
    resident = make()
    resident.train(client, 1, ignore)
    assert client.metrics["flops/client_round"] == 2 * 10 * PER_SAMPLE
    assert client.metrics["flops/client_round_torch"] == 2 * 10 * COUNTED_BY_TORCH
    first = client.metrics["train/loss"]
    resident.train(client, 1, ignore, epochs=1, active={"hidden.weight": 30, "hidden.bias": 1})
    sparse = PER_SAMPLE - 3 * 2 * (80 - 30)
    assert client.metrics["flops/client_round"] == 2 * 10 * PER_SAMPLE + 10 * sparse
    assert client.metrics["flops/client_round_torch"] == 3 * 10 * COUNTED_BY_TORCH
    assert client.metrics["train/loss"] < first


def test_making_it_leaves_nothing_logged_and_the_module_as_it_was(make: Make) -> None:
    module = Net().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    resident = make(module=module)
    assert module.training
    assert resident.logged.means() == {}
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_what_a_client_that_failed_had_logged_is_forgotten(make: Make, client: Client) -> None:
    resident = make()

    def stop(done: int, steps: int) -> None:
        raise ArithmeticError

    resident.module.log("train/loss", 1000.0)
    with pytest.raises(ArithmeticError):
        resident.train(client, 1, stop)
    resident.train(client, 1, ignore)
    assert client.metrics["train/loss"] < 10


# ---- gradient of a mask search ----------------------------------------------------------------------------------


@pytest.mark.parametrize("augmented", [True, False])
def test_the_gradient_is_autograds_on_one_batch_in_evaluation_mode(
    augmented: bool, make: Make, client: Client, data: Images
) -> None:
    module = Net()
    resident = make(LocalTraining(2, 4, augmentation="crop_flip", clip_norm=1e-6), module, last=("out.weight",))
    resident.buffers.copy_(torch.linspace(0.5, 1.5, 10))
    before = resident.vector.clone()
    found = resident.gradient(client, 2, augmented=augmented)

    bare = Net().eval()
    bare.load_state_dict(module.state_dict())
    ((x, y),) = client.data.batches(4, client.random("search", 2), steps=1)
    if augmented:
        x = crop_and_flip(x, client.random("search augmentation", 2))
    F.cross_entropy(bare(data.standardize(x)), y).backward()
    assert torch.equal(found, bare.out.weight.grad.reshape(-1))  # type: ignore[union-attr]
    assert found.norm() > 1e-3  # nothing clips it
    assert torch.equal(resident.vector, before)
    assert module.out.weight.grad is None
    assert client.metrics == {
        "flops/client_round": 4 * PER_SAMPLE,
        "flops/client_round_torch": 4 * COUNTED_BY_TORCH,
    }
    assert resident.logged.means() == {}


def test_the_gradient_of_a_parameter_that_the_loss_does_not_use_is_zero(make: Make, client: Client) -> None:
    module = Net()
    module.unused = nn.Parameter(torch.ones(2, 2))
    gradient = make(module=module, last=("unused", "out.weight")).gradient(client, 1)
    assert len(gradient) == 19
    assert gradient[:4].tolist() == [0.0] * 4  # the module's own parameters come before those of its layers
    assert (gradient[4:] != 0).all()


# ---- tests ------------------------------------------------------------------------------------------------------


def test_a_clients_test_is_on_its_own_images_and_named_by_the_point_of_the_round(
    make: Make, client: Client, data: Images
) -> None:
    module = Net()
    resident = make(module=module)
    resident.train(client, 1, ignore)
    right = module.eval()(data.standardize(data.test.images)).argmax(1) == data.test.labels
    assert resident.test_client(client, "trained") == {
        "test/accuracy_trained": pytest.approx(right[:7].double().mean().item())
    }
    assert list(resident.test_client(client, "aggregated")) == ["test/accuracy_aggregated"]
    assert resident.test_split() == {"test/accuracy": pytest.approx(right.double().mean().item())}
    assert resident.test_client(client_of(data, 2, ROWS, tested=0), "trained") == {}


def test_samples_held_back_for_validation_are_tested_under_a_name_of_their_own(make: Make, data: Images) -> None:
    module = Net()
    resident = make(module=module)
    held_back = np.array([3, 4, 8])
    client = replace(client_of(data, 0, ROWS), open_validation=partial(data.client_data, 0, held_back))
    right = module.eval()(data.standardize(data.train.images)).argmax(1) == data.train.labels
    results = resident.test_client(client, "trained")
    assert list(results) == ["test/accuracy_trained", "val/accuracy_trained"]
    assert results["val/accuracy_trained"] == pytest.approx(right[held_back].double().mean().item())
    without = resident.test_client(client_of(data, 0, ROWS), "trained")
    assert without == {"test/accuracy_trained": results["test/accuracy_trained"]}
    alone = replace(client, open_test=partial(data.client_test_data, np.arange(0)))
    assert list(resident.test_client(alone, "trained")) == ["val/accuracy_trained"]


class OnlyValidates(Net):
    """Has a `validation_step` and no `test_step`."""

    test_step = LightningModule.test_step

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())


def test_test_and_validation_samples_keep_apart_where_a_module_has_but_a_validation_step(
    make: Make, data: Images
) -> None:
    resident = make(module=OnlyValidates())
    client = client_of(data, 0, ROWS)
    (tested,) = resident.test_client(client, "trained").items()
    assert tested[0] == "val/accuracy_trained"  # as it calls itself
    held_back = partial(data.client_data, 0, np.array([3, 4, 8]))
    results = resident.test_client(replace(client, open_validation=held_back), "trained")
    assert list(results) == ["test/accuracy_trained", "val/accuracy_trained"]
    assert results["test/accuracy_trained"] == tested[1]


def test_a_test_weighs_its_batches_by_their_samples(
    make: Make, client: Client, data: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = make()
    whole = resident.test_split()["test/accuracy"]
    monkeypatch.setattr("flgen.federation.resident.TEST_BATCH", 4)  # 4, 4 and 1
    assert 0 < whole < 1
    assert resident.test_split()["test/accuracy"] == pytest.approx(whole)


def test_a_summed_loss_learns_nothing(make: Make, client: Client, data: Images) -> None:
    module = Net()
    resident = make(module=module)
    before = resident.vector.clone()
    total = resident.summed_loss(client.data)
    x, y = data.train.images[:10], data.train.labels[:10]
    assert total == pytest.approx(F.cross_entropy(module.eval()(data.standardize(x)), y, reduction="sum").item())
    assert torch.equal(resident.vector, before)
    assert (resident.counters.tolist(), resident.logged.means(), client.metrics) == ([0], {}, {})


# ---- new weights ------------------------------------------------------------------------------------------------


def test_a_reset_draws_weights_from_its_seed_alone_and_leaves_the_global_generator(make: Make, client: Client) -> None:
    resident = make(last=("hidden.weight",))
    own = resident.weights.clone()
    resident.train(client, 1, ignore)

    def drawn(seed: int, global_seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        resident.reset(seed)
        assert torch.equal(torch.get_rng_state(), state)
        return resident.weights.clone()

    first = drawn(11, 0)
    assert torch.equal(first, drawn(11, 1))
    assert (first != drawn(12, 0)).sum() == 80 + 5 + 15 + 3  # all but BatchNorm's
    assert not torch.equal(first, own)
    assert resident.buffers.tolist() == [0.0] * 5 + [1.0] * 5
    assert resident.counters.tolist() == [0]


def test_a_reset_is_the_modules_own_if_it_has_one(make: Make) -> None:
    class Own(Net):
        def reset_parameters(self) -> None:
            nn.init.constant_(self.out.bias, 4.0)

    module = Own()
    before = flat(module, "hidden.weight")
    make(module=module).reset(1)
    assert module.out.bias.tolist() == [4.0] * 3
    assert torch.equal(flat(module, "hidden.weight"), before)


def test_weights_that_nobody_can_draw_are_refused(make: Make) -> None:
    module = Net()
    module.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(UsageError, match=r"^--method.init independent .*, which Net lacks: .* --method.init shared$"):
        make(module=module).reset(1)


# ---- data that are no images ------------------------------------------------------------------------------------


class Words(LabelledData):
    """Six samples of three integers each; a module sees them one-hot."""

    noun = "words"

    def layout(self) -> Any:
        class WordLayout(Layout):
            shape, dtype = (3,), torch.int64

        return WordLayout("words", ("a", "b", "c"))

    def load(self) -> tuple[LabelledSet, LabelledSet]:
        tokens = torch.arange(18).reshape(6, 3) % 4
        return (LabelledSet(tokens, torch.arange(6) % 3),) * 2

    def standardize(self, stored: Tensor) -> Tensor:
        return F.one_hot(stored, 4).float()


def test_what_a_sample_costs_is_measured_on_what_the_data_make_of_it() -> None:
    words = Words()
    words.setup()
    fabric = build_fabric(accelerator="cpu", devices=1, num_nodes=1, precision="32-true", timeout_s=10, callbacks=[])
    module = Net()
    module.hidden = nn.Linear(12, 5)
    client = client_of(words, 0, np.arange(4), tested=2)
    ResidentModel(module, words, fabric, BATCHED).train(client, 1, ignore)
    assert client.metrics["flops/client_round"] == 2 * 4 * 3 * (2 * 12 * 5 + 5 + 2 * 5 * 3 + 3)
    assert {tuple(x.shape[1:]) for x in module.seen} == {(3, 4)}


def test_only_images_can_be_moved_about() -> None:
    fabric = build_fabric(accelerator="cpu", devices=1, num_nodes=1, precision="32-true", timeout_s=10, callbacks=[])
    says = "--method.training.augmentation crop_flip moves images, but --data Words holds words: use .* none$"
    with pytest.raises(UsageError, match=says):
        ResidentModel(Net(), Words(), fabric, LocalTraining(augmentation="crop_flip"))


def test_a_module_that_cannot_take_the_data_says_so_in_one_line_before_the_first_round(make: Make) -> None:
    module = Net()
    module.hidden = nn.Linear(17, 5)
    says = (
        r"^--model Net: training_step fails on a sample of --data Images, \(1, 1, 4, 4\): RuntimeError: mat1 and .*\)$"
    )
    with pytest.raises(UsageError, match=says):
        make(module=module)
