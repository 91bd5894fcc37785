"""What a parameter of a sweep may be: values to try, or a distribution to draw from, with W&B's names and meaning.

Source: the schema of W&B's sweep files (package `sweeps`, config/schema.json) and its percent point functions
(params.py). A draw is the point of a distribution at a number between 0 and 1, so that whoever has the number has the
draw.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from flgen.errors import UsageError
from flgen.experiment.plain_values import NotPlainError, yaml_value


class _Kind(NamedTuple):
    needs: tuple[str, ...]
    defaults: Mapping[str, float] = {}


_BETWEEN = ("min", "max")
_NORMAL = {"mu": 0.0, "sigma": 1.0}
_BETA = {"a": 1.0, "b": 1.0}
_STEP = {"q": 1.0}

KINDS: dict[str, _Kind] = {
    "constant": _Kind(("value",)),
    "categorical": _Kind(("values",)),
    "categorical_w_probabilities": _Kind(("values", "probabilities")),
    "int_uniform": _Kind(_BETWEEN),
    "uniform": _Kind(_BETWEEN),
    "q_uniform": _Kind(_BETWEEN, _STEP),
    "log_uniform": _Kind(_BETWEEN),
    "q_log_uniform": _Kind(_BETWEEN, _STEP),
    "inv_log_uniform": _Kind(_BETWEEN),
    "log_uniform_values": _Kind(_BETWEEN),
    "q_log_uniform_values": _Kind(_BETWEEN, _STEP),
    "inv_log_uniform_values": _Kind(_BETWEEN),
    "normal": _Kind((), _NORMAL),
    "q_normal": _Kind((), {**_NORMAL, **_STEP}),
    "log_normal": _Kind((), _NORMAL),
    "q_log_normal": _Kind((), {**_NORMAL, **_STEP}),
    "beta": _Kind((), _BETA),
    "q_beta": _Kind((), {**_BETA, **_STEP}),
}
"""The distributions, by name; what each needs, and what it takes besides."""

_MOST_STEPS = 10_000


@dataclass(frozen=True)
class Parameter:
    """One parameter of a sweep.

    Args:
        name: The option that it sets, without dashes.
        kind: One of KINDS.
        options: What the file gives for it, defaults filled in.
    """

    name: str
    kind: str
    options: Mapping[str, Any]

    @property
    def varies(self) -> bool:
        """Whether it can have more than one value."""
        return self.kind != "constant" and len(self.options.get("values", (0, 1))) > 1

    def grid(self) -> list[Any] | None:
        """Return the values that a grid tries, in their order; None for what has no such values."""
        options = self.options
        if self.kind == "constant":
            return [options["value"]]
        if self.kind == "categorical":
            return list(options["values"])
        if self.kind == "int_uniform":
            if (count := options["max"] - options["min"] + 1) > _MOST_STEPS:
                raise UsageError(
                    f"{self.name} has {count} values from min to max, a grid takes {_MOST_STEPS} of them at most: give "
                    "values, a distribution with steps, or method: random"
                )
            return list(range(options["min"], options["max"] + 1))
        if self.kind == "q_uniform":  # as W&B has it, the upper end is not among them
            steps = math.ceil((options["max"] - options["min"]) / options["q"])
            return [_stepped(options["min"] + step * options["q"], options) for step in range(steps)]
        return None

    def at(self, u: float) -> Any:
        """Return the point of the distribution below which a share u of it lies.

        Args:
            u: Above 0, below 1.
        """
        options = self.options
        if self.kind == "constant":
            return options["value"]
        if self.kind == "categorical":
            return options["values"][int(u * len(options["values"]))]
        if self.kind == "categorical_w_probabilities":
            place = bisect_right(list(accumulate(options["probabilities"])), u)
            return options["values"][min(place, len(options["values"]) - 1)]
        if self.kind == "int_uniform":
            return options["min"] + int(u * (options["max"] - options["min"] + 1))
        point = _point(self.kind.removeprefix("q_"), options, u)
        return _stepped(round(point / options["q"]) * options["q"], options) if "q" in options else point


def _point(law: str, options: Mapping[str, Any], u: float) -> float:
    from scipy import stats

    if law == "normal":
        return float(stats.norm.ppf(u, loc=options["mu"], scale=options["sigma"]))
    if law == "log_normal":
        return float(stats.lognorm.ppf(u, s=options["sigma"], scale=math.exp(options["mu"])))
    if law == "beta":
        return float(stats.beta.ppf(u, a=options["a"], b=options["b"]))
    low, high = options["min"], options["max"]
    if law in ("log_uniform_values", "inv_log_uniform_values"):  # the same law: where log x is uniform, so is log 1/x
        return float(stats.loguniform.ppf(u, low, high))
    if law == "log_uniform":  # the bounds are exponents of e
        return math.exp(stats.uniform.ppf(u, low, high - low))
    if law == "inv_log_uniform":  # and here those of 1/x
        return math.exp(-stats.uniform.ppf(1 - u, low, high - low))
    return float(stats.uniform.ppf(u, low, high - low))


def _stepped(value: float, options: Mapping[str, Any]) -> float:
    """Return a multiple of q, a whole number if all of them are."""
    return int(value) if float(options["q"]).is_integer() and float(value).is_integer() else value


def read_parameter(name: str, given: Any, where: str) -> Parameter:
    """Return one parameter of a sweep file.

    Args:
        name: Its name.
        given: What the file says of it.
        where: The file, for messages.

    Raises:
        UsageError: It is none, or names a distribution that lacks something.
    """
    where = f"{where}: parameters: {name}"
    if not isinstance(given, dict):
        raise UsageError(f"{where} is {given!r:.60}: give value, values, min and max, or a distribution")
    if "parameters" in given:
        raise UsageError(
            f"{where} has parameters of its own, which W&B's agent passes as one value: write each with its full name, "
            f"as in `{name}.{next(iter(given['parameters'] or {}), 'learning_rate')}:`"
        )
    kind = given.get("distribution", _implied_kind(given))
    if kind is None:
        raise UsageError(f"{where}: give value, values, min and max, or a distribution")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UsageError(f"{where}: there is no distribution {kind!r:.40}; there are {', '.join(KINDS)}")
    needs, defaults = KINDS[kind]
    options = {key: value for key, value in given.items() if key != "distribution"}
    if lacking := [key for key in needs if key not in options]:
        raise UsageError(f"{where}: a {kind} distribution needs {lacking[0]}")
    if strange := [key for key in options if key not in needs and key not in defaults]:
        takes = ", ".join([*needs, *defaults])
        raise UsageError(f"{where}: a {kind} distribution has no {strange[0]}; it takes {takes}")
    options = {**defaults, **options}
    _check_numbers(kind, options, where)
    for value in options.get("values", [options.get("value")]):
        _check_value(value, where)
    return Parameter(name, kind, options)


def _implied_kind(given: Mapping[str, Any]) -> str | None:
    """Return the distribution that is meant where none is named; whole bounds mean whole numbers."""
    if "value" in given:
        return "constant"
    if "values" in given:
        return "categorical_w_probabilities" if "probabilities" in given else "categorical"
    if "min" in given and "max" in given:
        whole = all(type(given[bound]) is int for bound in _BETWEEN)
        return "int_uniform" if whole else "uniform"
    return None


def _check_numbers(kind: str, options: Mapping[str, Any], where: str) -> None:
    for key in ("min", "max", "q", "mu", "sigma", "a", "b"):
        if key in options and (type(options[key]) not in (int, float) or not math.isfinite(options[key])):
            hint = "; YAML takes 1e-3 for a text, write 1.0e-3" if isinstance(options[key], str) else ""
            raise UsageError(f"{where}: {key} is {options[key]!r:.40}: give a number{hint}")
    if kind == "int_uniform" and any(type(options[bound]) is not int for bound in _BETWEEN):
        raise UsageError(f"{where}: min {options['min']} and max {options['max']}: int_uniform takes whole numbers")
    if "min" in options and not options["min"] < options["max"]:
        raise UsageError(f"{where}: min {options['min']} is not below max {options['max']}")
    if kind.endswith("log_uniform_values") and options["min"] <= 0:
        raise UsageError(f"{where}: min is {options['min']}: the logarithm needs one above 0")
    if options.get("q", 1) <= 0:
        raise UsageError(f"{where}: q is {options['q']}: give a step above 0")
    if "q" in options and "min" in options and (options["max"] - options["min"]) / options["q"] > _MOST_STEPS:
        raise UsageError(f"{where}: q is {options['q']}: that makes more than {_MOST_STEPS} steps")
    if min(options.get("sigma", 1), options.get("a", 1), options.get("b", 1)) <= 0:
        raise UsageError(f"{where}: sigma, a and b must be above 0")
    if "values" in options and not (isinstance(options["values"], list) and options["values"]):
        raise UsageError(f"{where}: values is {options['values']!r:.60}: give a list of one value or more")
    if "probabilities" in options:
        shares = options["probabilities"]
        if not isinstance(shares, list) or any(type(share) not in (int, float) or share < 0 for share in shares):
            raise UsageError(f"{where}: probabilities is {shares!r:.60}: give a list of numbers, 0 or above")
        if len(shares) != len(options["values"]) or not math.isclose(sum(shares), 1, rel_tol=1e-5):
            raise UsageError(f"{where}: give as many probabilities as values, with the sum 1")


def _check_value(value: Any, where: str) -> None:
    """Refuse a value that is another one once W&B's agent has written it on a command line."""
    if isinstance(value, (list, dict)):
        try:
            read_back = yaml_value(str(value))
        except NotPlainError:
            read_back = None
        if read_back != value:
            raise UsageError(
                f"{where}: {value!r:.80} does not survive a command line, where W&B's agent writes it as Python does: "
                "put it in a file, and sweep over `config`"
            )
    elif not (value is None or isinstance(value, (bool, int, float, str))):
        raise UsageError(f"{where}: {value!s:.40} is a {type(value).__name__}: give a number, a text or a list")
