"""A sweep file: configurations to try, by number. It is W&B's format, so one file serves `wandb sweep` and flgen.

Source: the schema of W&B's sweep files (package `sweeps`, config/schema.json).
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flgen.errors import FlgenError, UsageError
from flgen.experiment.plain_values import NotPlainError, yaml_value
from flgen.experiment.sweep_parameters import Parameter, read_parameter

KEYS = (
    *("name", "description", "program", "command", "method", "metric", "run_cap", "parameters"),
    *("project", "entity", "early_terminate", "controller", "apiVersion", "kind"),
)
"""Of W&B's top-level keys those that a sweep of runs has; the second line is for W&B alone."""

OF_WANDB_ONLY = ("job", "image_uri", "scheduler", "metrics")

OWN = ("run_dir", "ckpt_path", "seeds", "seed_index", "sweep", "index", "count", "seed")
"""Options that say which run it is, and cannot differ between the runs of a sweep."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_ENVIRONMENT = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")
_ARGS = ("${args}", "${args_no_equals}")
_MOST_RUNS = 10_000
_LONGEST_LABEL = 100  # characters of a folder's name


@dataclass(frozen=True)
class Metric:
    """What the runs of a sweep are compared by.

    Args:
        name: A column of metrics.csv.
        goal: Whether less of it is better, or more.
    """

    name: str
    goal: Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says.

    Args:
        path: The file.
        name: The sweep's name; the file's own without one.
        method: "grid" tries all combinations, "random" draws.
        parameters: What differs, in the order of the file.
        metric: What the runs are compared by.
        run_cap: The most runs; None if the file does not say.
        before: What the `command` gives `flgen fit` before the parameters.
        after: What it gives it after them.
    """

    path: Path
    name: str
    method: Literal["grid", "random"]
    parameters: tuple[Parameter, ...]
    metric: Metric | None
    run_cap: int | None
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def size(self, count: int | None = None) -> int:
        """Return the number of configurations.

        Args:
            count: The most that are wanted; None takes the file's run_cap.

        Raises:
            UsageError: It is a random sweep, and nobody says how many.
        """
        most = self.run_cap if count is None else count
        if self.method == "random":
            if most is None:
                raise UsageError(f"{self.path}: a random sweep has no end: give --count N, or run_cap: N in the file")
            return most
        combinations = math.prod(len(parameter.grid() or ()) for parameter in self.parameters)
        if most is None and combinations > _MOST_RUNS:
            raise UsageError(
                f"{self.path}: its grid has {combinations} configurations: give --count N, or run_cap: N in the file"
            )
        return combinations if most is None else min(combinations, most)

    def values(self, index: int, uniform: Callable[[str], float]) -> dict[str, Any]:
        """Return configuration number `index`, by parameter, in the order of the file.

        Of a grid the last parameter changes fastest.

        Args:
            index: Counted from 0.
            uniform: The number between 0 and 1 that a parameter of this index is drawn with.
        """
        if self.method == "random":
            return {parameter.name: parameter.at(uniform(parameter.name)) for parameter in self.parameters}
        chosen = {}
        for parameter in reversed(self.parameters):
            values = parameter.grid() or ()
            index, place = divmod(index, len(values))
            chosen[parameter.name] = values[place]
        return dict(reversed(chosen.items()))

    def label(self, values: Mapping[str, Any]) -> str:
        """Return what tells a configuration from the others, short enough for a folder: `alpha=0.1,seed=2`."""
        varying = {parameter.name: values[parameter.name] for parameter in self.parameters if parameter.varies}
        text = ",".join(f"{short}={_short_value(varying[name])}" for name, short in _short_names(varying).items())
        return text if len(text) <= _LONGEST_LABEL else text[:_LONGEST_LABEL].rstrip(",=")


def option_words(values: Mapping[str, Any]) -> list[str]:
    """Return a configuration as it is typed, which is how W&B's agent writes `${args}`.

    Args:
        values: By parameter.
    """
    return [f"--{name}={value}" for name, value in values.items()]


