"""What a parameter of a sweep may be, and what is drawn from its distribution."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from system_tools import require

from flgen.errors import UsageError
from flgen.experiment.sweep_parameters import KINDS, Parameter, read_parameter

REPOSITORY = Path(__file__).parents[2]
SWEEPS_PYTHON = REPOSITORY / ".venv-sweeps" / "bin" / "python"
LEVELS = [0.001, 0.1, 0.27, 0.51, 0.62, 0.77, 0.9, 0.999]

GIVEN: dict[str, dict[str, Any]] = {
    "constant": {"value": "x"},
    "categorical": {"values": ["a", "b", "c"]},
    "categorical_w_probabilities": {"values": [1, 2, 3], "probabilities": [0.2, 0.5, 0.3]},
    "int_uniform": {"min": -2, "max": 5},
    "uniform": {"min": 0.5, "max": 2},
    "q_uniform": {"min": 0, "max": 10, "q": 2},
    "log_uniform": {"min": -3, "max": 1},
    "q_log_uniform": {"min": 0, "max": 4, "q": 3},
    "inv_log_uniform": {"min": -3, "max": 1},
    "log_uniform_values": {"min": 1.0e-4, "max": 0.1},
    "q_log_uniform_values": {"min": 1, "max": 100, "q": 0.5},
    "inv_log_uniform_values": {"min": 1.0e-4, "max": 0.1},
    "normal": {"mu": 3, "sigma": 2},
    "q_normal": {"mu": 3, "sigma": 20, "q": 5},
    "log_normal": {},
    "q_log_normal": {"sigma": 2},
    "beta": {"a": 2, "b": 5},
    "q_beta": {"a": 2, "b": 5, "q": 0.1},
}


def parameter(kind: str) -> Parameter:
    return read_parameter("x", {"distribution": kind, **GIVEN[kind]}, "s.yaml")


def test_the_distributions_are_tested() -> None:
    assert set(GIVEN) == set(KINDS)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"value": None}, "constant"),
        ({"values": [1]}, "categorical"),
        ({"values": [1, 2], "probabilities": [0.5, 0.5]}, "categorical_w_probabilities"),
        ({"min": 1, "max": 2}, "int_uniform"),
        ({"min": 1, "max": 2.0}, "uniform"),
    ],
)
def test_a_distribution_need_not_be_named(given: dict[str, Any], kind: str) -> None:
    assert read_parameter("x", given, "s.yaml").kind == kind


@pytest.mark.parametrize("kind", ["uniform", "log_uniform", "log_uniform_values", "normal", "log_normal", "beta"])
def test_a_share_u_of_a_distribution_lies_below_its_point_at_u(kind: str) -> None:
    drawn = np.array([parameter(kind).at(u) for u in (np.arange(400) + 0.5) / 400])
    assert np.all(np.diff(drawn) > 0)
    options = parameter(kind).options
    middle = {
        "uniform": 1.25,
        "log_uniform": math.exp(-1),
        "log_uniform_values": math.sqrt(1.0e-4 * 0.1),
        "normal": 3,
        "log_normal": 1,
    }
    if kind == "beta":
        assert drawn.mean() == pytest.approx(options["a"] / (options["a"] + options["b"]), abs=1e-3)
    else:
        assert np.median(drawn) == pytest.approx(middle[kind], rel=1e-2)


def test_draws_are_whole_numbers_where_all_multiples_of_q_are() -> None:
    assert [parameter("q_uniform").at(u) for u in LEVELS] == [0, 0, 2, 6, 6, 8, 8, 10]
    assert all(type(parameter("q_uniform").at(u)) is int for u in LEVELS)
    assert type(parameter("q_log_uniform_values").at(0.5)) is float


def test_probabilities_are_kept() -> None:
    shares = [parameter("categorical_w_probabilities").at((k + 0.5) / 1000) for k in range(1000)]
    assert [shares.count(value) for value in (1, 2, 3)] == [200, 500, 300]


def test_a_grid_tries_values_whole_numbers_and_steps() -> None:
    assert parameter("categorical").grid() == ["a", "b", "c"]
    assert parameter("int_uniform").grid() == [-2, -1, 0, 1, 2, 3, 4, 5]
    assert parameter("q_uniform").grid() == [0, 2, 4, 6, 8]
    assert {kind for kind in KINDS if parameter(kind).grid() is None} == set(KINDS) - {
        *("constant", "categorical", "int_uniform", "q_uniform")
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "is 3: give value, values, min and max, or a distribution"),
        ({}, "give value, values, min and max, or a distribution"),
        ({"parameters": {"mu": {"value": 1}}}, "write each with its full name, as in `method.mu:`"),
        ({"distribution": "log_unifrom"}, "there is no distribution 'log_unifrom'; there are constant, categorical"),
        ({"distribution": "uniform", "min": 0}, "a uniform distribution needs max"),
        ({"values": [1], "q": 2}, "a categorical distribution has no q; it takes values"),
        ({"min": "1e-4", "max": 1.0, "distribution": "uniform"}, "min is '1e-4': give a number; YAML takes 1e-3 for"),
        ({"min": 2, "max": 1}, "min 2 is not below max 1"),
        ({"min": 0, "max": 1, "distribution": "log_uniform_values"}, "the logarithm needs one above 0"),
        ({"min": 0.5, "max": 1, "distribution": "int_uniform"}, "int_uniform takes whole numbers"),
        ({"min": 0, "max": 1, "q": 0, "distribution": "q_uniform"}, "q is 0: give a step above 0"),
        ({"min": 0, "max": 1, "q": 1e-9, "distribution": "q_uniform"}, "that makes more than 10000 steps"),
        ({"distribution": "normal", "sigma": -1}, "sigma, a and b must be above 0"),
        ({"distribution": "normal", "mu": math.nan}, "mu is nan: give a number"),
        ({"values": 3}, "values is 3: give a list"),
        ({"values": []}, r"values is []: give a list"),
        ({"values": [1, 2], "probabilities": [0.5, 0.6]}, "as many probabilities as values, with the sum 1"),
        ({"values": [1, 2], "probabilities": "x"}, "probabilities is 'x': give a list of numbers"),
        ({"values": [[None, 1]]}, "does not survive a command line"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_parameter(given: Any, said: str) -> None:
    with pytest.raises(UsageError) as error:
        read_parameter("method", given, "s.yaml")
    assert str(error.value).startswith("s.yaml: parameters: method")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


REFERENCE = """
import json, sys
from sweeps.params import HyperParameter
from sweeps.config import schema_violations_from_proposed_config
given, levels, files = json.load(sys.stdin)
drawn = {}
for kind, options in given.items():
    found = HyperParameter("x", {"distribution": kind, **options})
    drawn[kind] = [found.ppf(u) for u in levels]
