"""Calling callbacks' hooks, one of which is called after every local step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any

from lightning.fabric import Fabric

Hook = tuple[Callable[..., Any], Collection[str] | None]
"""A callback's method and the keyword arguments that it takes; None takes them all."""


class HookingFabric(Fabric):
    """Fabric that looks at the signature of a hook once, and then remembers what it takes.

    Fabric itself looks again at each call, which costs a tenth of a millisecond beside a local step of a few.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._hooks: dict[str, list[Hook]] = {}

    def call(self, hook_name: str, *args: Any, **kwargs: Any) -> None:
        """Call a hook of every callback that has it, leaving out keyword arguments that it does not take."""
        if hook_name not in self._hooks:
            methods = [getattr(callback, hook_name, None) for callback in self._callbacks]
            self._hooks[hook_name] = [(method, _keywords(method)) for method in methods if callable(method)]
        for hook, taken in self._hooks[hook_name]:
            hook(*args, **(kwargs if taken is None else {name: kwargs[name] for name in taken if name in kwargs}))


def _keywords(hook: Callable[..., Any]) -> Collection[str] | None:
    parameters = inspect.signature(hook).parameters.values()
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters]
