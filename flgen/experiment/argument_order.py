"""What is typed after a command, option by option, and an order in which options find the class that they belong to.

The parser takes an option of a class only after the class itself. Who types `--method.mu 1 --method FedProx` means the
same as who types it the other way round, and programs that write command lines (an agent of a sweep) have an order of
their own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TypedOption:
    """One option as it was typed.

    Args:
        name: Its name without dashes; empty for words before the first option.
        words: `--NAME=VALUE`, or `--NAME` and what follows it.
    """

    name: str
    words: tuple[str, ...]

    @property
    def value(self) -> str | None:
        """What is given for it; None if it stands alone."""
        if "=" in self.words[0]:
            return self.words[0].partition("=")[2]
        return self.words[1] if len(self.words) > 1 else None


def split_options(arguments: Sequence[str]) -> list[TypedOption]:
    """Return the options of a command line, in their order.

    Args:
        arguments: What is typed after the command's name.
    """
    found: list[list[str]] = []
    for word in arguments:
        if word.startswith("--") or word == "-h" or not found:
            found.append([word])
        else:
            found[-1].append(word)
    return [TypedOption(_name(words[0]), tuple(words)) for words in found]


def take_options(arguments: Sequence[str], names: Collection[str]) -> tuple[list[str], list[str]]:
    """Return the words of some options, and all other words.

    Args:
        arguments: What is typed after the command's name.
        names: The options, without dashes.
    """
    taken: list[str] = []
    left: list[str] = []
    for option in split_options(arguments):
        (taken if option.name in names else left).extend(option.words)
    return taken, left


def classes_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with every option behind the first choice of the class that it belongs to.

    `--method.mu 1 --method FedProx` becomes `--method FedProx --method.mu 1`. All else stays where it is, `--config`
    too: of two values for one option the later one wins.

    Args:
        arguments: What is typed after the command's name.
    """
    options = split_options(arguments)
    names = [_plain(option.name) for option in options]
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        first.setdefault(name, index)

    def place(index: int) -> int:
        parts = names[index].split(".")
        above = [first.get(".".join(parts[:depth]), index) for depth in range(1, len(parts))]
        return max([index, *(place(chosen) for chosen in above if chosen > index)])

    order = sorted(range(len(options)), key=lambda index: (place(index), names[index].count("."), index))
    return [word for index in order for word in options[index].words]


def _name(word: str) -> str:
    return word[2:].partition("=")[0] if word.startswith("--") else ""


def _plain(name: str) -> str:
    """Return `method.mu` for `method.init_args.mu`, and `method` for `method.class_path`, which chooses the class."""
    return ".".join(part for part in name.removesuffix(".class_path").split(".") if part != "init_args")
