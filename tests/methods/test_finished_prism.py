"""What a ticket takes from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small_prism
import torch

from flgen import ResnetGenerator
from flgen.federation.streams import RandomStreams
from flgen.masks import network
from flgen.masks.ticket import Provenance, Ticket
from flgen.methods.finished_prism import CheckpointGenerator


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """A checkpoint, and the method that holds what the run ended with."""
    folder = tmp_path_factory.mktemp("runs") / "prism"
    return str(folder / "checkpoints" / "last"), small_prism.prism_run(folder)


def ticket_of(place: str, **options: Any) -> Ticket:
    return CheckpointGenerator("--ckpt_path", place, **options).ticket()


def test_seed_and_options_give_the_frozen_weights_of_the_run(trained: tuple[str, Any]) -> None:
    place, method = trained
    ticket = ticket_of(place)
    assert ticket.class_path == "flgen.models.generators.ResnetGenerator"
    again = ResnetGenerator(**ticket.init_args)
    again.reset_weights(ticket.weight_seed)
    assert torch.equal(network.weights_vector(again), network.weights_vector(method.generator))


def test_the_mask_is_drawn_from_the_probabilities_or_cut_at_a_half(trained: tuple[str, Any]) -> None:
    place, method = trained
    theta = torch.sigmoid(method.s_t)
    assert torch.equal(ticket_of(place, masks="threshold").mask, theta > 0.5)
    draws = RandomStreams(7).torch("evaluation masks", round=2)
    assert torch.equal(ticket_of(place).mask, torch.bernoulli(theta, generator=draws).bool())


def test_the_statistics_are_measured_on_as_many_batches_as_the_run_says(trained: tuple[str, Any]) -> None:
    place, method = trained
    assert method.recalibration_batches == 2
    as_the_run, two, three = (ticket_of(place, recalibration_batches=batches) for batches in (None, 2, 3))
    assert torch.equal(as_the_run.variances, two.variances)
    assert not torch.equal(two.variances, three.variances)


def test_it_names_data_and_run_and_not_where_the_run_lies(trained: tuple[str, Any]) -> None:
    assert ticket_of(trained[0], masks="threshold").provenance == Provenance(
        data="digits-public",
        data_class="flgen.data.digits.Digits",
        run="prism",
        round=2,
        seed=7,
        masks="threshold",
    )


def test_an_export_says_the_same_twice(trained: tuple[str, Any]) -> None:
    source = CheckpointGenerator("--ckpt_path", trained[0])
    first, second = source.ticket(), source.ticket()
    assert torch.equal(first.mask, second.mask)
    assert torch.equal(first.means, second.means)
    assert Path(trained[0]).parent.parent.name == first.provenance.run
