"""JSON and YAML that somebody else may have written, read as plain values: no objects, bounded depth and size.

A text of a few hundred bytes can stand for more values than memory holds (YAML's aliases, "billion laughs"), or be
nested deeper than Python recurses. Here both are a ValueError like any other mistake, before the values are made.
"""

from __future__ import annotations

import json
import re
from typing import Any

DEEPEST = 100
"""Lists and mappings inside one another, more than any file of flgen has."""

MOST_VALUES = 200_000
"""Values of one YAML text once every alias stands for what it repeats; a sweep's configuration has hundreds."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class NotPlainError(ValueError):
    """A text is not what it should be, or too deep or too large; the message is one line."""


def json_value(text: str | bytes) -> Any:
    """Return what a JSON text says.

    Args:
        text: The text, or its bytes in UTF-8.

    Raises:
        NotPlainError: It is no JSON, nested deeper than DEEPEST, or has half of a surrogate pair.
    """
    try:
        text = text if isinstance(text, str) else text.decode()
        if text.count("[") + text.count("{") > DEEPEST and _depth(text) > DEEPEST:
            raise NotPlainError(f"it is nested deeper than {DEEPEST} levels")
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except NotPlainError:
        raise
    except (ValueError, RecursionError) as error:
        raise NotPlainError(_reason(error)) from error
    return value


def yaml_value(text: str) -> Any:
    """Return what a YAML text says.

    Args:
        text: The text.

    Raises:
        NotPlainError: It is no YAML, asks for other objects than plain values, refers to itself, or has more than
            DEEPEST levels or MOST_VALUES values.
    """
    import yaml

    try:
        check_yaml(text)
        return yaml.safe_load(text)
    except NotPlainError:
        raise
    except Exception as error:  # the constructors of tags such as !!timestamp raise errors of every kind
        raise NotPlainError(_reason(error)) from error


def check_yaml(text: str) -> None:
    """Refuse a text whose values would be too many or too deep, looking at its events alone.

    Values that are texts again may be read as YAML later, by the parser of the options: they are checked, too.

    Raises:
        NotPlainError: It is such a text.
        yaml.YAMLError: It is no YAML.
    """
    import yaml

    sizes: dict[str, int] = {}  # by anchor, what it stands for
    open_nodes: list[tuple[str | None, int]] = []  # of every list or mapping that is not at its end: anchor, size

    def add(size: int, anchor: str | None) -> None:
        if anchor is not None:
            sizes[anchor] = size
        if open_nodes:
            above, so_far = open_nodes.pop()
            size += so_far
            open_nodes.append((above, size))
        if size > MOST_VALUES:
            raise NotPlainError(f"it has more than {MOST_VALUES} values")

    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise NotPlainError(f"*{event.anchor} stands for what it is part of, or for nothing")
            add(sizes[event.anchor], None)
        elif isinstance(event, yaml.ScalarEvent):
            if any(sign in event.value for sign in "[{&") and len(event.value) < len(text):
                _check_inner(event.value)
            add(1, event.anchor)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > DEEPEST:
                raise NotPlainError(f"it is nested deeper than {DEEPEST} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
            add(size, anchor)


def _check_inner(text: str) -> None:
    import yaml

    try:
        check_yaml(text)
    except yaml.YAMLError:
        return  # it is a text and nothing else


def _depth(text: str) -> int:
    """Return how deep brackets outside of strings are nested."""
    depth = deepest = 0
    for sign in re.findall(r'"(?:[^"\\]|\\.)*"|[\[{\]}]', text):
        depth += (sign in "[{") - (sign in "]}")
        deepest = max(deepest, depth)
    return deepest


def _reason(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        line = "" if error.lineno == 1 else f"line {error.lineno}, "
        return f"{error.msg} at {line}column {error.colno}"
    return " ".join(str(error).replace('in "<unicode string>", ', "").split())[:200] or type(error).__name__
