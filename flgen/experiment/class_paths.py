"""Classes by the dotted paths that a configuration names them by, and what can be said of them without an instance."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import is_dataclass
from typing import Any, get_type_hints


def path_of(type_: Any) -> str:
    """Return the dotted path of a class, nothing for what is none."""
    return f"{type_.__module__}.{type_.__qualname__}" if isinstance(type_, type) else ""


def locate(class_path: str) -> Any:
    """Return what stands at a dotted path."""
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def parameters_of(class_path: str) -> list[str]:
    """Return the names of a constructor's options, none for a class that cannot be looked at."""
    try:
        return list(inspect.signature(locate(class_path).__init__).parameters)[1:]
    except (ImportError, AttributeError, ValueError):
        return []


def option_groups(class_path: str) -> dict[str, type]:
    """Return the dataclasses among a constructor's options, by the option's name."""
    try:
        types = get_type_hints(locate(class_path).__init__)
    except (ImportError, AttributeError, NameError, TypeError):
        return {}
    return {name: type_ for name, type_ in types.items() if isinstance(type_, type) and is_dataclass(type_)}


def subclasses_of(base: type) -> list[str]:
    """Return the paths of a class and of all that derive from it, as far as they are imported.

    A class made inside a function or another class is left out: no configuration can name it.
    """
    found: list[str] = [path_of(base)]
    subclass: type
    for subclass in type.__subclasses__(base):
        itself, *below = subclasses_of(subclass)
        found += below if "." in subclass.__qualname__ else [itself, *below]
    return found


def short_name(class_path: str) -> str:
    """Return the last part of a dotted path."""
    return class_path.rpartition(".")[2]
