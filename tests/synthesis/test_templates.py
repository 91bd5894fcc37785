"""Prompts from templates."""

from __future__ import annotations

import pytest

from flgen.errors import UsageError
from flgen.synthesis.templates import BUILT_IN, Templates, filled


def test_the_plainest_come_first() -> None:
    first = {modality: Templates(modality=modality).propose("airplane", 1, [], 0, 0) for modality in BUILT_IN}
    assert first["image"] == ["a photo of an airplane"]
    assert first["sound"] == ["a sound of airplane"]
    assert first["speech"] == ["airplane"]


def test_there_are_as_many_as_images_need_by_default() -> None:
    assert len(set(Templates().propose("cat", 200, [], 0, 0))) == 200
    assert len(Templates().propose("cat", 1000, [], 0, 0)) == 200


def test_a_word_to_be_spoken_is_itself_and_has_no_other_prompt() -> None:
    assert Templates(modality="speech").propose("yes", 200, [], 0, 0) == ["yes"]


def test_taken_prompts_are_not_proposed() -> None:
    templates = Templates(["a {label}", "the {label}", "a {label}"])
    assert templates.propose("cat", 5, ["a cat"], 0, 0) == ["the cat"]


def test_templates_of_ones_own() -> None:
    assert Templates(["a flower photo of {label}"]).propose("rose", 3, [], 0, 0) == ["a flower photo of rose"]
    assert [filled("{a} {label}", label) for label in ("8", "1", "Eagle")] == ["an 8", "a 1", "an Eagle"]
    assert filled("{a} {label} {{x}}", "owl") == "an owl {x}"


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ([], "--prompts.templates is empty"),
        (["a photo"], r"'a photo' has no \{label\}"),
        (["{label} {colour}"], r"has \{colour\}; there are \{label\} and \{a\}"),
        (["{label} {"], r"cannot be filled in .*write \{\{ for a brace"),
    ],
)
def test_a_text_that_is_no_template_is_refused(templates: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Templates(templates)
