"""What writes prompts: the interface of templates and of language models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class PromptSource(ABC):
    """Something that proposes prompts for a label; `write_prompts` decides which are taken."""

    source: str = "model"
    """What a prompt's `source` becomes."""
    provider: str = ""
    """What a prompt's `provider` becomes."""
    model: str | None = None
    """What a prompt's `model` becomes."""
    batch: int | None = None
    """Most prompts that one call of `propose` is asked for; None is no limit."""

    @abstractmethod
    def propose(self, label: str, count: int, taken: Sequence[str], attempt: int, seed: int) -> list[str]:
        """Return prompts for a label; more or fewer than asked for, and poor ones, are allowed.

        Args:
            label: The label, as words.
            count: How many are wanted.
            taken: Prompts that the label has already.
            attempt: 0 for the first call about this label, and so on.
            seed: Of this label and attempt, 0 to 2^63 - 1.
        """

    def fallback(self) -> PromptSource | None:
        """Return what fills up the prompts that are missing in the end; None if nothing does."""
        return None

    def in_order(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield `function(item)` for each item in order; a source may work on several at once."""
        return map(function, items)

    def summary(self) -> str:
        """Return what the prompts took, such as their cost; empty if there is nothing to say."""
        return ""
