"""From labels to prompts: what is taken, what fills the rest, and what a second run does."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from flgen.errors import FlgenError, UsageError
from flgen.synthesis.prompt_file import read_prompt_file
from flgen.synthesis.prompt_source import PromptSource
from flgen.synthesis.prompts import (
    default_prompts_per_label,
    normalised,
    rejection,
    write_prompts,
)
from flgen.synthesis.templates import Templates


class Scripted(PromptSource):
    """Says what a function says, and remembers what it was asked."""

    provider, model = "script", "s"

    def __init__(self, say: Callable[[str, int], list[str]], batch: int | None = None) -> None:
        self.say, self.batch = say, batch
        self.asked: list[tuple[str, int, int, int]] = []

    def propose(self, label: str, count: int, taken: Sequence[str], attempt: int, seed: int) -> list[str]:
        self.asked.append((label, count, len(taken), attempt))
        return self.say(label, attempt)

    def fallback(self) -> Templates:
        return Templates(["a {label} on its own", "one {label} more"])


def numbered(label: str, attempt: int) -> list[str]:
    return [f"a photo of {label} number {attempt * 10 + index}" for index in range(10)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "prompts.jsonl"


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("a cat", "2 words"),
        ("cat " * 41, "41 words"),
        ("a black cat", None),
        ("cat " * 40, None),
        ("a black cat \x07 sits", "no text"),
        ("a cat <extra_id_0> sits", "no text"),
        ("a cat sits <|endoftext|>", "no text"),
        ("a dog in a field", "does not contain 'cat' or 'tabby cat' or 'kitty'"),
        ("education for all", "does not contain"),
        ("two Cats, asleep", None),
        ("the kitty-bowl is empty", None),
    ],
)
def test_what_is_taken_of_what_a_model_proposes(prompt: str, reason: str | None) -> None:
    found = rejection(prompt, ["cat", "tabby cat", "kitty"])
    assert found is None if reason is None else reason in (found or "")


def test_labels_of_several_words_and_signs() -> None:
    assert rejection("a photo of pink-yellow dahlias here", ["pink yellow dahlia"]) is None
    assert rejection("I use C++ every day", ["C++"]) is None
    assert rejection("the number 7 in blue", ["7"]) is None
    assert rejection("the number 17 in blue", ["7"]) is not None


def test_what_makes_no_difference() -> None:
    assert normalised("A  Cat, asleep!") == normalised("a cat asleep") == "a cat asleep"


def test_how_many_by_default() -> None:
    assert [default_prompts_per_label(labels) for labels in (10, 99, 100, 102)] == [200, 200, 20, 20]


def test_a_label_is_asked_for_in_batches_until_it_has_enough(file: Path) -> None:
    source = Scripted(numbered, batch=10)
    report = write_prompts(["cat", "dog"], source, file, prompts_per_label=25)
    assert source.asked[:3] == [("cat", 10, 0, 0), ("cat", 10, 10, 1), ("cat", 5, 20, 2)]
    prompts = read_prompt_file(file, ["cat", "dog"])
    assert [prompt.class_id for prompt in prompts] == [0] * 25 + [1] * 25
    assert {(prompt.source, prompt.provider, prompt.model) for prompt in prompts} == {("model", "script", "s")}
    assert len({prompt.id for prompt in prompts}) == 50
    assert str(report) == "50 prompts for 2 labels, 0 from templates"


def test_what_a_model_does_not_bring_about_comes_from_templates(file: Path) -> None:
    source = Scripted(lambda label, attempt: ["A cat sits here.", "a CAT sits here", "a dog sits here", "cat"])
    report = write_prompts(["cat"], source, file, prompts_per_label=3)
    assert len(source.asked) == 1 + 5
    prompts = read_prompt_file(file)
    assert [(prompt.prompt, prompt.source) for prompt in prompts] == [
        ("A cat sits here.", "model"),
        ("a cat on its own", "template"),
        ("one cat more", "template"),
    ]
    assert (report.from_templates, report.short) == (2, {})


def test_fewer_than_asked_for_is_said(file: Path) -> None:
    report = write_prompts(["yes", "no"], Templates(modality="speech"), file)
    assert [prompt.prompt for prompt in read_prompt_file(file)] == ["yes", "no"]
    assert report.short == {"yes": 1, "no": 1}
    assert "2 labels below the number asked for, 'yes' 1" in str(report)


def test_a_synonym_is_as_good_as_the_label(file: Path) -> None:
    source = Scripted(lambda label, attempt: ["a big plane lands", "a boat on a lake"])
    write_prompts(["airplane"], source, file, prompts_per_label=2, synonyms={"Airplane": ["plane"]})
    assert [prompt.prompt for prompt in read_prompt_file(file)] == ["a big plane lands", "a airplane on its own"]


def test_the_label_may_be_left_out_on_demand(file: Path) -> None:
    source = Scripted(lambda label, attempt: ["some words in between", "few words"])
    write_prompts(["cat"], source, file, prompts_per_label=1, require_label=False)
    assert [prompt.prompt for prompt in read_prompt_file(file)] == ["some words in between"]


def test_seeds_depend_on_run_label_and_attempt_alone(tmp_path: Path) -> None:
    class Seeded(Scripted):
        def propose(self, label: str, count: int, taken: Sequence[str], attempt: int, seed: int) -> list[str]:
            seeds.setdefault(label, []).append(seed)
            return []

    drawn = []
    for number, (labels, seed) in enumerate(((["cat", "dog"], 1), (["ant", "cat"], 1), (["cat"], 2))):
        seeds: dict[str, list[int]] = {}
        write_prompts(labels, Seeded(numbered), tmp_path / f"{number}.jsonl", prompts_per_label=1, seed=seed)
        drawn.append(seeds)
    assert drawn[0]["cat"] == drawn[1]["cat"]
    assert len({*drawn[0]["cat"], *drawn[0]["dog"], *drawn[2]["cat"]}) == 3 * 6


def test_a_killed_run_goes_on_with_the_next_label(file: Path) -> None:
    labels = ["cat", "dog", "owl"]

    def until_dog(label: str, attempt: int) -> list[str]:
        if label == "dog":
            raise KeyboardInterrupt
        return numbered(label, attempt)

    with pytest.raises(KeyboardInterrupt):
        write_prompts(labels, Scripted(until_dog), file, prompts_per_label=5)
    assert {prompt.label for prompt in read_prompt_file(file)} == {"cat"}

    source = Scripted(numbered)
    report = write_prompts(labels, source, file, prompts_per_label=5)
    assert [label for label, *_ in source.asked] == ["dog", "owl"]
    assert report.kept == 1
    whole = file.with_name("whole.jsonl")
    write_prompts(labels, Scripted(numbered), whole, prompts_per_label=5)
    assert file.read_bytes() == whole.read_bytes()


def test_what_a_person_wrote_stays(file: Path) -> None:
    file.write_text(json.dumps({"label": "dog", "prompt": "my dog"}) + "\n")
    write_prompts(["cat", "dog"], Templates(), file, prompts_per_label=2)
    assert [(prompt.prompt, prompt.source) for prompt in read_prompt_file(file)] == [
        ("a photo of a cat", "template"),
        ("a close-up photo of a cat", "template"),
        ("my dog", "edited"),
    ]
    before = file.read_bytes()
    report = write_prompts(["cat", "dog"], Templates(), file, prompts_per_label=50)
    assert file.read_bytes() == before
    assert report.kept == 2


def test_a_file_of_other_labels_is_refused(file: Path) -> None:
    write_prompts(["cat", "dog"], Templates(), file, prompts_per_label=1)
    before = file.read_bytes()
    with pytest.raises(FlgenError, match=r"prompts\.jsonl:1: \"label\" is 'cat', but class 0 is 'bird'"):
        write_prompts(["bird", "cat"], Templates(), file, prompts_per_label=1)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([], {}, "no labels"),
        (["cat", " "], {}, "label 1 is empty"),
        (["hot_dog", "Hot dog"], {}, "labels 'hot_dog' and 'Hot dog' are the same: classes 0 and 1"),
        (["cat"], {"prompts_per_label": 0}, "--prompts_per_label is 0"),
        (["cat"], {"synonyms": {"cats": ["x"]}}, r"--synonyms: 'cats' is no label; did you mean 'cat'\?"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_line(
    file: Path, labels: list[str], options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        write_prompts(labels, Templates(), file, **options)  # type: ignore[arg-type]
    assert not file.exists()