print(json.dumps([drawn, [schema_violations_from_proposed_config(file) for file in files]], default=float))
"""


@pytest.fixture(scope="module")
def reference() -> Any:
    require(str(SWEEPS_PYTHON))
    files = [yaml.safe_load(path.read_text()) for path in sorted(REPOSITORY.glob("configs/sweeps/*.yaml"))]
    broken = {**files[0], "seed": 3}
    asked = json.dumps([GIVEN, LEVELS, [*files, broken]])
    command = [str(SWEEPS_PYTHON), "-W", "ignore", "-c", REFERENCE]
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.system
@pytest.mark.parametrize("kind", KINDS)
def test_the_points_of_a_distribution_are_those_of_wandb(kind: str, reference: Any) -> None:
    expected = reference[0][kind]
    drawn = [parameter(kind).at(u) for u in LEVELS]
    if isinstance(expected[0], str):
        assert drawn == expected
    else:
        np.testing.assert_allclose(drawn, expected, rtol=1e-9)


@pytest.mark.system
def test_the_shipped_files_obey_the_schema_of_wandb(reference: Any) -> None:
    *shipped, broken = reference[1]
    assert len(shipped) >= 5
    assert [found for found in shipped if found] == []
    assert broken != []  # which knows no seed: that is an option of flgen