def read_sweep(path: str | Path) -> Sweep:
    """Return what a sweep file says.

    Args:
        path: The file.

    Raises:
        FlgenError: It cannot be read.
        UsageError: It is no sweep file, or one that only W&B can run.
    """
    path = Path(path)
    try:
        content = yaml_value(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FlgenError(f"{path} cannot be read ({error.strerror}): give a sweep file") from error
    except (NotPlainError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no YAML ({error}): give a sweep file") from error
    if not isinstance(content, dict) or "parameters" not in content:
        raise UsageError(f"{path} is no sweep file: it needs `method: grid` or `random`, and `parameters:`")
    _check_keys(content, path)
    method = content.get("method")
    if method in ("bayes", "custom"):
        raise UsageError(
            f"{path}: method: {method} needs the results of other runs, which W&B has: run it by `wandb sweep` and "
            "`wandb agent`, or choose grid or random"
        )
    if method not in ("grid", "random"):
        raise UsageError(f"{path}: method is {method!r:.40}: give grid or random")
    parameters = _parameters(content["parameters"], path)
    if method == "grid":
        for parameter in parameters:
            if parameter.grid() is None:
                raise UsageError(
                    f"{path}: parameters: {parameter.name}: a grid needs values to try, and {parameter.kind} has none: "
                    "give values, or choose method: random"
                )
    run_cap = content.get("run_cap")
    if run_cap is not None and (type(run_cap) is not int or run_cap < 1):
        raise UsageError(f"{path}: run_cap is {run_cap!r:.40}: give a whole number, 1 or more")
    name = content.get("name", path.stem)
    if not isinstance(name, str) or not name:
        raise UsageError(f"{path}: name is {name!r:.40}: give a text")
    before, after = _fit_arguments(content, path)
    metric = _metric(content.get("metric"), path)
    return Sweep(path, name, method, parameters, metric, run_cap, tuple(before), tuple(after))


def _check_keys(content: Mapping[Any, Any], path: Path) -> None:
    for key in content:
        if key in OF_WANDB_ONLY:
            raise UsageError(f"{path}: {key}: this is for W&B Launch: take it out, or run the file by `wandb`")
        if key not in KEYS:
            close = difflib.get_close_matches(str(key), KEYS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(KEYS)}"
            raise UsageError(f"{path}: {key}: a sweep file has no such key; {hint}")


def _parameters(given: Any, path: Path) -> tuple[Parameter, ...]:
    if not isinstance(given, dict) or not given:
        raise UsageError(f"{path}: parameters: give one or more, as in `seed_everything: {{values: [0, 1, 2]}}`")
    found = []
    for name, about in given.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UsageError(f"{path}: parameters: {name!r:.60}: write an option without its dashes, as in method.mu")
        if name in OWN:
            raise UsageError(
                f"{path}: parameters: {name}: flgen sets it itself, so that every run has a folder of its own"
                + ("; for several seeds sweep over seed_everything" if name == "seeds" else "")
            )
        found.append(read_parameter(name, about, str(path)))
    return tuple(found)


def _metric(given: Any, path: Path) -> Metric | None:
    if given is None:
        return None
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise UsageError(
            f"{path}: metric: give a name and a goal, as in `metric: {{name: fid/digits, goal: minimize}}`"
        )
    goal = given.get("goal", "minimize")
    if goal not in ("minimize", "maximize"):
        raise UsageError(f"{path}: metric: goal is {goal!r:.40}: give minimize or maximize")
    return Metric(given["name"], goal)


def _fit_arguments(content: Mapping[str, Any], path: Path) -> tuple[list[str], list[str]]:
    """Return what the `command` gives `flgen fit` before and after the parameters."""
    command = content.get("command")
    if command is None:
        return [], []
    if not isinstance(command, list) or not all(isinstance(word, (str, int, float)) for word in command):
        raise UsageError(f"{path}: command: give a list, as in [flgen, fit, --config, base.yaml, '${{args}}']")
    program = str(content.get("program", "flgen"))
    words = list(_expanded([str(word) for word in command], program, path))
    head = words[: words.index("fit")] if "fit" in words else []
    if not head or not _starts_flgen(head):
        raise UsageError(f"{path}: command is no `flgen fit`: flgen runs nothing else; W&B's agent does")
    given = words[len(head) + 1 :]
    places = [place for place, word in enumerate(given) if word in _ARGS]
    if len(places) != 1:
        raise UsageError(f"{path}: command: the parameters take the place of `${{args}}`, which it needs once")
    if strange := [word for word in given if word.startswith("${") and word not in _ARGS]:
        raise UsageError(f"{path}: command: flgen does not know {strange[0]}; write `${{args}}`")
    return given[: places[0]], given[places[0] + 1 :]


def _expanded(words: Sequence[str], program: str, path: Path) -> Iterator[str]:
    known = {"${env}": "env", "${interpreter}": "python", "${program}": program}
    for word in words:
        for name in _ENVIRONMENT.findall(word):
            if name not in os.environ:
                raise UsageError(f"{path}: command: the environment has no {name}: set it")
        yield known.get(word, _ENVIRONMENT.sub(lambda found: os.environ[found[1]], word))


def _starts_flgen(head: Sequence[str]) -> bool:
    names = [Path(word).name for word in head]
    wrappers = all(name in ("env", "-m") or name.startswith("python") for name in names[:-1])
    return wrappers and names[-1] in ("flgen", "flgen.cli")


def _short_names(names: Mapping[str, Any]) -> dict[str, str]:
    """Return the last part of each name, or as many as it takes to tell them apart."""
    short = {}
    for name in names:
        parts = name.split(".")
        for start in range(len(parts) - 1, -1, -1):
            candidate = ".".join(parts[start:])
            if start == 0 or not any(f".{other}".endswith(f".{candidate}") for other in names if other != name):
                break
        short[name] = candidate
    return short


def _short_value(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    if isinstance(value, str) and text.endswith((".yaml", ".yml")):
        text = Path(text).stem
    return re.sub(r"[^A-Za-z0-9_.+-]+", "_", text).strip("_.") or "none"
