"""Groups of networks: who has which, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flgen import ModelGroup, SmallCNN
from flgen.errors import UsageError
from flgen.federation.model_group import as_one_module, networks_of


def group(size: int = 3, **options: Any) -> ModelGroup:
    return ModelGroup([SmallCNN(image_size=8, width=width) for width in range(2, 2 + size)], **options)


def assigned(model: ModelGroup, clients: int) -> list[int]:
    return [model.architecture_of(client, clients) for client in range(clients)]


def test_networks_go_round_in_turn() -> None:
    assert assigned(group(), 7) == [0, 1, 2, 0, 1, 2, 0]
    assert assigned(group(), 2) == [0, 1]


def test_blocks_are_runs_of_equal_length_give_or_take_one() -> None:
    assert assigned(group(assignment="blocks"), 6) == [0, 0, 1, 1, 2, 2]
    assert assigned(group(assignment="blocks"), 7) == [0, 0, 0, 1, 1, 2, 2]
    assert assigned(group(assignment="blocks"), 3) == [0, 1, 2]


def test_a_list_says_each_clients_network() -> None:
    listed = group(assignment=[2, 2, 0, 1])
    listed.check_clients(4)
    assert assigned(listed, 4) == [2, 2, 0, 1]


@pytest.mark.parametrize(("assignment", "named"), [([0, 3], 3), ([-1, 0], -1)])
def test_a_list_that_names_no_network_is_one_line(assignment: list[int], named: int) -> None:
    with pytest.raises(UsageError) as refusal:
        group(assignment=assignment)
    assert str(refusal.value) == (f"--model.assignment names network {named}, but there are 3: count them from 0")


def test_a_list_for_another_number_of_clients_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"^--model.assignment names networks for 2 clients, but there are 4 [^\n]+$"):
        group(assignment=[0, 1]).check_clients(4)
    for rule in ("cyclic", "blocks"):
        group(assignment=rule).check_clients(4)


def test_an_empty_group_is_refused() -> None:
    with pytest.raises(UsageError, match="--model is an empty group: give it at least one network"):
        ModelGroup([])


def test_a_group_is_its_networks_and_computes_nothing_itself() -> None:
    model = group(2)
    assert networks_of(model) == list(model.models)
    single = SmallCNN(image_size=8, width=2)
    assert networks_of(single) == [single]
    with pytest.raises(UsageError, match="a group of networks has none in common"):
        model(torch.zeros(2, 1, 8, 8))


def test_a_list_of_networks_is_a_group_and_a_network_is_itself() -> None:
    networks = [SmallCNN(image_size=8, width=2), SmallCNN(image_size=8, width=3)]
    made = as_one_module(networks)
    assert isinstance(made, ModelGroup)
    assert networks_of(made) == networks
    assert made.assignment == "cyclic"
    assert as_one_module(networks[0]) is networks[0]
    assert as_one_module(made) is made
