"""Names that exist before their heavy import: `flgen --help` reads every signature and never waits for torch.

Importing Lightning takes seconds. The parser only needs constructor signatures, so a class that the
configuration can name derives from `LightningModule` or `LightningDataModule` *of this module*, and its file
writes `torch = deferred_module("torch")`. The first instance, or the first attribute, does the import;
instances are then ordinary Lightning objects (`isinstance(Digits(), lightning.LightningDataModule)`).

`TYPE_CHECKING` is typing's. The parser runs the type-checking imports of a module that imports it from there;
imported from here, it is a type checker's business alone.
"""

from __future__ import annotations

import copyreg
import importlib
import sys
from typing import TYPE_CHECKING as TYPE_CHECKING
from typing import Any


class _DeferredModule:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # introspection by the parser must not trigger the import
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._name), attribute)


def deferred_module(name: str) -> Any:
    """Return a stand-in for the module `name` that is imported when one of its attributes is first used."""
    return _DeferredModule(name)


class _DeferredBase(type):
    """Metaclass of classes whose last base class, named by `deferred_base`, is added at the first instance."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return type.__call__(_completed(cls), *args, **kwargs)

    def __subclasses__(cls) -> list[type]:
        """Without the complete class, which is this one to everybody: the parser looks for subclasses by name."""
        complete = cls.__dict__.get("_complete_class")
        found: list[type] = type.__subclasses__(cls)  # type: ignore[arg-type]
        return [subclass for subclass in found if subclass is not complete]

    def __subclasscheck__(cls, subclass: type) -> bool:
        if type.__subclasscheck__(cls, subclass):
            return True
        module, _, name = cls.__dict__.get("deferred_base", "").rpartition(".")
        real = getattr(sys.modules.get(module), name, None)
        return real is not None and isinstance(subclass, type) and real in subclass.__mro__

    def __instancecheck__(cls, instance: Any) -> bool:
        return cls.__subclasscheck__(type(instance))


def _completed(cls: Any) -> Any:
    """Return a class with its last base, made at the first call."""
    complete = cls.__dict__.get("_complete_class")
    if complete is None:
        module, _, name = cls.deferred_base.rpartition(".")
        base = getattr(importlib.import_module(module), name)
        attributes = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
        complete = cls if issubclass(cls, base) else type(cls)(cls.__name__, (cls, base), attributes)
        complete._complete_class = cls._complete_class = complete
    return complete


def _reduced(cls: Any) -> Any:
    """Pickle a class by its name, and a complete one as made of the one that has that name."""
    named = cls.__bases__[0]
    made = cls.__dict__.get("_complete_class") is cls and named.__dict__.get("_complete_class") is cls
    return (_completed, (named,)) if made else cls.__qualname__


copyreg.pickle(_DeferredBase, _reduced)


if TYPE_CHECKING:
    from lightning import LightningDataModule as LightningDataModule
    from lightning import LightningModule as LightningModule
else:

    class LightningModule(metaclass=_DeferredBase):
        """lightning.LightningModule, imported at the first instance."""

        deferred_base = "lightning.LightningModule"

    class LightningDataModule(metaclass=_DeferredBase):
        """lightning.LightningDataModule, imported at the first instance."""

        deferred_base = "lightning.LightningDataModule"
