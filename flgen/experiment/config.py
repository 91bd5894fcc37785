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
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from flgen.errors import FlgenError, UsageError


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


class _Parser(ArgumentParser):
    """A parser that takes no abbreviations; those that it makes for classes are of its kind, so neither do they."""

    def __init__(self, *args: Any, allow_abbrev: bool = False, **options: Any) -> None:
        super().__init__(*args, allow_abbrev=allow_abbrev, **options)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *more: Any, **options: Any
    ) -> Namespace:
        """Parse arguments; those handed down to the parser of a class have a null in Python's spelling."""
        given = args and [re.sub("=None$", "=null", argument) for argument in args]
        return super().parse_args(given, *more, **options)


def build_parser(
    sections: Sequence[Section], extra_options: Mapping[str, dict[str, Any]], description: str
) -> ArgumentParser:
    """Return the parser of one command: `--config`, the command's own options, and the sections."""
    parser = _Parser(exit_on_error=False, description=description)
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
        """Return the objects that the values describe, the model made for the data set.

        Raises:
            FlgenError: A constructor refuses its arguments.
        """
        try:
            fit_model_to_data(self.values)
            return self.parser.instantiate(self.values)
        except ValueError as error:
            # The parser wraps what a constructor raises, once per level of nesting.
            cause: BaseException | None = error
            while cause is not None:
                if isinstance(cause, FlgenError):
                    raise cause from None
                cause = cause.__cause__
            raise


def parse(parser: ArgumentParser, arguments: Sequence[str], sections: Sequence[Section]) -> Configuration:
    """Return the parsed configuration, with presets filled in.

    Raises:
        UsageError: An unknown key, a wrong type or value; the message names it and the nearest valid name.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            values = parser.parse_args(list(arguments))
    except (ArgumentError, UnicodeDecodeError) as error:
        _check_files(arguments)
        raise UsageError(explain(str(error), parser, sections)) from error
    for section in sections:
        if section.kind == "options":
            _check_options(section.name, values[section.name])
    for where, chosen in _chosen_classes(values):
        for name in _option_groups(chosen.class_path):
            _check_options(f"{where}.{name}", chosen.init_args.get(name))
    fill_presets(values)
    return Configuration(values, parser)


def _check_options(where: str, given: Any) -> None:
    """Refuse a plain value in place of several options; the parser takes some (null, a number in a file)."""
    if not isinstance(given, Namespace):
        raise UsageError(_no_option(where, "null" if given is None else given))


def _no_option(where: str, given: Any) -> str:
    return f"--{where}: {given} is no option; give --{where}.NAME VALUE"


def _check_files(arguments: Sequence[str]) -> None:
    """Name the `--config` file that is not YAML, or no mapping; the parser's own message does not."""
    joined = [argument.partition("=")[2] for argument in arguments if argument.startswith("--config=")]
    for path in [*joined, *(value for option, value in pairwise(arguments) if option == "--config")]:
        try:
            if Path(path).is_file() and not isinstance(yaml.safe_load(Path(path).read_text()), dict):
                raise UsageError(f"--config {path}: holds no options; write them as in `run_dir: runs/x`")
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = _one_line(str(error)).replace(' in "<unicode string>"', "")
            raise UsageError(f"--config {path}: not valid YAML: {reason}") from error


_UNKNOWN_KEY = re.compile(
    r"does not accept option '([^']+)'|Option '([^']+)' is not accepted|[Uu]nrecognized arguments: (\S+)"
)
_UNKNOWN_CLASS = re.compile(
    r"Expected a dot import path string: (\S+)|Import path (?:(\S+) )?does not correspond|Not a valid subclass"
)


