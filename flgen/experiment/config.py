"""The configuration: one jsonargparse parser, one line per mistake, and the text of config.yaml.

The parser knows no class of flgen; the command line hands it the sections (name, base class or constructor).
"""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_loader, set_parsing_settings
from jsonargparse import get_loader as loader_of_parser

from flgen.errors import FlgenError, UsageError
from flgen.experiment.argument_order import classes_first
from flgen.experiment.class_paths import locate, option_groups, parameters_of, path_of, short_name
from flgen.experiment.parser_messages import explain, no_option, one_line
from flgen.experiment.plain_values import NotPlainError, check_yaml, yaml_value


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
        several: Whether a list of such classes may stand for one (of a "class").
    """

    name: str
    type: Any
    kind: str = "value"
    default: Any = None
    help: str = ""
    required: bool = False
    several: bool = False


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
    _restrict_values()
    parser = _Parser(exit_on_error=False, description=description)
    parser.add_argument(
        "--config", action="config", help="A YAML file; later files and later arguments override earlier ones."
    )
    for option, settings in extra_options.items():
        parser.add_argument(f"--{option}", **settings)
    for section in sections:
        if section.kind == "options":
            parser.add_class_arguments(section.type, section.name)
        elif section.several:
            types = section.type | list[section.type]  # type: ignore[name-defined]
            parser.add_argument(f"--{section.name}", type=types, required=section.required, help=section.help)
        elif section.kind == "class":
            chosen = {} if section.default is None else {"default": section.default}
            parser.add_subclass_arguments(
                section.type, section.name, required=section.required, help=section.help, **chosen
            )
        else:
            parser.add_argument(f"--{section.name}", type=section.type, default=section.default, help=section.help)
    return parser


def _restrict_values() -> None:
    """Take from a configuration what it does not need: its file may come from somebody else.

    It names classes, of an installed package or of the working folder, and they are made where the option takes them.
    Nothing of Python's own library can be named, nor is a class made where an option takes any value. Values that are
    read as YAML are bounded.
    """
    set_parsing_settings(
        instantiate_subclass_spec_in_any=False, import_path_denylist=[*sys.stdlib_module_names, "builtins"]
    )
    if loader_of_parser("yaml") is not _load_bounded:
        set_loader("yaml", _load_bounded, exceptions=(NotPlainError, yaml.YAMLError))


_load_unbounded = loader_of_parser("yaml")


def _load_bounded(text: str) -> Any:
    """Return what the parser's own loader reads, of a text that is safe to read."""
    check_yaml(text)
    try:
        return _load_unbounded(text)
    except yaml.YAMLError:
        raise
    except Exception as error:  # tags such as !!timestamp fail in every way
        raise NotPlainError(one_line(str(error)) or type(error).__name__) from error


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
            refusal = _refusal(error) or self._refusal_of_a_network()
            if refusal is None:
                raise
            raise refusal from None

    def _refusal_of_a_network(self) -> FlgenError | None:
        """Return what a network of a list says; the parser forgets it, since it tries a list as one network first."""
        model = self.values.get("model")
        for network in model if isinstance(model, list) else ():
            alone = self.values.clone()
            alone.model = network
            try:
                self.parser.instantiate(alone)
            except ValueError as error:
                if refusal := _refusal(error):
                    return refusal
        return None


