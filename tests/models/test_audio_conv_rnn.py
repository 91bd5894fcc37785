"""The audio classifier."""

from __future__ import annotations

import math

import lightning
import pytest
import torch

from flgen.data.log_mel import log_mel
from flgen.errors import UsageError
from flgen.models import AudioConvRNN


@pytest.mark.parametrize(("classes", "parameters"), [(36, 285_028), (50, 286_834)])
def test_it_has_as_many_parameters_as_the_published_weights(classes, parameters):
    assert sum(parameter.numel() for parameter in AudioConvRNN(classes).parameters()) == parameters


@pytest.mark.parametrize("steps", [4, 61, 101])
def test_logits_have_one_column_per_class(steps):
    model = AudioConvRNN(7, hidden=16)
    assert isinstance(model, lightning.LightningModule)
    assert model(torch.zeros(3, steps, 128)).shape == (3, 7)


def test_it_reads_time_in_both_directions():
    torch.manual_seed(0)
    model = AudioConvRNN(5).eval()
    early, late = torch.zeros(2, 1, 40, 128)
    early[:, :4], late[:, -4:] = 1.0, 1.0
    assert not torch.allclose(model(early), model(late))
    assert not torch.allclose(model(early), model(early.flip(1)))


def test_dropout_is_for_training_alone():
    torch.manual_seed(0)
    model, features = AudioConvRNN(5, dropout=0.5), torch.randn(2, 20, 128)
    assert not torch.equal(model(features), model(features))
    model.eval()
    assert torch.equal(model(features), model(features))


def test_its_own_steps_and_optimiser_learn_to_tell_two_tones(monkeypatch):
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(lightning.LightningModule, "log", lambda self, name, value, **_: logged.update({name: value}))
    torch.manual_seed(0)
    labels = torch.arange(16) % 2
    times = torch.arange(3200) / 16_000
    hertz = torch.where(labels == 0, 400.0, 1600.0) * (1 + 0.1 * torch.rand(16))
    loudness = torch.sin(math.pi * times / 0.2)
    waves = loudness * torch.sin(2 * math.pi * hertz[:, None] * times) + 0.01 * torch.randn(16, 3200)
    features = log_mel((waves * 16_000).to(torch.int16))
    model = AudioConvRNN(2, hidden=16, learning_rate=0.05, momentum=0.9)
    optimiser = model.configure_optimizers()
    for _ in range(40):
        optimiser.zero_grad()
        model.training_step((features, labels), 0).backward()
        optimiser.step()
    model.eval()
    model.test_step((features, labels), 0)
    assert logged["test/accuracy"].item() == 1.0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"classes": 0}, "--model.classes 0"),
        ({"hidden": 0}, "--model.hidden 0"),
        ({"dropout": 1.0}, "--model.dropout 1.0"),
        ({"dropout": -0.1}, "--model.dropout -0.1"),
        ({"learning_rate": -1.0}, "--model.learning_rate -1.0"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, says):
    with pytest.raises(UsageError, match=says):
        AudioConvRNN(**options)