def explain(message: str, parser: ArgumentParser, sections: Sequence[Section]) -> str:
    """Return one line from a parser's message: what is wrong, where, and the nearest valid name.

    The message of a nested option is a tree: the keys lead down to the place, the first reason below the last key is
    the one that matters (what follows says that it is not null either).
    """
    keys = re.findall(r'Parser key "([^"]+)"', message)
    where = ".".join(keys)
    reasons = message.rpartition("Parser key")[2]
    if missing := re.search(r"File does not exist: '([^']+)'|Path is not a file: '([^']+)'", message):
        return f"--{where} {next(filter(None, missing.groups()))}: there is no such file"
    if "Problems parsing config" in message:
        return f"--config: not valid YAML: {_one_line(message.partition('Problems parsing config:')[2])}"
    if required := re.search(r"following arguments are required: (.+)|Key '([^']+)' is required", message):
        names = [".".join([*keys, name.strip()]) for name in next(filter(None, required.groups())).split(",")]
        return f"missing: {', '.join('--' + name for name in names)}; give it here or in a --config"
    if keys and (plain := re.search(r"Unable to load config '(.*)'\n", message)):
        return _no_option(".".join(keys[:-1]), plain.group(1))  # the last key is named twice
    if unknown := _UNKNOWN_KEY.search(reasons):
        given = next(filter(None, unknown.groups()))
        if not keys and not given.startswith("-") and "nrecognized" in message:
            return f"{given}: options are given as --NAME VALUE; this belongs to none"
        option = given.lstrip("-").partition("=")[0]
        if group := re.search(r"Group '([^']+)'", reasons):
            option = f"{group.group(1)}.{option}"
        owner = re.findall(r"given class_path '([^']+)'", message)
        if owner and keys:
            if any(section.name == where and _path(section.type) == owner[-1] for section in sections):
                return f"--{where}.{option}: name the class first, by --{where} CLASS or in a --config before it"
            return f"--{where}.{option}: {_lacks(owner[-1], option)}"
        return f"--{option}: there is no such option{_nearest(option, _keys(parser))}"
    values = re.findall(r"(?:Given value|Got value): (.+)", reasons)
    if unknown := _UNKNOWN_CLASS.search(reasons):
        given = next(filter(None, unknown.groups()), values[0] if values else "")
        bases = _subtypes(message)
        if bases and is_dataclass(_locate(bases[-1])):
            return _no_option(where, given)
        names = _class_names(message, where, sections)
        return f"--{where} {given}: there is no such class{_nearest(_short(given), names)}"
    if broken := re.search(r"given class_path '([^']+)':\s*(.+)", reasons):
        return f"--{where} {broken.group(1)}: {_one_line(broken.group(2))}"
    kinds = re.findall(r"Expected an? (.+?)(?:\. Got value.*)?$", reasons.partition("Given value:")[0], re.MULTILINE)
    kinds = [_kind(kind) for kind in kinds if "NoneType" not in kind]
    if not (keys and kinds and values):
        return _one_line(message)
    if below := re.match(r"NestedArg\(key='([^']+)'", values[0]):
        return f"--{where}.{below.group(1)}: there is no such option; --{where} is one value"
    spelling = f"; write '[{values[0]}]'" if kinds == ["of type list"] and values[0][0] not in "{[" else ""
    return f"--{where}: {values[0]} is not {' or '.join(kinds)}{spelling}"


def _lacks(class_path: str, option: str) -> str:
    """Say what a class lacks of an option such as `training.epocs`: the part of it that does not exist."""
    name, _, rest = option.partition(".")
    while rest and (group := _option_groups(class_path).get(name)):
        class_path, (name, _, rest) = _path(group), rest.partition(".")
    return f"{_short(class_path)} has no {name!r}{_nearest(name, _parameters(class_path))}"


def _subtypes(message: str) -> list[str]:
    """Return the first of the types that would fit at each level of a message's tree."""
    return re.findall(r"Subtypes: \[<class '([^']+)'>", message)


def _class_names(message: str, where: str, sections: Sequence[Section]) -> list[str]:
    """Return the short names of the classes that fit where an unknown one was given."""
    bases = _subtypes(message)
    if bases:
        base = _locate(bases[-1])
    else:
        type_ = next((section.type for section in sections if section.name == where.split(".")[0]), object)
        if type_ is object:
            return []
        base = next(iter(get_args(type_)), type_)
    base_itself, *below = _subclasses(base)
    return [_short(name) for name in below or [base_itself]]


