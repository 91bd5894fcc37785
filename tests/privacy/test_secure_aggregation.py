"""The options of secure aggregation: from a file or the line, refused in one line, and who may run under them."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from flgen.errors import UsageError
from flgen.experiment.config import Configuration, Section, build_parser, describe, parse
from flgen.federation.clients import Client, Federation
from flgen.federation.streams import RandomStreams
from flgen.methods import FedAvg, Method
from flgen.privacy import SecureAggregation
from flgen.topology import Star

OPTION = "--method.topology.secure_aggregation"
SECTIONS = [Section("method", Method, kind="class", required=True)]
FILE = """\
method: {class_path: flgen.FedAvg, init_args: {topology: {class_path: flgen.Star, init_args: {secure_aggregation: %s}}}}
"""


def parsed(*arguments: str) -> Configuration:
    """Return what the command line makes of its arguments, of the section of the method alone."""
    return parse(build_parser(SECTIONS, {}, "Options of a method."), arguments, SECTIONS)


def secure_aggregation_of(configuration: Configuration) -> Any:
    """Return what config.yaml has of it."""
    return configuration.resolved()["method"]["init_args"]["topology"]["init_args"]["secure_aggregation"]


DEFAULTS = {
    "threshold": 2 / 3,
    "neighbours": None,
    "clip": 4.0,
    "fraction_bits": 20,
    "modulus_bits": 32,
    "min_participants": 2,
}


@pytest.mark.parametrize(
    ("given", "arguments", "expected"),
    [
        ("{}", (), DEFAULTS),
        ("{clip: 2, neighbours: 5}", (), {**DEFAULTS, "clip": 2.0, "neighbours": 5}),
        ("{clip: 2}", (f"{OPTION}.fraction_bits", "16"), {**DEFAULTS, "clip": 2.0, "fraction_bits": 16}),
        ("{}", (OPTION, "null"), None),
        ("null", (), None),
        ("null", (f"{OPTION}.clip", "1"), {**DEFAULTS, "clip": 1.0}),
    ],
)
def test_files_and_the_command_line_turn_it_on_and_off(
    given: str, arguments: tuple[str, ...], expected: Any, tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(FILE % given)
    configuration = parsed("--config", str(file), *arguments)
    assert secure_aggregation_of(configuration) == expected
    built = configuration.build().method
    assert built.topology.secure_aggregation == (None if expected is None else SecureAggregation(**expected))
    assert describe(built)["init_args"]["topology"]["init_args"]["secure_aggregation"] == expected


def test_the_command_line_alone_turns_it_on() -> None:
    line = ("--method", "flgen.FedAvg", "--method.topology", "flgen.Star")
    assert secure_aggregation_of(parsed(*line)) is None
    assert secure_aggregation_of(parsed(*line, OPTION, "{}")) == DEFAULTS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((f"{OPTION}.clp", "2"), f"{OPTION}.clp: SecureAggregation has no 'clp'; did you mean clip?"),
        ((f"{OPTION}.clip", "x"), f"{OPTION}.clip: x is not of type float"),
        ((OPTION, "true"), f"{OPTION}: true is no option; give {OPTION}.NAME VALUE"),
        ((f"{OPTION}.clip", "-1"), f"{OPTION}.clip is -1.0: give a number above 0"),
    ],
)
def test_a_mistake_is_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(FILE % "{}")
    with pytest.raises(UsageError) as refused:
        parsed("--config", str(file), *arguments).build()
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("threshold", 0.4),
        ("threshold", 1.1),
        ("neighbours", 2),
        ("clip", 0.0),
        ("clip", float("inf")),
        ("fraction_bits", 0),
        ("fraction_bits", 51),
        ("modulus_bits", 15),
        ("modulus_bits", 63),
        ("min_participants", 0),
    ],
)
def test_numbers_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{OPTION}.{option} is {value}: give "):
        SecureAggregation(**{option: value})  # type: ignore[arg-type]


def test_the_threshold_is_that_of_the_specification() -> None:
    options = SecureAggregation()
    assert [options.needed(m) for m in range(1, 100)] == [2 * m // 3 + 1 for m in range(1, 100)]
    assert [SecureAggregation(threshold=1.0).needed(m) for m in (1, 2, 7)] == [1, 2, 7]
    assert [SecureAggregation(threshold=0.5).needed(m) for m in (2, 3, 10)] == [2, 2, 6]  # never two halves


def test_the_table_of_the_documentation_has_every_option_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text(encoding="utf-8")
    section = page.split("## Secure aggregation\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, flags=re.MULTILINE)
    given = {name: default for name, default in rows if name in DEFAULTS}
    shown = {name: str(default) for name, default in DEFAULTS.items()}
    assert given == {**shown, "threshold": "2/3", "neighbours": "null"}
    assert vars(SecureAggregation()) == DEFAULTS


class Gathering(FedAvg):
    collection = "gather"
    needs_single_uploads = "its server tests every client's model by itself"


def federation(clients: int, per_round: int | None = None, samples: int = 3) -> Federation:
    streams = RandomStreams(0)
    made = [
        Client(id=k, samples=samples, streams=streams, key=k, open_data=lambda device: None) for k in range(clients)
    ]  # type: ignore[arg-type,return-value]
    return Federation(made, streams, clients_per_round=per_round)


def secure(**options: Any) -> Star:
    return Star(secure_aggregation=SecureAggregation(**options))


def test_a_method_that_needs_single_uploads_is_refused_with_its_reason() -> None:
    message = (
        r"Gathering cannot run under --method.topology.secure_aggregation \(its server tests every client's model by "
        r"itself\): set it to null$"
    )
    with pytest.raises(UsageError, match=message):
        Gathering(topology=secure()).check(federation(10))
    Gathering(topology=Star()).check(federation(10))


def test_one_participant_per_round_is_refused_unless_forced() -> None:
    message = (
        r"1 client per round under secure aggregation \(the sum of one upload is that upload\), "
        rf"{OPTION}.min_participants asks for 2: raise --trainer.clients_per_round or --partition.clients, or lower it"
    )
    with pytest.raises(UsageError, match=message):
        FedAvg(topology=secure()).check(federation(10, per_round=1))
    with pytest.raises(UsageError, match=r"^4 clients per round .*min_participants asks for 6"):
        FedAvg(topology=secure(min_participants=6)).check(federation(4))
    FedAvg(topology=secure(min_participants=1)).check(federation(10, per_round=1))


@pytest.mark.parametrize(("clients", "warned"), [(4, True), (5, False)])
def test_few_participants_are_a_warning(clients: int, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="flgen"):
        FedAvg(topology=secure()).check(federation(clients))
    assert any("hides each client among 4 only" in line for line in caplog.messages) == warned


def test_more_clients_than_the_modulus_can_add_up_are_refused() -> None:
    FedAvg(topology=secure()).check(federation(511))
    with pytest.raises(
        UsageError, match=rf"sum of 512 clients could leave its 32 bits \(room for 511\): raise {OPTION}"
    ):
        FedAvg(topology=secure()).check(federation(512))
    FedAvg(topology=secure(modulus_bits=40)).check(federation(512))


def test_a_modulus_too_small_for_the_numbers_of_samples_is_refused_before_anything_starts() -> None:
    small = {"modulus_bits": 16, "fraction_bits": 4}
    message = rf"^{OPTION}.modulus_bits is 16: too few to count the samples of 6 clients with up to 10000$"
    with pytest.raises(UsageError, match=message):
        FedAvg(topology=secure(**small)).check(federation(20, per_round=6, samples=10_000))
    FedAvg(topology=secure(**small)).check(federation(20, per_round=6, samples=5_000))
