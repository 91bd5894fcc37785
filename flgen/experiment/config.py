"""The configuration: one jsonargparse parser, one line per mistake, and the text of config.yaml.

The parser knows no class of flgen; the command line hands it the sections (name, base class or constructor).
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from flgen.errors import UsageError


@dataclass(frozen=True)
class Section:
    """One top-level key of the configuration.

    Args:
        name: The key.
        type: A class, or a type that jsonargparse can parse.
        kind: "options": the class's constructor gives the keys; "class": a class_path with init_args chooses a
            subclass; "value": a plain value or a list.
        default: Default of a "class" or "value".
        help: Its help text.
        required: Whether it must be given.
    """

    name: str
    type: Any
    kind: str = "value"
    default: Any = None
    help: str = ""
    required: bool = False


def build_parser(
    sections: Sequence[Section], extra_options: Mapping[str, dict[str, Any]], description: str
) -> ArgumentParser:
    """Return the parser of one command: `--config`, the command's own options, and the sections."""
    parser = ArgumentParser(exit_on_error=False, description=description)
    parser.add_argument(
        "--config", action="config", help="A YAML file; later files and later arguments override earlier ones."
    )
    for option, settings in extra_options.items():
        parser.add_argument(f"--{option}", **settings)
    for section in sections:
        if section.kind == "options":
            parser.add_class_arguments(section.type, section.name)
        elif section.kind == "class":
            chosen = {} if section.default is None else {"default": section.default}
            parser.add_subclass_arguments(
                section.type, section.name, required=section.required, help=section.help, **chosen
            )
        else:
            parser.add_argument(f"--{section.name}", type=section.type, default=section.default, help=section.help)
    return parser


@dataclass(frozen=True)
class Configuration:
    """A parsed command line.

    Args:
        values: Every option; classes as class_path and init_args.
        parser: What it was parsed with.
    """

    values: Namespace
    parser: ArgumentParser

    def resolved(self) -> dict[str, Any]:
        """Return all values as plain types: what config.yaml holds, enough to repeat the run."""
        plain = yaml.safe_load(self.parser.dump(self.values, skip_unset=False, skip_validation=True))
        plain.pop("config", None)
        return plain

    def build(self) -> Namespace:
        """Return the objects that the values describe.

        Raises:
            UsageError: A constructor refuses its arguments.
        """
        return self.parser.instantiate(self.values)


def parse(parser: ArgumentParser, arguments: Sequence[str], sections: Sequence[Section]) -> Configuration:
    """Return the parsed configuration, with presets filled in.

    Raises:
        UsageError: An unknown key, a wrong type or value; the message names it and the nearest valid name.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            values = parser.parse_args(list(arguments))
    except ArgumentError as error:
        raise UsageError(explain(str(error), parser, sections)) from error
    fill_presets(values)
    return Configuration(values, parser)


_UNKNOWN_INIT_ARG = re.compile(r"Problem with given class_path '([^']+)':\s*(?:- )?Option '([^']+)' is not accepted")
_UNKNOWN_KEY = re.compile(
    r"does not accept option '([^']+)'|Key '([^']+)' is not expected|[Uu]nrecognized arguments: (\S+)"
)
_UNKNOWN_CLASS = re.compile(
    r"Expected a dot import path string: (\S+)|Import path (\S+) does not correspond|Given value: '?([\w.]+)'?$"
)


def explain(message: str, parser: ArgumentParser, sections: Sequence[Section]) -> str:
    """Return one line from a parser's message: what is wrong, where, and the nearest valid name."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()]
    key = next(iter(re.findall(r'Parser key "([^"]+)"', message)), "")

    if unknown := _UNKNOWN_INIT_ARG.search(message):
        path, option = unknown.groups()
        where = f"{key}.{option}" if key else option
        return f"unknown option --{where}: {_short(path)} has no {option!r}{_nearest(option, _parameters(path))}"
    if unknown := _UNKNOWN_KEY.search(message):
        given = next(filter(None, unknown.groups())).lstrip("-").partition("=")[0]
        return f"unknown option --{given}{_nearest(given, _keys(parser))}"
    section = next((section for section in sections if section.name == key), None)
    if section is not None and section.kind == "class" and (unknown := _UNKNOWN_CLASS.search(message)):
        given = next(filter(None, unknown.groups()))
        names = [_short(name) for name in _subclasses(section.type)]
        return f"--{key} {given}: there is no such class{_nearest(_short(given), names)}"
    reasons = ("Expected", "Problem", "Unable", "No such")
    reason = next((line for line in reversed(lines) if line.startswith(reasons)), None)
    if key and reason:
        given = next((line for line in lines if line.startswith("Given value:")), "")
        given = "" if "Got value" in reason else given.replace("Given value:", ". Got value:")
        return f"--{key}: {_plain(reason)}{given}"
    return _plain(" ".join(lines))


def fill_presets(config: Namespace) -> None:
    """Replace options left at null by what the method's preset says, in place.

    A class whose `presets` names the preset fills its own options: the method, and what the model is given (its
    loss). The text of config.yaml then holds every value that the run used.
    """
    preset = config.method.init_args.get("preset") if "init_args" in config.method else None
    if preset is None:
        return
    for chosen in _chosen_classes(config):
        values = getattr(_locate(chosen.class_path), "presets", {}).get(preset, {})
        for option, value in values.items():
            if chosen.init_args.get(option, value) is None:
                chosen.init_args[option] = value


def to_yaml(config: dict[str, Any]) -> str:
    """Return the text of config.yaml."""
    return yaml.safe_dump(config, sort_keys=False, default_flow_style=False)


def _chosen_classes(config: Any) -> Iterator[Any]:
    """Yield every class_path/init_args pair inside a configuration."""
    if isinstance(config, Namespace):
        if "class_path" in config and "init_args" in config:
            yield config
        for value in vars(config).values():
            yield from _chosen_classes(value)
    elif isinstance(config, list):
        for value in config:
            yield from _chosen_classes(value)


def describe(value: Any) -> Any:
    """Return the configuration that an object stands for: its class and the values of its constructor's options.

    A constructor keeps each option as an attribute of the same name; one that it does not keep is left out.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    options = {
        option: describe(getattr(value, option))
        for option in _parameters(f"{type(value).__module__}.{type(value).__qualname__}")
        if hasattr(value, option)
    }
    return {"class_path": f"{type(value).__module__}.{type(value).__qualname__}", "init_args": options}


def _locate(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _parameters(class_path: str) -> list[str]:
    try:
        return list(inspect.signature(_locate(class_path).__init__).parameters)[1:]
    except (ImportError, AttributeError, ValueError):
        return []


def _subclasses(base: type) -> list[str]:
    found: list[str] = [f"{base.__module__}.{base.__qualname__}"]
    for subclass in base.__subclasses__():
        found += _subclasses(subclass)
    return found


def _keys(parser: ArgumentParser) -> list[str]:
    return [option[2:] for option in parser._option_string_actions if option.startswith("--")]


def _short(class_path: str) -> str:
    return class_path.rpartition(".")[2]


def _nearest(given: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; valid names are {', '.join(sorted(names)[:30])}" if names else ""


def _plain(text: str) -> str:
    text = re.sub(r"<class '([\w.]+)'>", lambda match: match.group(1).rpartition(".")[2], text)
    return " ".join(text.split()).rstrip(".")
