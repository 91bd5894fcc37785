"""Values of DisPFL's specification, section 13, checks 1 and 2, and what holds for any model."""

from __future__ import annotations

import logging
import math
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flgen.errors import UsageError
from flgen.masks.densities import _warn_of_vectors, active_counts, erk, erk_densities, uniform_densities
from flgen.models import VGG11, ResNet18

Shapes = dict[str, tuple[int, ...]]
Scope = Literal["all", "weights"]

CONV_NET: Shapes = {
    "conv1.weight": (8, 3, 3, 3),
    "conv1.bias": (8,),
    "conv2.weight": (16, 8, 3, 3),
    "conv2.bias": (16,),
    "fc1.weight": (32, 256),
    "fc1.bias": (32,),
    "fc2.weight": (10, 32),
    "fc2.bias": (10,),
}
TWO_LAYERS: Shapes = {"0.weight": (8, 6), "0.bias": (8,), "1.weight": (4, 8), "1.bias": (4,)}


def counts(shapes: Shapes, density: float, scope: Scope = "all") -> dict[str, int]:
    return active_counts(shapes, erk_densities(shapes, density, scope=scope))


def weights(by_name: dict[str, int]) -> list[int]:
    return [count for name, count in by_name.items() if name.endswith("weight")]


@pytest.mark.parametrize(
    ("density", "scope", "eps", "densities", "active", "total"),
    [
        (0.5, "all", 13.745283, [1, 0.357950, 0.483233, 1], [216, 412, 3958, 320], 4972),
        (0.2, "all", 5.101326, [0.401493, 0.132847, 0.179344, 0.669549], [86, 153, 1469, 214], 1988),
        (0.5, "weights", 13.849057, [1, 0.360653, 0.486881, 1], [216, 415, 3988, 320], 4939),
    ],
)
def test_a_small_conv_net_has_the_densities_of_the_specification(
    density: float, scope: Scope, eps: float, densities: list[float], active: list[int], total: int
) -> None:
    found, found_eps = erk(CONV_NET, density, scope=scope)
    assert found_eps == pytest.approx(eps, rel=1e-6)
    assert list(found) == list(CONV_NET)
    assert [found[name] for name in found if name.endswith("weight")] == pytest.approx(densities, abs=6e-7)
    assert [found[name] for name in found if name.endswith("bias")] == [1.0] * 4
    by_name = active_counts(CONV_NET, found)
    assert weights(by_name) == active
    # The total of scope "weights" is that of the weights alone.
    assert (sum(by_name.values()) if scope == "all" else sum(weights(by_name))) == total


@pytest.fixture(scope="module")
def resnet18() -> Shapes:
    return {name: tuple(parameter.shape) for name, parameter in ResNet18().named_parameters()}


def test_resnet18_has_the_densities_of_the_specification(resnet18: Shapes) -> None:
    found, eps = erk(resnet18, 0.5)
    assert eps == pytest.approx(819.495570, rel=1e-8)
    by_name = active_counts(resnet18, found)
    partial = {name: (round(found[name], 6), by_name[name]) for name in found if found[name] < 1}
    assert partial == {
        "layer3.0.conv2.weight": (0.719704, 424_498),
        "layer3.1.conv1.weight": (0.719704, 424_498),
        "layer3.1.conv2.weight": (0.719704, 424_498),
        "layer4.0.conv1.weight": (0.537694, 634_289),
        "layer4.0.conv2.weight": (0.357768, 844_080),
        "layer4.1.conv1.weight": (0.357768, 844_080),
        "layer4.1.conv2.weight": (0.357768, 844_080),
    }
    assert all(by_name[name] == math.prod(resnet18[name]) for name in found if name not in partial)


@pytest.mark.parametrize(
    ("density", "total"),
    [(0.2, 2_234_786), (0.4, 4_469_578), (0.5, 5_586_977), (0.6, 6_704_373), (0.8, 8_939_169), (1.0, 11_173_962)],
)
def test_resnet18_keeps_the_totals_of_the_specification(resnet18: Shapes, density: float, total: int) -> None:
    assert sum(counts(resnet18, density).values()) == total


def test_vgg11_has_the_densities_of_the_specification() -> None:
    shapes: Shapes = {name: tuple(parameter.shape) for name, parameter in VGG11().named_parameters()}
    found, eps = erk(shapes, 0.5)
    assert eps == pytest.approx(965.724099, rel=1e-8)
    by_name = active_counts(shapes, found)
    assert sum(by_name.values()) == 4_615_554
    widest = [name for name in shapes if shapes[name] == (512, 512, 3, 3)]
    assert [(round(found[name], 6), by_name[name]) for name in widest] == [(0.421607, 994_695)] * 3


def test_biases_that_erk_would_mask_stay_dense_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    _warn_of_vectors.cache_clear()  # said once in a process
    with caplog.at_level(logging.WARNING, "flgen"):
        found, eps = erk(TWO_LAYERS, 0.4)
        erk(TWO_LAYERS, 0.4)
    assert eps == pytest.approx(0.968421, rel=1e-6)
    # The authors' code keeps 7 of 8 and 3 of 4 biases.
    assert active_counts(TWO_LAYERS, found) == {"0.weight": 13, "0.bias": 8, "1.weight": 11, "1.bias": 4}
    (record,) = caplog.records
    assert record.getMessage().startswith("ERK would mask 2 vectors (0.bias, ...); they stay dense")