def _refusal(error: ValueError) -> FlgenError | None:
    """Return what a constructor raised behind a parser's error, which wraps it once per level of nesting."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, FlgenError):
        cause = cause.__cause__
    return cause


def parse(parser: ArgumentParser, arguments: Sequence[str], sections: Sequence[Section]) -> Configuration:
    """Return the parsed configuration, with presets filled in.

    Raises:
        UsageError: An unknown key, a wrong type or value; the message names it and the nearest valid name.
    """
    arguments = classes_first(arguments)
    for section in sections:
        if section.several:
            _check_list(section.name, arguments)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            values = parser.parse_args(arguments)
    except (ArgumentError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        # the latter are what the parser itself does not expect of a value, such as a number of 5,000 digits
        _check_files(arguments)
        raise UsageError(explain(str(error), parser, sections)[:LONGEST_MESSAGE]) from error
    _check_classes(values)
    for section in sections:
        if section.kind == "options":
            _check_options(section.name, values[section.name])
    for where, chosen in _chosen_classes(values):
        for name in option_groups(chosen.class_path):
            _check_options(f"{where}.{name}", chosen.init_args.get(name))
    fill_presets(values)
    return Configuration(values, parser)


def _check_classes(config: Any, where: str = "") -> None:
    """Refuse what is no class in place of one, which the parser would call, and options that a class cannot take."""
    if isinstance(config, list):
        for value in config:
            _check_classes(value, where)
    if not isinstance(config, Namespace):
        return
    if chosen := config.get("class_path"):
        named = locate(chosen)
        if not inspect.isclass(named):
            raise UsageError(f"--{where} {chosen}: this is no class; give one")
        kinds = {parameter.kind for parameter in inspect.signature(named.__init__).parameters.values()}
        if "dict_kwargs" in config and inspect.Parameter.VAR_KEYWORD not in kinds:
            raise UsageError(f"--{where}.dict_kwargs: there is no such option; give those of the class in init_args")
    for name, value in vars(config).items():
        _check_classes(value, where if name == "init_args" else f"{where}.{name}".lstrip("."))


def _check_list(name: str, arguments: Sequence[str]) -> None:
    """Refuse an option of one of several classes in a list: the parser would give it to the last of them."""
    is_list = False
    for argument, following in pairwise([*arguments, ""]):
        option, equals, value = argument.partition("=")
        value = value if equals else following
        if option == "--config":
            is_list = isinstance(_section_of(Path(value), name), list) or (
                is_list and _section_of(Path(value), name) is None
            )
        elif option in (f"--{name}", f"--{name}+"):  # + adds one, whose options may follow
            is_list = option == f"--{name}" and value.startswith("[")
        elif is_list and option.startswith(f"--{name}.") and not option.endswith(".help"):
            raise UsageError(
                f"{option}: --{name} is a list, whose members have options of their own: give it in the init_args of "
                "each, or replace the list (a ModelGroup has the options models and assignment)"
            )


def _section_of(path: Path, name: str) -> Any:
    """Return what a file says of a section, None if it says nothing or cannot be read: the parser says why."""
    try:
        content = yaml_value(path.read_text())
    except (OSError, ValueError):
        return None
    return content.get(name) if isinstance(content, dict) else None


def _check_options(where: str, given: Any) -> None:
    """Refuse a plain value in place of several options; the parser takes some (null, a number in a file)."""
    if not isinstance(given, Namespace):
        raise UsageError(no_option(where, "null" if given is None else given))


def _check_files(arguments: Sequence[str]) -> None:
    """Name the `--config` file that is not YAML, or no mapping; the parser's own message does not."""
    joined = [argument.partition("=")[2] for argument in arguments if argument.startswith("--config=")]
    for path in [*joined, *(value for option, value in pairwise(arguments) if option == "--config")]:
        try:
            if Path(path).is_file() and not isinstance(yaml_value(Path(path).read_text()), dict):
                raise UsageError(f"--config {path}: holds no options; write them as in `run_dir: runs/x`")
        except ValueError as error:
            raise UsageError(f"--config {path}: not valid YAML: {one_line(str(error))}") from error
        except OSError as error:
            raise UsageError(f"--config {path}: cannot be read ({error.strerror})") from error


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
        values = getattr(locate(chosen.class_path), "presets", {}).get(preset, {})
        for option, value in values.items():
            if chosen.init_args.get(option, value) is None:
                chosen.init_args[option] = value


def fit_model_to_data(config: Namespace) -> None:
    """Give the model the data set's sizes (`_SHAPE_OPTIONS`) where its own options are null, in place."""
    networks = list(_networks(config.get("model")))
    if not any(name in network.init_args for network in networks for name in _SHAPE_OPTIONS):
        return
    data = locate(config.data.class_path)(**config.data.init_args.as_dict())
    for network in networks:
        for option in _SHAPE_OPTIONS:
            if network.init_args.get(option, 0) is None:
                if not hasattr(data, option):
                    raise UsageError(
                        f"--model {short_name(network.class_path)} takes {_SHAPE_OPTIONS[option]}, but --data "
                        f"{short_name(config.data.class_path)} holds {data.noun}: use another --model"
                    )
                network.init_args[option] = getattr(data, option)


def _networks(model: Any) -> Iterator[Namespace]:
    """Yield the choice of class behind a --model, or one for each network of a group."""
    for chosen in model if isinstance(model, list) else [] if model is None else [model]:
        if isinstance(chosen.init_args.get("models"), list):
            yield from _networks(chosen.init_args.models)
        else:
            yield chosen


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
    class_path = path_of(type(value))
    options = {
        option: describe(getattr(value, option)) for option in parameters_of(class_path) if hasattr(value, option)
    }
    return {"class_path": class_path, "init_args": options}


LONGEST_MESSAGE = 2000
"""Characters of a message about a mistake: what is wrong may be a value of any length."""

_SHAPE_OPTIONS = {
    "image_size": "images",
    "channels": "images",
    "classes": "classes",
    "vocabulary": "texts",
    "padding": "texts",
}
"""Options that a model takes from the data set where they are null, and what data have them."""
