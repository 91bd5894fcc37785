"""A list in place of --model: each network takes its sizes from the data, and every mistake in it is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flgen.commands.sections import federated_sections, parse_command
from flgen.errors import UsageError
from flgen.experiment.config import Configuration
from flgen.federation.model_group import as_one_module, networks_of

CNN = {"class_path": "SmallCNN", "init_args": {"width": 4, "feature_width": 16}}
MLP = {"class_path": "SmallMLP", "init_args": {"feature_width": 16, "learning_rate": 0.05}}


def parsed(model: Any, *more: str) -> Configuration:
    arguments = ["--method", "LGFedAvg", "--model", json.dumps(model), *more]
    return parse_command("fit", "", arguments, federated_sections())


def networks(configuration: Configuration) -> list[Any]:
    return networks_of(as_one_module(configuration.build().model))


def test_every_network_of_a_list_takes_its_sizes_from_the_data() -> None:
    configuration = parsed([CNN, MLP], "--data", "Digits")
    cnn, mlp = networks(configuration)
    assert [type(network).__name__ for network in (cnn, mlp)] == ["SmallCNN", "SmallMLP"]
    for network in (cnn, mlp):
        assert (network.image_size, network.channels, network.classes) == (8, 1, 10)
        assert network.feature_width == 16
    assert (cnn.width, mlp.learning_rate) == (4, 0.05)
    resolved = configuration.resolved()["model"]
    assert [one["class_path"] for one in resolved] == ["flgen.SmallCNN", "flgen.SmallMLP"]
    assert [one["init_args"]["image_size"] for one in resolved] == [8, 8]


def test_what_was_resolved_gives_the_same_networks_again(tmp_path: Path) -> None:
    first = parsed([CNN, MLP], "--data", "Digits")
    built = networks(first)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(first.resolved()))
    again = parse_command("fit", "", ["--config", str(tmp_path / "config.yaml")], federated_sections())
    assert again.resolved() == first.resolved()
    for one, other in zip(built, networks(again), strict=True):
        assert {name: tensor.shape for name, tensor in one.state_dict().items()} == {
            name: tensor.shape for name, tensor in other.state_dict().items()
        }


def test_names_alone_make_a_list_too() -> None:
    assert [type(network).__name__ for network in networks(parsed(["SmallCNN", "SmallMLP"]))] == [
        "SmallCNN",
        "SmallMLP",
    ]


def test_a_group_with_an_assignment_takes_its_sizes_from_the_data_too() -> None:
    group = {"class_path": "ModelGroup", "init_args": {"models": [CNN, MLP], "assignment": [1, 0]}}
    configuration = parsed(group, "--data", "Digits")
    model = configuration.build().model
    assert model.assignment == [1, 0]
    assert [(network.image_size, network.classes) for network in model.models] == [(8, 10), (8, 10)]


@pytest.mark.parametrize(
    ("network", "says"),
    [
        ({"class_path": "SmallCNN", "init_args": {"widht": 4}}, "SmallCNN has no 'widht'; did you mean width?"),
        ({"class_path": "SmallCN"}, "SmallCN: there is no such class; did you mean SmallCNN?"),
        ({"class_path": "SmallMLP", "init_args": {"hidden": "x"}}, "x is not of type int"),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_mistake_inside_a_list_is_one_line_with_the_nearest_name(network: Any, says: str, place: int) -> None:
    listed: list[Any] = [MLP]
    listed.insert(place, network)
    with pytest.raises(UsageError) as refusal:
        parsed(listed)
    assert str(refusal.value).startswith("--model")
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("place", [0, 1])
def test_what_a_network_of_a_list_refuses_is_its_own_line(place: int) -> None:
    listed: list[Any] = [MLP]
    listed.insert(place, {"class_path": "SmallCNN", "init_args": {"width": 0}})
    with pytest.raises(UsageError) as refusal:
        parsed(listed, "--data", "Digits").build()
    assert str(refusal.value) == "--model.width 0: it must be at least 1"


def test_a_network_of_a_list_that_takes_another_kind_of_data_is_refused() -> None:
    with pytest.raises(UsageError) as refusal:
        parsed([{"class_path": "EmbeddingBagClassifier"}, MLP], "--data", "Digits").build()
    assert str(refusal.value) == (
        "--model EmbeddingBagClassifier takes texts, but --data Digits holds images: use another --model"
    )


def test_an_empty_list_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"^--model is an empty group: give it at least one network$"):
        as_one_module(parsed([]).build().model)


def test_an_option_of_one_network_is_not_given_to_the_last_of_a_list(tmp_path: Path) -> None:
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump({"method": "LGFedAvg", "model": [CNN, MLP]}))
    (tmp_path / "rounds.yaml").write_text(yaml.safe_dump({"trainer": {"rounds": 3}}))
    files = ["--config", str(tmp_path / "mixed.yaml"), f"--config={tmp_path / 'rounds.yaml'}"]
    for option in (["--model.learning_rate", "0.5"], ["--model.assignment=blocks"]):
        with pytest.raises(UsageError, match=rf"^{option[0].split('=')[0]}: --model is a list, whose members have"):
            parse_command("fit", "", [*files, *option], federated_sections())
    with pytest.raises(UsageError, match=r"^--model\.width: --model is a list"):
        parsed([CNN, MLP], "--model.width", "4")

    def model_of(*more: str) -> Any:
        return parse_command("fit", "", [*files, *more], federated_sections()).values.model

    assert model_of("--model", "SmallCNN", "--model.width", "6").init_args.width == 6
    assert [
        one.init_args.learning_rate for one in model_of("--model+", "SmallMLP", "--model.learning_rate", "0.5")
    ] == [
        0.1,
        0.05,
        0.5,
    ]


def test_a_class_of_ones_own_that_is_not_there_is_named_and_not_the_whole_list() -> None:
    with pytest.raises(UsageError, match=r"^--model not_there\.Mine: No module named 'not_there'$"):
        parsed([CNN, {"class_path": "not_there.Mine"}])
