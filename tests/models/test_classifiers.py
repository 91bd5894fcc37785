"""The small classifier as an ordinary LightningModule."""

import lightning
import pytest
import torch

from flgen.errors import UsageError
from flgen.models.classifiers import Classifier, SmallCNN


def problem(count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose class is the half that is bright."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (count,), generator=generator)
    images = 0.3 * torch.randn(count, 1, size, size, generator=generator)
    images[labels == 1, :, : size // 2] += 1
    images[labels == 0, :, size // 2 :] += 1
    return images.clamp(-1, 1), labels


@pytest.fixture
def logged(monkeypatch) -> dict[str, torch.Tensor]:
    values: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(lightning.LightningModule, "log", lambda self, name, value, **_: values.update({name: value}))
    return values


@pytest.mark.parametrize(("size", "channels", "classes"), [(28, 1, 10), (32, 3, 7), (8, 1, 10), (5, 1, 2)])
def test_logits_have_one_column_per_class(size, channels, classes):
    model = SmallCNN(size, channels, classes, width=4)
    assert model(torch.zeros(3, channels, size, size)).shape == (3, classes)
    assert isinstance(model, lightning.LightningModule)


def test_parameter_count_of_the_default():
    convolutions = 32 * 25 + 32 + 64 * 32 * 25 + 64
    linear = 64 * 49 * 128 + 128 + 128 * 10 + 10
    assert sum(parameter.numel() for parameter in SmallCNN().parameters()) == convolutions + linear


def test_its_own_steps_and_optimiser_learn(logged):
    torch.manual_seed(0)
    model = SmallCNN(8, classes=2, width=4, learning_rate=0.1)
    images, labels = problem(256, 8)
    optimiser = model.configure_optimizers()
    model.test_step((images, labels), 0)
    before = {name: value.item() for name, value in logged.items()}
    for _ in range(60):
        optimiser.zero_grad()
        loss = model.training_step((images, labels), 0)
        loss.backward()
        optimiser.step()
    assert logged["train/loss"].item() == loss.item()
    model.test_step((images, labels), 0)
    assert logged["test/accuracy"].item() > 0.95
    assert logged["test/loss"].item() < 0.5 * before["test/loss"]
    model.validation_step((images, labels), 0)
    assert logged["val/accuracy"].item() == logged["test/accuracy"].item()


def test_accuracy_is_the_share_of_right_answers(logged):
    model = SmallCNN(8, classes=2, width=4)
    images, _ = problem(8, 8)
    answers = model(images).argmax(dim=1)
    labels = answers.clone()
    labels[:2] = 1 - labels[:2]
    model.test_step((images, labels), 0)
    assert logged["test/accuracy"].item() == 0.75


def test_logits_are_the_head_of_the_features():
    model = SmallCNN(8, classes=2, width=4)
    images, _ = problem(8, 8)
    z = model.features(images)
    assert z.shape == (8, 16)
    assert torch.equal(model.head(z), model(images))


def test_tested_batches_give_their_answers(logged):
    model = SmallCNN(8, classes=2, width=4)
    images, labels = problem(8, 8)
    for step in (model.test_step, model.validation_step):
        answers = step((images, labels), 0)
        assert torch.equal(answers["predictions"], model(images).argmax(dim=1))
        assert answers["labels"] is labels


def test_a_classifier_without_a_network_says_what_it_lacks():
    with pytest.raises(TypeError, match="Classifier is not a complete classifier: it needs a method features"):
        Classifier(0.1, 0.0, 0.0)(torch.zeros(1))


def test_the_learning_rate_is_the_optimisers():
    (group,) = SmallCNN(8, width=4, learning_rate=0.25).configure_optimizers().param_groups
    assert group["lr"] == 0.25


def test_it_is_trained_by_plain_sgd_unless_told_otherwise():
    (group,) = SmallCNN(8, width=4).configure_optimizers().param_groups
    assert (group["weight_decay"], group["momentum"]) == (0.0, 0.0)
    (group,) = SmallCNN(8, width=4, weight_decay=5e-4, momentum=0.9).configure_optimizers().param_groups
    assert (group["weight_decay"], group["momentum"]) == (5e-4, 0.9)


def test_its_layers_are_drawn_in_their_order():
    torch.manual_seed(3)
    weights = list(SmallCNN(8, width=4).parameters())
    torch.manual_seed(3)
    layers = (
        torch.nn.Conv2d(1, 4, 5),
        torch.nn.Conv2d(4, 8, 5),
        torch.nn.Linear(32, 16),
        torch.nn.Linear(16, 10),
    )
    expected = [parameter for layer in layers for parameter in layer.parameters()]
    assert all(torch.equal(drawn, other) for drawn, other in zip(weights, expected, strict=True))


@pytest.mark.parametrize("option", ["learning_rate", "weight_decay", "momentum"])
@pytest.mark.parametrize("value", [-0.5, float("nan"), float("inf")])
def test_impossible_numbers_of_sgd_are_refused(option, value):
    with pytest.raises(UsageError, match=f"--model.{option} {value}: it must be a finite number of at least 0"):
        SmallCNN(8, **{option: value})


@pytest.mark.parametrize(("option", "value"), [("image_size", 3), ("channels", 0), ("classes", 0), ("width", 0)])
def test_impossible_sizes_are_refused(option, value):
    with pytest.raises(UsageError, match=f"--model.{option} {value}"):
        SmallCNN(**{option: value})
