"""The configuration reference: pages made from the command line's own parser, so that they cannot lag behind it.

A command's page is what its `--help` has; a class's entry is what the parser reads from its constructor and docstring.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin

import docstring_parser
import yaml
from jsonargparse import ActionParser, ArgumentParser, Namespace

import flgen
from flgen.cli import COMMANDS
from flgen.commands.plot import KINDS
from flgen.experiment.class_paths import locate, path_of, short_name, subclasses_of

TITLES = {
    "Method": "Methods",
    "LightningModule": "Models",
    "LabelledData": "Data sets",
    "ImageData": "Data sets",
    "Partitioner": "Partitions",
    "RunLogger": "Loggers",
    "Callback": "Callbacks",
    "Star": "Topologies",
    "PeerTopology": "Topologies",
    "Loss": "Losses of generators",
    "PromptSource": "Sources of prompts",
    "Synthesizer": "Synthesizers",
    "LatentGenerator": "Generators of a server",
}
"""Titles of pages by the class from which those on it derive; another class is a page by its own name."""

PRIVACY = "Privacy"
"""The page of whatever comes from `flgen.privacy`, or bounds what a method gives away."""


class ReferencePage(NamedTuple):
    """A page.

    Args:
        title: Its name in the navigation.
        file: Where it lies in the site.
        text: Markdown.
    """

    title: str
    file: str
    text: str


@dataclass(frozen=True)
class Option:
    """One option, of a command or of a class.

    Args:
        name: As it is typed, without dashes; a positional argument in capitals.
        type: Type hint, None for text.
        default: As a file has it; empty if it must be given.
        help: What the parser says of it.
    """

    name: str
    type: Any
    default: str
    help: str


@functools.cache
def reference_pages() -> list[ReferencePage]:
    """Return all pages: an overview, the commands, then one page per kind of class."""
    parsers = {f"flgen {' '.join(words)}": help_parser(words) for words in commands()}
    asked = [option for parser in parsers.values() for option in options_of(parser)]
    kinds = kinds_of(option.type for option in asked)
    pages = [ReferencePage("Commands", "reference/commands.md", _commands_text(parsers, kinds))]
    for title in dict.fromkeys(title_of(base) for base in kinds):
        bases = [base for base in kinds if title_of(base) == title]
        pages.append(ReferencePage(title, _file(title), _kind_text(title, bases, kinds, asked)))
    return [ReferencePage("Overview", "reference/index.md", _overview(pages)), *pages]


def commands() -> Iterator[list[str]]:
    """Yield what is typed after `flgen` for each command, and for each kind of figure."""
    for command in COMMANDS:
        yield from ([command, kind] for kind in KINDS) if command == "plot" else [[command]]


class _HelpAsked(BaseException):
    """Carries the parser whose help was asked for out of its command."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def help_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser that answers `flgen WORDS --help`."""
    with _help_goes_nowhere():
        try:
            importlib.import_module(f"flgen.commands.{words[0]}").run([*words[1:], "--help"])
        except _HelpAsked as asked:
            return asked.parser
    raise LookupError(f"flgen {' '.join(words)} --help has no parser: the reference cannot list its options")


