"""What is typed, option by option, and the order in which classes come before their options."""

from __future__ import annotations

import random

import pytest

from flgen.commands.sections import federated_sections, parse_command
from flgen.experiment.argument_order import classes_first, split_options, take_options


def test_an_option_has_what_is_given_for_it() -> None:
    found = split_options(["word", "--a.b=1=2", "--c", "-0.5", "x", "--flag", "--d", "y"])
    assert [(option.name, option.value) for option in found] == [
        ("", None),
        ("a.b", "1=2"),
        ("c", "-0.5"),
        ("flag", None),
        ("d", "y"),
    ]


def test_options_are_taken_out_with_their_values() -> None:
    taken, left = take_options(["--a", "1", "--b=2", "--config", "x", "--a.c", "3", "--config=y"], ["config", "a"])
    assert taken == ["--a", "1", "--config", "x", "--config=y"]
    assert left == ["--b=2", "--a.c", "3"]


@pytest.mark.parametrize(
    ("typed", "applied"),
    [
        ("--method.mu=1 --method=FedProx", "--method=FedProx --method.mu=1"),
        ("--method.mu 1 --seed 2 --method FedProx", "--seed 2 --method FedProx --method.mu 1"),
        ("--method.init_args.mu=1 --method.class_path=FedProx", "--method.class_path=FedProx --method.init_args.mu=1"),
        ("--m.loss.weights=w --m.loss=V --m=R", "--m=R --m.loss=V --m.loss.weights=w"),
        ("--m.a=1 --config=x.yaml --m=R", "--config=x.yaml --m=R --m.a=1"),
    ],
)
def test_an_option_waits_for_its_class(typed: str, applied: str) -> None:
    assert classes_first(typed.split()) == applied.split()


@pytest.mark.parametrize(
    "typed",
    [
        "--method=A --method.x=1 --method=B --method.y=2",
        "--loggers+ WandbLogger --loggers.offline true --loggers+ TensorBoardLogger --loggers.flush_secs 3",
        "--config a.yaml --trainer.rounds 3 --config b.yaml",
        "--methodical.x=1 --method=A",
        "",
    ],
)
def test_all_else_stays_where_it_is(typed: str) -> None:
    assert classes_first(typed.split()) == typed.split()


def test_a_command_line_means_the_same_in_any_order() -> None:
    arguments = ["--method=FedProx", "--method.mu=1", "--model=SmallCNN", "--model.width=8", "--partition=Dirichlet"]
    arguments += ["--partition.alpha=0.3"]
    expected = parse_command("fit", "", arguments, federated_sections()).resolved()
    assert expected["method"]["init_args"]["mu"] == 1
    draw = random.Random(0)
    for _ in range(3):
        draw.shuffle(arguments)
        assert parse_command("fit", "", arguments, federated_sections()).resolved() == expected, arguments
