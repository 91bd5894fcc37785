"""One line from a parser's message: what is wrong, where, and the nearest valid name."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any, get_args

from jsonargparse import ArgumentParser

from flgen.deferred import TYPE_CHECKING
from flgen.experiment.class_paths import locate, option_groups, parameters_of, path_of, short_name, subclasses_of

if TYPE_CHECKING:
    from flgen.experiment.config import Section


def no_option(where: str, given: Any) -> str:
    """Say that something stands where options are given by name."""
    return f"--{where}: {given} is no option; give --{where}.NAME VALUE"


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
    keys = _keys_to_last(message)
    where = ".".join(keys)
    reasons = message.rpartition("Parser key")[2]
    if missing := re.search(r"File does not exist: '([^']+)'|Path is not a file: '([^']+)'", message):
        return f"--{where} {next(filter(None, missing.groups()))}: there is no such file"
    if denied := re.search(r"Importing '([^']+)' is not allowed", message):
        return (
            f"--{where} {denied.group(1)}: this belongs to Python's own library, of which a configuration can name "
            "nothing; give a class of flgen, of another package, or of a file of your own"
        )
    if "Problems parsing config" in message:
        return f"--config: not valid YAML: {one_line(message.partition('Problems parsing config:')[2])}"
    if required := re.search(r"following arguments are required: (.+)|Key '([^']+)' is required", message):
        names = [".".join([*keys, name.strip()]) for name in next(filter(None, required.groups())).split(",")]
        return f"missing: {', '.join('--' + name for name in names)}; give it here or in a --config"
    if keys and (plain := re.search(r"Unable to load config '(.*)'\n", message)):
        return no_option(".".join(keys[:-1]), plain.group(1))  # the last key is named twice
    if unknown := _UNKNOWN_KEY.search(reasons):
        given = next(filter(None, unknown.groups()))
        if not keys and not given.startswith("-") and "nrecognized" in message:
            return f"{given}: options are given as --NAME VALUE; this belongs to none"
        option = given.lstrip("-").partition("=")[0]
        if group := re.search(r"Group '([^']+)'", reasons):
            option = f"{group.group(1)}.{option}"
        owner = re.findall(r"given class_path '([^']+)'", message)
        if owner and keys:
            if any(section.name == where and path_of(section.type) == owner[-1] for section in sections):
                return f"--{where}.{option}: name the class first, by --{where} CLASS or in a --config before it"
            return f"--{where}.{option}: {_lacks(owner[-1], option)}"
        return f"--{option}: there is no such option{_nearest(option, _keys(parser))}"
    values = re.findall(r"(?:Given value|Got value): (.+)", reasons)
    unknown_classes = list(_UNKNOWN_CLASS.finditer(reasons))
    broken = re.search(r"given class_path '([^']+)':\s*(.+)", reasons)
    named = [name for found in unknown_classes for name in found.groups() if name]
    if named or (unknown_classes and not broken):  # in a list, a module that is not there is no class path either
        given = next(iter(named), values[0] if values else "")
        bases = _subtypes(message)
        if bases and is_dataclass(locate(bases[-1])):
            return no_option(where, given)
        names = _class_names(message, where, sections)
        return f"--{where} {given}: there is no such class{_nearest(short_name(given), names)}"
    if broken:
        return f"--{where} {broken.group(1)}: {one_line(broken.group(2))}"
    kinds = re.findall(r"Expected an? (.+?)(?:\. Got value.*)?$", reasons.partition("Given value:")[0], re.MULTILINE)
    kinds = [_kind(kind) for kind in kinds if "NoneType" not in kind]
    if not (keys and kinds and values):
        return one_line(message)
    if below := re.match(r"NestedArg\(key='([^']+)'", values[0]):
        return f"--{where}.{below.group(1)}: there is no such option; --{where} is one value"
    spelling = f"; write '[{values[0]}]'" if kinds == ["of type list"] and values[0][0] not in "{[" else ""
    return f"--{where}: {values[0]} is not {' or '.join(kinds)}{spelling}"


def _keys_to_last(message: str) -> list[str]:
    """Return the keys that lead down a message's tree to its last one; what stands beside them on the way is left."""
    path: list[tuple[int, str]] = []
    for key in re.finditer(r'^( *)(?:- )?Parser key "([^"]+)"', message, re.MULTILINE):
        depth = len(key.group(1))
        path = [(above, name) for above, name in path if above < depth] + [(depth, key.group(2))]
    return [name for _, name in path]


def _lacks(class_path: str, option: str) -> str:
    """Say what a class lacks of an option such as `training.epocs`: the part of it that does not exist."""
    name, _, rest = option.partition(".")
    while rest and (group := option_groups(class_path).get(name)):
        class_path, (name, _, rest) = path_of(group), rest.partition(".")
    return f"{short_name(class_path)} has no {name!r}{_nearest(name, parameters_of(class_path))}"


def _subtypes(message: str) -> list[str]:
    """Return the first of the types that would fit at each level of a message's tree."""
    return re.findall(r"Subtypes: \[<class '([^']+)'>", message)


def _class_names(message: str, where: str, sections: Sequence[Section]) -> list[str]:
    """Return the short names of the classes that fit where an unknown one was given."""
    bases = _subtypes(message)
    if bases:
        base = locate(bases[-1])
    else:
        type_ = next((section.type for section in sections if section.name == where.split(".")[0]), object)
        if type_ is object:
            return []
        base = next(iter(get_args(type_)), type_)
    base_itself, *below = subclasses_of(base)
    below = [name for name in below if not inspect.isabstract(locate(name))]
    return [short_name(name) for name in below or [base_itself]]


def _keys(parser: ArgumentParser) -> list[str]:
    return [option[2:] for option in parser._option_string_actions if option.startswith("--")]


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


def one_line(text: str) -> str:
    """Return a text without line breaks and without its last stop."""
    return " ".join(text.split()).rstrip(".")
