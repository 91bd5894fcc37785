"""Sweep files: what they may say, and the configurations that they stand for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from flgen.errors import FlgenError, UsageError
from flgen.experiment.sweep import Metric, Sweep, option_words, read_sweep

GRID: dict[str, Any] = {
    "name": "small",
    "method": "grid",
    "parameters": {
        "method": {"value": "FedProx"},
        "method.mu": {"values": [0, 0.5]},
        "seed_everything": {"min": 1, "max": 3},
    },
}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(content: Any = GRID, **changed: Any) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(
            content if isinstance(content, str) else yaml.safe_dump({**content, **changed}, sort_keys=False)
        )
        return path

    return write


def values(sweep: Sweep, u: float = 0.5) -> list[dict[str, Any]]:
    return [sweep.values(index, lambda name: u) for index in range(sweep.size(4 if sweep.method == "random" else None))]


def test_a_grid_has_every_combination_and_its_last_parameter_changes_fastest(write: Any) -> None:
    assert values(read_sweep(write())) == [
        {"method": "FedProx", "method.mu": mu, "seed_everything": seed} for mu in (0, 0.5) for seed in (1, 2, 3)
    ]


def test_a_cap_and_a_count_end_a_grid_early(write: Any) -> None:
    sweep = read_sweep(write(run_cap=4))
    assert (sweep.size(), sweep.size(2), sweep.size(9), read_sweep(write()).size()) == (4, 2, 6, 6)


def test_a_random_sweep_has_as_many_as_are_asked_for(write: Any) -> None:
    path = write(method="random", run_cap=20)
    assert (read_sweep(path).size(), read_sweep(path).size(7)) == (20, 7)
    with pytest.raises(UsageError, match=r"a random sweep has no end: give --count N, or run_cap: N"):
        read_sweep(write(method="random")).size()


def test_a_grid_that_nobody_will_finish_is_one_line(write: Any) -> None:
    wide = {f"option{number}": {"values": list(range(10))} for number in range(12)}
    with pytest.raises(UsageError, match=r"its grid has 1000000000000 configurations: give --count N"):
        read_sweep(write(parameters=wide)).size()
    assert read_sweep(write(parameters=wide)).size(2) == 2
    with pytest.raises(UsageError, match=r"a has 10000000001 values from min to max, a grid takes 10000 of them"):
        read_sweep(write(parameters={"a": {"min": 0, "max": 10**10}})).size()


def test_a_draw_is_that_of_its_number(write: Any) -> None:
    drawn = values(read_sweep(write(method="random")), 0.5)
    assert drawn == [{"method": "FedProx", "method.mu": 0.5, "seed_everything": 2}] * 4


def test_a_configuration_is_typed_as_the_agent_of_wandb_writes_it() -> None:
    assert option_words({"a.b": [1, "x"], "c": True, "d": None, "e": 1e-05, "config": "x.yaml"}) == [
        "--a.b=[1, 'x']",
        "--c=True",
        "--d=None",
        "--e=1e-05",
        "--config=x.yaml",
    ]


def test_a_label_says_what_varies_and_is_fit_for_a_folder(write: Any) -> None:
    parameters = {
        "config": {"values": ["configs/baselines/fedavg.yaml", "b.yaml"]},
        "method.lr": {"values": [0.123456789, 1e-06]},
        "model.lr": {"values": ["a/../b", None]},
        "model.widths": {"values": [[8, 16], [32]]},
        "data": {"value": "Digits"},
        "seed_everything": {"values": [0]},
    }
    sweep = read_sweep(write(parameters=parameters))
    assert sweep.label(values(sweep)[0]) == "config=fedavg,method.lr=0.1235,model.lr=a_.._b,widths=8_16"
    assert sweep.label(values(sweep)[-1]) == "config=b,method.lr=1e-06,model.lr=None,widths=32"
    long = read_sweep(write(parameters={f"method.option_{i}": {"values": [10**9, 2]} for i in range(12)}))
    labels = [long.label(found) for found in values(long)[:2]]
    assert all(len(label) <= 100 and "/" not in label for label in labels)


@pytest.mark.parametrize(
    ("command", "before", "after"),
    [
        (None, (), ()),
        (["flgen", "fit", "${args}"], (), ()),
        (
            ["${env}", "${program}", "fit", "--config", "x.yaml", "${args}", "--trainer.rounds=3"],
            ("--config", "x.yaml"),
            ("--trainer.rounds=3",),
        ),
        (["${env}", "${interpreter}", "-m", "flgen.cli", "fit", "${args_no_equals}"], (), ()),
        (
            [".venv/bin/flgen", "fit", "--data.root=${envvar:SWEEP_DATA}/x", "${args}"],
            ("--data.root=/somewhere/x",),
            (),
        ),
    ],
)
def test_the_command_gives_what_all_runs_have(
    command: Any, before: Any, after: Any, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEEP_DATA", "/somewhere")
    sweep = read_sweep(write(command=command, program="flgen"))
    assert (sweep.before, sweep.after) == (before, after)


def test_the_metric_has_a_goal(write: Any) -> None:
    assert read_sweep(write(metric={"name": "fid/digits"})).metric == Metric("fid/digits", "minimize")
    assert read_sweep(write(metric={"name": "a", "goal": "maximize"})).metric == Metric("a", "maximize")
    assert read_sweep(write()).metric is None


def test_a_sweep_without_a_name_is_called_as_its_file(write: Any) -> None:
    assert read_sweep(write({**GRID, "name": "x"})).name == "x"
    assert read_sweep(write({key: value for key, value in GRID.items() if key != "name"})).name == "sweep"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"method": "bayes"}, "method: bayes needs the results of other runs, which W&B has"),
        ({"method": "gird"}, "method is 'gird': give grid or random"),
        ({"metod": "grid"}, "metod: a sweep file has no such key; did you mean method?"),
        ({"seed": 1}, "seed: a sweep file has no such key"),
        ({"job": "x"}, "job: this is for W&B Launch"),
        ({"run_cap": 0}, "run_cap is 0: give a whole number"),
        ({"metric": {"goal": "minimize"}}, "metric: give a name and a goal"),
        ({"metric": {"name": "a", "goal": "least"}}, "goal is 'least': give minimize or maximize"),
        ({"name": 3}, "name is 3: give a text"),
        ({"parameters": {}}, "parameters: give one or more"),
        ({"parameters": {"--a": {"value": 1}}}, "write an option without its dashes"),
        ({"parameters": {"run_dir": {"value": "x"}}}, "run_dir: flgen sets it itself"),
        ({"parameters": {"seeds": {"value": [1]}}}, "for several seeds sweep over seed_everything"),
        ({"parameters": {"a": {"min": 0.0, "max": 1.0}}}, "a grid needs values to try, and uniform has none"),
        ({"command": "flgen fit ${args}"}, "command: give a list"),
        ({"command": ["python", "train.py", "${args}"]}, "command is no `flgen fit`"),
        ({"command": ["torchrun", "flgen", "fit", "${args}"]}, "command is no `flgen fit`"),
        ({"command": ["flgen", "fit"]}, "the parameters take the place of `${args}`, which it needs once"),
        ({"command": ["flgen", "fit", "${args}", "${args_json}"]}, "flgen does not know ${args_json}"),
        ({"command": ["flgen", "fit", "${envvar:NOT_SET_ANYWHERE}", "${args}"]}, "has no NOT_SET_ANYWHERE"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line_that_names_it(changed: Any, said: str, write: Any) -> None:
    path = write(**changed)
    with pytest.raises(UsageError) as error:
        read_sweep(path)
    assert said in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", "method: grid", "{", "a: !!python/object/apply:os.system [x]"])
def test_what_is_no_sweep_file_is_refused(text: str, write: Any) -> None:
    with pytest.raises(UsageError, match=r"sweep.yaml is no (sweep file|YAML)"):
        read_sweep(write(text))
    with pytest.raises(FlgenError, match=r"nowhere.yaml cannot be read \(No such file"):
        read_sweep("nowhere.yaml")


def test_draws_spread_over_what_they_are_drawn_from(write: Any) -> None:
    from flgen.commands.sweep_run import SweepRuns

    parameters = {"a": {"values": [1, 2, 3]}, "b": {"min": 0.0, "max": 1.0}}
    path = write(method="random", parameters=parameters)
    runs = SweepRuns(read_sweep(path), count=600)
    drawn = [runs.values(index) for index in range(600)]
    assert all(150 < count < 250 for count in Counter(found["a"] for found in drawn).values())
    assert 0.45 < sum(found["b"] for found in drawn) / 600 < 0.55
    assert SweepRuns(read_sweep(path), count=9).values(7) == drawn[7]  # whatever the number of draws
    assert SweepRuns(read_sweep(path), count=9, seed=1).values(7) != drawn[7]
    more = write(method="random", parameters={"c": {"values": [1, 2]}, **parameters})
    assert {name: SweepRuns(read_sweep(more), 9).values(7)[name] for name in "ab"} == drawn[7]
