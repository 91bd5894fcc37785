"""The stages of a pipeline: their order, their keys, and what is wrong with them in one line."""

from __future__ import annotations

from typing import Any

import pytest

from flgen.errors import UsageError
from flgen.experiment.stages import read_stages

COMMANDS = {"labels": None, "pretrain": None, "fit": None}


def stage(command: str = "fit", **config: Any) -> dict[str, Any]:
    return {"command": command, "config": config}


def test_a_stage_comes_after_those_it_refers_to() -> None:
    stages = read_stages(
        {"tune": stage(initial_weights="${server}"), "server": stage("pretrain", samples=["x", {"y": "${names}"}])}
        | {"names": stage("labels")},
        0,
        COMMANDS,
    )
    assert list(stages) == ["names", "server", "tune"]
    assert stages["tune"].needs == ("server",)


def test_references_are_replaced_wherever_they_stand() -> None:
    found = read_stages({"a": stage("labels"), "b": stage(x="${a}/y", z=[{"w": "${a}"}, 3])}, 5, COMMANDS)["b"]
    assert found.resolved(lambda name: f"/runs/{name}") == {
        "seed_everything": 5,
        "x": "/runs/a/y",
        "z": [{"w": "/runs/a"}, 3],
    }


def test_a_key_depends_on_everything_that_a_stage_depends_on(tmp_path) -> None:
    file = tmp_path / "base.yaml"
    file.write_text("x: 1\n")
    plan = {
        "a": {"command": "labels", "config": {"n": 1}, "configs": [str(file)]},
        "b": stage(x="${a}"),
        "c": stage(x=1),
    }
    first = read_stages(plan, 0, COMMANDS)
    assert {name: found.key for name, found in read_stages(plan, 0, COMMANDS).items()} == {
        name: found.key for name, found in first.items()
    }

    def changed(plan: dict[str, Any], seed: int = 0) -> set[str]:
        again = read_stages(plan, seed, COMMANDS)
        return {name for name, found in again.items() if found.key != first[name].key}

    assert changed(plan, seed=1) == {"a", "b", "c"}
    assert changed({**plan, "c": stage(x=2)}) == {"c"}
    assert changed({**plan, "a": {**plan["a"], "config": {"n": 2}}}) == {"a", "b"}
    file.write_text("x: 2\n")
    assert changed(plan) == {"a", "b"}


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"a": stage("fly")}, r"--stages\.a\.command is fly: give one of labels, pretrain, fit$"),
        ({"a": "fit"}, r"--stages\.a: give a mapping of command, config and configs$"),
        ({"a": {"command": "fit", "konfig": {}}}, r"--stages\.a: give a mapping of command, config and configs$"),
        ({"a": {"command": "fit", "config": 3}}, r"--stages\.a: config is a mapping of options, configs a list"),
        ({"a b": stage()}, r"--stages\.a b: a stage's name has letters, digits, - and _ only$"),
        ({"a": stage(x="${b}")}, r"--stages\.a refers to \$\{b\}: there are a$"),
        ({"a": stage(x="${b}"), "b": stage(x="${a}")}, r"--stages: a needs b needs a: break the circle$"),
        (
            {"a": {"command": "fit", "configs": ["nowhere.yaml"]}},
            r"--stages\.a\.configs: nowhere\.yaml cannot be read$",
        ),
    ],
)
def test_mistakes_are_one_line(plan, message) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        read_stages(plan, 0, COMMANDS)
