"""Options of sparse models: which parameters are masked, and how many elements of each are kept."""

from __future__ import annotations

from typing import Any

import pytest

from flgen.errors import UsageError
from flgen.masks.sparsity import Sparsity

# The small ConvNet of dispfl.md, section 13, check 1.
SHAPES: dict[str, tuple[int, ...]] = {
    "conv1.weight": (8, 3, 3, 3),
    "conv1.bias": (8,),
    "conv2.weight": (16, 8, 3, 3),
    "conv2.bias": (16,),
    "fc1.weight": (32, 256),
    "fc1.bias": (32,),
    "fc2.weight": (10, 32),
    "fc2.bias": (10,),
}
BIASES = {"conv1.bias": 8, "conv2.bias": 16, "fc1.bias": 32, "fc2.bias": 10}


def weights(active: dict[str, int]) -> list[int]:
    """Return a_l of the four weights; biases are always dense."""
    assert {name: active[name] for name in BIASES} == BIASES
    return [active[name] for name in SHAPES if name not in BIASES]


def test_half_of_the_weights_by_erk_are_those_of_check_1() -> None:
    (active,) = Sparsity(density=0.5).active(SHAPES)
    assert weights(active) == [216, 412, 3958, 320]
    assert sum(active.values()) == 4972


def test_vectors_may_stay_outside_the_budget() -> None:
    (active,) = Sparsity(density=0.5, erk_scope="weights").active(SHAPES)
    assert weights(active) == [216, 415, 3988, 320]


def test_uniform_densities_halve_every_weight() -> None:
    (active,) = Sparsity(density=0.5, distribution="uniform").active(SHAPES)
    assert weights(active) == [108, 576, 4096, 160]


def test_without_its_power_erk_gives_every_layer_the_same_density() -> None:
    (active,) = Sparsity(density=0.5, erk_power=0.0, erk_scope="weights").active(SHAPES)
    assert weights(active) == [108, 576, 4096, 160]


def test_capacities_replace_the_density_each_with_counts_of_its_own() -> None:
    small, whole, half = Sparsity(density=0.9, capacities=[0.2, 1.0, 0.5]).active(SHAPES)
    assert weights(small) == [86, 153, 1469, 214]
    assert weights(whole) == [216, 1152, 8192, 320]
    assert weights(half) == [216, 412, 3958, 320]


def test_patterns_choose_what_is_masked_and_the_density_is_theirs_alone() -> None:
    (active,) = Sparsity(density=0.5, distribution="uniform", masked=["fc*"]).active(SHAPES)
    assert set(active) == {"fc1.weight", "fc2.weight", *BIASES}
    assert (active["fc1.weight"], active["fc2.weight"]) == (4096, 160)
    (erk,) = Sparsity(density=0.5, erk_scope="weights", masked=["conv?.weight", "fc2.weight"]).active(SHAPES)
    # r n is 17, 30 and 42: eps is 844 / 89 until fc2 is dense, then (684 - 160) / 47 = 11.148936
    assert (erk["conv1.weight"], erk["conv2.weight"], erk["fc2.weight"]) == (189, 334, 320)
    assert "fc1.weight" not in erk


def test_a_pattern_that_names_nothing_is_refused_with_what_there_is() -> None:
    there = "conv1.weight, conv2.weight, fc1.weight, fc2.weight"
    for pattern in ("layer3.*", "fc1.bias"):
        with pytest.raises(UsageError) as refusal:
            Sparsity(masked=["fc*", pattern]).active(SHAPES)
        assert str(refusal.value) == (
            f"--method.sparsity.masked has '{pattern}', which names no parameter of two or more dimensions; there are "
            f"{there}"
        )


def test_a_layer_keeps_one_element_however_low_the_density() -> None:
    (active,) = Sparsity(density=0.001, distribution="uniform").active(SHAPES)
    assert weights(active) == [1, 1, 8, 1]


def test_a_model_of_vectors_has_nothing_to_mask() -> None:
    with pytest.raises(UsageError, match=r"^--model has no parameter of two or more dimensions"):
        Sparsity().active({"scale": (4,)})


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"density": 0.0}, "--method.sparsity.density is 0.0: give a share above 0, at most 1"),
        ({"density": 1.01}, "--method.sparsity.density is 1.01: give a share above 0, at most 1"),
        ({"density": float("nan")}, "--method.sparsity.density is nan: give a share above 0, at most 1"),
        ({"capacities": []}, "--method.sparsity.capacities is []: give shares above 0, at most 1"),
        ({"capacities": [0.5, 0.0]}, "--method.sparsity.capacities is [0.5, 0.0]: give shares above 0, at most 1"),
        ({"anneal_factor": -0.1}, "--method.sparsity.anneal_factor is -0.1: give a share from 0 to 1"),
        ({"anneal_factor": 1.1}, "--method.sparsity.anneal_factor is 1.1: give a share from 0 to 1"),
        ({"anneal_rounds": 0}, "--method.sparsity.anneal_rounds is 0: give 1 or more, or null"),
        ({"erk_power": -1.0}, "--method.sparsity.erk_power is -1.0: give a number from 0 to 10"),
        ({"erk_power": float("nan")}, "--method.sparsity.erk_power is nan: give a number from 0 to 10"),
        ({"erk_power": float("inf")}, "--method.sparsity.erk_power is inf: give a number from 0 to 10"),
        ({"masked": []}, "--method.sparsity.masked is []: give patterns of names, or null for all"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError) as refusal:
        Sparsity(**options)
    assert str(refusal.value) == complaint