def fill_presets(config: Namespace) -> None:
    """Replace options left at null by what the method's preset says, in place.

    A class whose `presets` names the preset fills its own options: the method, and what the model is given (its
    loss). The text of config.yaml then holds every value that the run used.
    """
    method = config.get("method")
    preset = method.init_args.get("preset") if method is not None and "init_args" in method else None
    if preset is None:
        return
    for _, chosen in _chosen_classes(config):
        values = getattr(_locate(chosen.class_path), "presets", {}).get(preset, {})
        for option, value in values.items():
            if chosen.init_args.get(option, value) is None:
                chosen.init_args[option] = value


def fit_model_to_data(config: Namespace) -> None:
    """Give the model the data set's sizes (`_SHAPE_OPTIONS`) where its own options are null, in place."""
    if "model" not in config or not any(name in config.model.init_args for name in _SHAPE_OPTIONS):
        return
    data = _locate(config.data.class_path)(**config.data.init_args.as_dict())
    for option in _SHAPE_OPTIONS:
        if config.model.init_args.get(option, 0) is None:
            if not hasattr(data, option):
                raise UsageError(
                    f"--model {_short(config.model.class_path)} takes {_SHAPE_OPTIONS[option]}, but --data "
                    f"{_short(config.data.class_path)} holds {data.noun}: use another --model"
                )
            config.model.init_args[option] = getattr(data, option)


def to_yaml(config: dict[str, Any]) -> str:
    """Return the text of config.yaml."""
    return yaml.safe_dump(config, sort_keys=False, default_flow_style=False)


def _chosen_classes(config: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the place and the namespace of every class_path/init_args pair inside a configuration."""
    if isinstance(config, Namespace):
        chosen = "class_path" in config and "init_args" in config
        if chosen:
            yield where, config
        for name, value in vars(config).items():
            yield from _chosen_classes(value, where if chosen else f"{where}.{name}".lstrip("."))
    elif isinstance(config, list):
        for value in config:
            yield from _chosen_classes(value, where)


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
    if is_dataclass(value) and not isinstance(value, type):
        return {option.name: describe(getattr(value, option.name)) for option in fields(value)}
    class_path = _path(type(value))
    options = {option: describe(getattr(value, option)) for option in _parameters(class_path) if hasattr(value, option)}
    return {"class_path": class_path, "init_args": options}


_SHAPE_OPTIONS = {
    "image_size": "images",
    "channels": "images",
    "classes": "classes",
    "vocabulary": "texts",
    "padding": "texts",
}
"""Options that a model takes from the data set where they are null, and what data have them."""


def _path(type_: Any) -> str:
    return f"{type_.__module__}.{type_.__qualname__}" if isinstance(type_, type) else ""


def _locate(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _parameters(class_path: str) -> list[str]:
    try:
        return list(inspect.signature(_locate(class_path).__init__).parameters)[1:]
    except (ImportError, AttributeError, ValueError):
        return []


def _option_groups(class_path: str) -> dict[str, type]:
    """Return the dataclasses among a constructor's options, by the option's name."""
    try:
        types = get_type_hints(_locate(class_path).__init__)
    except (ImportError, AttributeError, NameError, TypeError):
        return {}
    return {name: type_ for name, type_ in types.items() if isinstance(type_, type) and is_dataclass(type_)}


def _subclasses(base: type) -> list[str]:
    found: list[str] = [_path(base)]
    subclass: type
    for subclass in type.__subclasses__(base):
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


def _kind(name: str) -> str:
    """Say what a parser expects, without Python's spelling of types."""
    name = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", name).replace("typing.", "")
    choices = re.fullmatch(r"Literal\[(.+)\]", name)
    return f"of type {name}" if not choices else f"one of {choices.group(1)}" if "," in name else choices.group(1)


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