@contextmanager
def _help_goes_nowhere() -> Iterator[None]:
    def ask(parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        raise _HelpAsked(parser)

    printed = argparse.ArgumentParser.print_help
    argparse.ArgumentParser.print_help = ask  # type: ignore[assignment]
    try:
        yield
    finally:
        argparse.ArgumentParser.print_help = printed  # type: ignore[method-assign]


@functools.cache
def options_of_class(chosen: type) -> list[Option]:
    """Return the options of a class, from a parser of them as the command line would make one."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(chosen, None)
    return options_of(parser)


_OF_EVERY_COMMAND = ("help", "config", "print_config", "print_shtab")


def options_of(parser: argparse.ArgumentParser) -> list[Option]:
    """Return the options of a parser in its order, without those that every command has for files and for help."""
    required = {*getattr(parser, "_extra_required_keys", ()), *getattr(parser, "required_args", ())}
    found = []
    for action in parser._actions:
        grouped = isinstance(action, ActionParser) or type(action).__name__ == "_ActionConfigLoad"
        if action.dest in _OF_EVERY_COMMAND or action.dest.endswith(".help") or grouped:
            continue
        positional = not action.option_strings
        must = positional or action.required or action.dest in required
        default = "" if must else _default(action.default)
        name = str(action.metavar or action.dest) if positional else action.dest
        type_ = list[str] if action.nargs == "+" else getattr(action, "_typehint", None) or action.type
        found.append(Option(name, type_, default, _help(action)))
    return found


def _default(value: Any) -> str:
    """Return a default as a file would have it."""
    if value is None or value == argparse.SUPPRESS:
        return "null"
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict) and "class_path" in value:
        return short_name(f".{value['class_path']}")
    if is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__
    plain = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _help(action: argparse.Action) -> str:
    """Return an action's help without what the parser adds on the type and the default."""
    text = "" if action.help in (None, argparse.SUPPRESS) else str(action.help)
    return text.replace("%%", "%")


def kinds_of(hints: Iterable[Any]) -> dict[type, list[type]]:
    """Return the classes that options choose from, by their base: those of some type hints, and those of their own.

    Args:
        hints: Type hints of options.
    """
    kinds: dict[type, list[type]] = {}
    waiting = list(hints)
    while waiting:
        for base in bases_in(waiting.pop(0)):
            if base not in kinds:
                kinds[base] = nameable(base)
                waiting += [option.type for chosen in kinds[base] for option in options_of_class(chosen)]
    return kinds


def bases_in(hint: Any) -> Iterator[type]:
    """Yield the classes of flgen inside a type hint."""
    if isinstance(hint, type) and get_origin(hint) is None:
        if hint.__module__.partition(".")[0] == "flgen":
            yield hint
        return
    for part in get_args(hint):
        yield from bases_in(part)


def nameable(base: type) -> list[type]:
    """Return the classes that can be given where `base` is asked for, by name.

    One that others derive from is among them if flgen exports it and it is not the base itself.
    """
    found = []
    for path in subclasses_of(base):
        class_ = locate(path)
        leaf = subclasses_of(class_) == [path]
        whole = class_ is not base and getattr(flgen, class_.__name__, None) is class_
        if not inspect.isabstract(class_) and (leaf or whole):
            found.append(class_)
    return sorted(found, key=lambda class_: class_.__name__.lower())


def title_of(base: type) -> str:
    """Return the title of the page that has the classes of a base."""
    of_privacy = base.__module__.startswith("flgen.privacy") or "rivacy" in f"{base.__module__}.{base.__name__}"
    return TITLES.get(base.__name__, PRIVACY if of_privacy else base.__name__)


def _file(title: str) -> str:
    return f"reference/{title.lower().replace(' ', '-')}.md"


def _overview(pages: Sequence[ReferencePage]) -> str:
    lines = [
        "# Configuration reference",
        "",
        "Every option of every command, and every class that an option chooses, with types, defaults and meanings. "
        f"These pages are made from the parser of flgen {flgen.__version__} itself: what stands here is what "
        "`flgen COMMAND --help` and `flgen COMMAND --method.help CLASS` print.",
        "",
        "An option is given on the command line (`--trainer.rounds 3`) or in a file (`trainer: {rounds: 3}`); "
        "[Configuration](../configuration.md) says how the two go together. The options of a class follow the option "
        "that chose it: `--method FedProx --method.mu 0.1`. An option whose type is a class of your own takes its "
        "dotted path.",
        "",
    ]
    return "\n".join([*lines, *(f"* [{page.title}]({Path(page.file).name})" for page in pages), ""])


def _commands_text(parsers: Mapping[str, argparse.ArgumentParser], kinds: dict[type, list[type]]) -> str:
    lines = [
        "# Commands",
        "",
        "Every command also has `--help`, and those with sections such as `trainer` take `--config FILE` and "
        "`--print_config`. What a command has in common with `flgen fit` stands there alone.",
        "",
    ]
    of_fit = options_of(parsers["flgen fit"])
    for command in sorted(parsers, key=lambda command: command != "flgen fit"):
        options = options_of(parsers[command])
        shared = [] if command == "flgen fit" else [option for option in options if option in of_fit]
        own = [option for option in options if option not in shared]
        lines += [f"## {command}", "", _prose(parsers[command].description or ""), "", *_entries(own, kinds)]
        if shared:
            lines += [f"Also, as of [`flgen fit`](#flgen-fit): {_listed(shared, of_fit)}.", ""]
    return "\n".join(lines)


def _listed(options: Sequence[Option], of_all: Sequence[Option]) -> str:
    """Return names of options; a section whose options are all there stands for them."""
    names = {option.name for option in options}
    listed = []
    for option in options:
        section = option.name.partition(".")[0]
        whole = names >= {other.name for other in of_all if other.name.partition(".")[0] == section}
        listed.append(f"`{section if whole else option.name}`")
    return ", ".join(dict.fromkeys(listed))


def _kind_text(title: str, bases: Sequence[type], kinds: dict[type, list[type]], asked: Sequence[Option]) -> str:
    lines = [f"# {title}", "", _where_chosen(bases, kinds, asked), ""]
    for chosen in dict.fromkeys(chosen for base in bases for chosen in kinds[base]):
        lines += [f"## {chosen.__name__}", "", *_description(chosen)]
        lines += _entries(options_of_class(chosen), kinds) or ["No options.", ""]
    return "\n".join(lines)


def _where_chosen(bases: Sequence[type], kinds: dict[type, list[type]], asked: Sequence[Option]) -> str:
    """Return a paragraph that says which options take the classes of a page.

    Args:
        bases: The bases of its classes.
        kinds: All classes that have pages.
        asked: Options of all commands.
    """
    names = dict.fromkeys(option.name for option in asked if set(bases) & set(bases_in(option.type)))
    takers = [f"`--{name}`" for name in names]
    owners: dict[str, list[str]] = {}
    for owner in dict.fromkeys(owner for classes in kinds.values() for owner in classes):
        for option in options_of_class(owner):
            if set(bases) & set(bases_in(option.type)):
                link = f"[{owner.__name__}]({_page_of(owner, kinds)}#{owner.__name__.lower()})"
                owners.setdefault(option.name, []).append(link)
    takers += [f"`{name}` of {', '.join(links)}" for name, links in owners.items()]
    return f"Taken by {'; '.join(takers)}."


def _page_of(owner: type, kinds: dict[type, list[type]]) -> str:
    return Path(_file(next(title_of(base) for base, classes in kinds.items() if owner in classes))).name


def _description(chosen: type) -> list[str]:
    """Return what the docstring of a class says before its options."""
    parsed = docstring_parser.parse(inspect.getdoc(chosen) or "", docstring_parser.DocstringStyle.GOOGLE)
    paragraphs = [parsed.short_description or "", *(parsed.long_description or "").split("\n\n")]
    lines = [line for paragraph in paragraphs if paragraph.strip() for line in (_prose(paragraph), "")]
    exported = getattr(flgen, chosen.__name__, None) is chosen
    return [*lines, f"From Python: `{f'flgen.{chosen.__name__}' if exported else path_of(chosen)}`.", ""]


def _entries(options: Sequence[Option], kinds: dict[type, list[type]]) -> list[str]:
    """Return a definition list: the option with type and default, then what it means."""
    lines = []
    for option in options:
        type_ = type_text(option.type, kinds)
        about = f"{type_} · default `{option.default}`" if option.default else f"{_given(type_)} · **required**"
        lines += [f"`{option.name}` · {about}"]
        lines += [f":   {_prose(option.help) or 'Not described.'}", ""]
    return lines


def _given(type_: str) -> str:
    """Return the words for a type of which there must be a value."""
    return type_.removesuffix(" or `null`")


_NAMES: dict[Any, str] = {None: "text", str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}
_PLURALS = {"text": "texts", "whole number": "whole numbers", "number": "numbers"}


def type_text(hint: Any, kinds: dict[type, list[type]], several: bool = False) -> str:
    """Return a type hint in words, its classes as links to their pages.

    Args:
        hint: The type hint.
        kinds: The classes that have pages, by their base.
        several: Whether the words stand for members of a list.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(part, kinds, several) for part in parts)
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in parts)
    if origin in (list, tuple, set, Sequence):
        inside = dict.fromkeys(type_text(part, kinds, several=True) for part in parts if part is not Ellipsis)
        return f"list of {', '.join(inside)}"
    if origin in (dict, Mapping):
        return f"{type_text(parts[1], kinds, several=True)} by name"
    if isinstance(hint, type) and hint in kinds:
        title = title_of(hint)
        if len(kinds[hint]) == 1:
            (only,) = kinds[hint]
            return f"[{only.__name__}]({Path(_file(title)).name}#{only.__name__.lower()})"
        return f"[{'' if several else 'one of '}{title[0].lower() + title[1:]}]({Path(_file(title)).name})"
    if hint is type(None):
        return "`null`"
    name = _NAMES.get(hint) or f"`{getattr(hint, '__name__', hint)}`"
    return _PLURALS.get(name, name) if several else name


def _prose(text: str) -> str:
    """Return a text of a docstring in one paragraph of Markdown: what is code stays, other signs are signs."""
    pieces = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(piece if piece.startswith("`") else re.sub(r"([*_<\[\]|{}])", r"\\\1", piece) for piece in pieces)
