"""Prompts from templates: no model, no network, always the same."""

from __future__ import annotations

import string
from collections.abc import Sequence
from itertools import product
from typing import Literal

from flgen.errors import UsageError
from flgen.synthesis.prompt_source import PromptSource

Modality = Literal["image", "sound", "speech", "text"]

_VIEWS = [
    *("photo", "close-up photo", "wide shot", "photo from above", "photo from the side", "low-angle photo"),
    *("cropped photo", "bright photo", "dark photo", "black and white photo"),
]
_SURROUNDINGS = [
    *("", "in daylight", "at dusk", "indoors", "outdoors", "on a plain background", "in the rain", "in the snow"),
    *("in the fog", "in bright sunshine", "in the shade", "at night", "in the morning", "in the evening"),
    *("in the distance", "in a city", "in the countryside", "in summer", "in autumn", "in winter"),
]
_RECORDINGS = ["a sound of {label}", "a recording of {label}", "the sound of {label}", "{label}"]
_PLACES = ["", "in a studio", "in the field", "at home", "in an office", "in a street", "in a large hall"]
_PLACES += ["at a distance", "nearby", "outdoors"]
_SENTENCES = ("A sentence that expresses {label}:", "Somebody says something {label}:", "An example of {label}:")

BUILT_IN: dict[Modality, tuple[str, ...]] = {
    "image": tuple(f"a {view} of {{a}} {{label}} {place}".rstrip() for place, view in product(_SURROUNDINGS, _VIEWS)),
    "sound": tuple(f"{recording} {place}".rstrip() for place, recording in product(_PLACES, _RECORDINGS)),
    "speech": ("{label}",),
    "text": _SENTENCES,
}
"""The templates of each modality, the plainest first."""


class Templates(PromptSource):
    """Fills labels into templates; a label gets as many prompts as there are templates, at most.

    Args:
        templates: Texts with `{label}`, and `{a}` for its article (a or an); null takes the built-in ones.
        modality: Whose built-in templates to take. Words to be spoken have one, the word itself.

    Raises:
        UsageError: A template has no `{label}`, or fields that are not known, or there is none.

    Source: specification of GPT-FL, section 3.1.
    """

    source = "template"
    provider = "templates"

    def __init__(self, templates: list[str] | None = None, modality: Modality = "image") -> None:
        self.templates = templates
        self.modality = modality
        self._texts: Sequence[str] = BUILT_IN[modality] if templates is None else templates
        if not self._texts:
            raise UsageError("--prompts.templates is empty: give a text with {label}, or null for the built-in ones")
        for text in self._texts:
            check_template(text, "--prompts.templates")

    def propose(self, label: str, count: int, taken: Sequence[str], attempt: int, seed: int) -> list[str]:
        """Return the first `count` texts that are not taken; every attempt and seed gives the same."""
        texts = dict.fromkeys(filled(text, label) for text in self._texts)
        return [text for text in texts if text not in taken][:count]


def filled(template: str, label: str) -> str:
    """Return a template with a label, and its article, filled in."""
    return template.format(label=label, a="an" if label[:1].lower() in "aeiou8" else "a")


def check_template(template: str, option: str) -> None:
    """Make sure that a label, its article, and nothing else can be filled into a template.

    Raises:
        UsageError: It has no `{label}`, or unknown fields; the message names the option.
    """
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise UsageError(f"{option}: {template!r} cannot be filled in ({error}); write {{{{ for a brace") from None
    if unknown := sorted(fields - {"label", "a"}):
        raise UsageError(f"{option}: {template!r} has {{{unknown[0]}}}; there are {{label}} and {{a}}")
    if "label" not in fields:
        raise UsageError(f"{option}: {template!r} has no {{label}}: write it where the label goes")
