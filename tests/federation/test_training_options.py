"""Options of local training: the published ones, and numbers out of range."""

from __future__ import annotations

from typing import Any

import pytest

from flgen.errors import UsageError
from flgen.federation.training_options import PUBLISHED, LocalTraining


def test_the_published_options_are_those_of_the_specification() -> None:
    assert (
        LocalTraining(epochs=5, batch_size=128, learning_rate_decay=0.998, clip_norm=10.0, augmentation="none")
        == PUBLISHED
    )


def test_left_alone_training_is_one_plain_pass() -> None:
    plain = LocalTraining()
    assert (plain.epochs, plain.learning_rate_decay, plain.clip_norm, plain.augmentation) == (1, 1.0, None, "none")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"epochs": 0}, "--method.training.epochs is 0: give 1 or more"),
        ({"batch_size": -1}, "--method.training.batch_size is -1: give 1 or more"),
        (
            {"learning_rate_decay": 0.0},
            "--method.training.learning_rate_decay is 0.0: give a factor above 0, at most 1",
        ),
        (
            {"learning_rate_decay": 1.5},
            "--method.training.learning_rate_decay is 1.5: give a factor above 0, at most 1",
        ),
        (
            {"learning_rate_decay": float("nan")},
            "--method.training.learning_rate_decay is nan: give a factor above 0, at most 1",
        ),
        ({"clip_norm": 0.0}, "--method.training.clip_norm is 0.0: give a number above 0, or null"),
        ({"clip_norm": float("nan")}, "--method.training.clip_norm is nan: give a number above 0, or null"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError) as refusal:
        LocalTraining(**options)
    assert str(refusal.value) == complaint


def test_options_at_their_bounds_are_taken() -> None:
    edge = LocalTraining(epochs=1, batch_size=1, learning_rate_decay=1.0, clip_norm=1e-9)
    assert edge.clip_norm == 1e-9