def test_nothing_is_said_when_vectors_are_dense_anyway(resnet18: Shapes, caplog: pytest.LogCaptureFixture) -> None:
    _warn_of_vectors.cache_clear()
    with caplog.at_level(logging.WARNING, "flgen"):
        for density in (0.2, 0.5, 1.0):
            erk(resnet18, density)
        erk(TWO_LAYERS, 0.4, scope="weights")
        uniform_densities(TWO_LAYERS, 0.4)
    assert not caplog.records


def test_every_weight_has_the_same_density_when_it_is_uniform_and_vectors_are_dense() -> None:
    found = uniform_densities(CONV_NET, 0.3)
    assert found == {name: 0.3 if name.endswith("weight") else 1.0 for name in CONV_NET}
    assert weights(active_counts(CONV_NET, found)) == [64, 345, 2457, 96]  # of 216, 1152, 8192, 320


@pytest.mark.parametrize("scope", ["all", "weights"])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 3.0])
def test_at_density_one_everything_is_dense(scope: Scope, power: float) -> None:
    for shapes in (CONV_NET, TWO_LAYERS, {"0": (3, 3)}, {"0": (3, 7), "1": (7, 3)}):
        found, eps = erk(shapes, 1.0, power, scope)
        assert (found, eps) == (dict.fromkeys(shapes, 1.0), 0.0)
        assert active_counts(shapes, found) == {name: math.prod(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("density", [0.0, -0.1, 1.0001, math.nan, math.inf])
def test_a_density_that_is_no_share_is_refused(density: float) -> None:
    for rule in (erk_densities, uniform_densities):
        with pytest.raises(
            UsageError, match=f"^--method.sparsity.density is {density}: give a share above 0, at most 1"
        ):
            rule(CONV_NET, density)


def test_the_power_says_how_much_denser_small_layers_are() -> None:
    flat, root, plain = (erk_densities(CONV_NET, 0.2, power, "weights") for power in (0.0, 0.5, 1.0))
    assert [flat[name] for name in flat if name.endswith("weight")] == pytest.approx([0.2] * 4)
    assert plain["conv1.weight"] / plain["conv2.weight"] == pytest.approx((17 / 216) / (30 / 1152))
    assert root["conv1.weight"] / root["conv2.weight"] == pytest.approx(math.sqrt((17 / 216) / (30 / 1152)))


def test_products_that_should_be_whole_are_not_rounded_down_and_others_are() -> None:
    shapes: Shapes = {"a": (10, 10), "b": (1000, 1000)}
    assert 0.29 * 100 < 29
    assert active_counts(shapes, {"a": 0.29, "b": 0.07}) == {"a": 29, "b": 70_000}
    # Within a thousandth of the next element is not there yet.
    assert active_counts(shapes, {"a": 0.29999, "b": 0.0699999995}) == {"a": 29, "b": 69_999}
    assert active_counts(shapes, {"a": 1e-9, "b": 1e-9}) == {"a": 1, "b": 1}


@st.composite
def models(draw: st.DrawFn) -> Shapes:
    """Weights of two to four dimensions, most with a bias."""
    shapes: Shapes = {}
    sizes = st.integers(1, 40)
    for number in range(draw(st.integers(1, 8))):
        shapes[f"{number}.weight"] = tuple(draw(st.lists(sizes, min_size=2, max_size=4)))
        if draw(st.booleans()):
            shapes[f"{number}.bias"] = (shapes[f"{number}.weight"][0],)
    return shapes


@settings(max_examples=200, deadline=None, derandomize=True)
@given(models(), st.floats(0.001, 1), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from(["all", "weights"]))
def test_the_total_is_the_density_of_all_less_an_element_per_partial_tensor(
    shapes: Shapes, density: float, power: float, scope: Scope
) -> None:
    found, eps = erk(shapes, density, power, scope)
    by_name = active_counts(shapes, found)
    n = {name: math.prod(shape) for name, shape in shapes.items()}
    assert all(1 <= by_name[name] <= n[name] for name in shapes)
    assert all(by_name[name] == n[name] for name in shapes if len(shapes[name]) < 2)
    budget = [name for name in shapes if scope == "all" or len(shapes[name]) > 1]
    partial = [name for name in budget if found[name] < 1]
    total, wanted = sum(by_name[name] for name in budget), density * sum(n[name] for name in budget)
    if 0 < eps < 1 and scope == "all":  # ERK would mask vectors, and they stay dense
        assert total > wanted - len(partial) - 1e-6
    else:
        atoms = sum(found[name] * n[name] < 1 for name in partial)  # every tensor keeps one element
        assert wanted - len(partial) - 1e-6 <= total <= wanted + atoms + 1e-6
    small_first = sorted(partial, key=lambda name: sum(shapes[name]) / n[name])
    assert [found[name] for name in small_first] == sorted(found[name] for name in partial)
