"""What can be said of classes by their dotted paths."""

from __future__ import annotations

from flgen.experiment.class_paths import path_of, subclasses_of


class Base:
    """What the others derive from."""


class Named(Base):
    """A class that a path leads to."""


def test_classes_made_inside_functions_are_left_out_and_those_below_them_are_not() -> None:
    class Inner(Base):
        """A class that no path leads to."""

    below = type("Below", (Inner,), {"__module__": __name__, "__qualname__": "Below"})
    assert subclasses_of(Base) == [path_of(Base), path_of(Named), path_of(below)]
