"""A part of the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it.

    Args:
        anchor: Its name in links within the page.
        title: The heading.
        template: The file under `template/` that lays it out.
        content: What that file shows.
    """

    anchor: str
    title: str
    template: str
    content: Mapping[str, Any]
