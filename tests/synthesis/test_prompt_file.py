"""prompts.jsonl, as programs write it and as people edit it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flgen.errors import FlgenError
from flgen.synthesis.prompt_file import Prompt, prompt_id, read_prompt_file, write_prompt_file

LABELS = ["cat", "pink primrose", "ship"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "prompts.jsonl"


def test_what_is_written_is_read(file: Path) -> None:
    prompts = [
        Prompt("a", 0, "cat", "a “quoted” cat, größer", "model", "openai", "m"),
        Prompt("b", 2, "ship", "a photo of a ship", "template", "templates"),
    ]
    write_prompt_file(prompts, file)
    assert read_prompt_file(file) == read_prompt_file(file, LABELS) == prompts
    assert "größer" in file.read_text(encoding="utf-8")
    assert [path.name for path in file.parent.iterdir()] == ["prompts.jsonl"]


def test_two_keys_are_enough_for_a_line_written_by_hand(file: Path) -> None:
    file.write_text(
        '\ufeff{"label": "Pink_Primrose", "prompt": " a pink  primrose "}\r\n\n{"class_id": 0, "prompt": "my cat"}\n',
        encoding="utf-8",
    )
    first, second = read_prompt_file(file, LABELS)
    identity = prompt_id(1, "a pink primrose")
    assert first == Prompt(identity, 1, "pink primrose", "a pink primrose", "edited", "hand", None)
    assert (second.class_id, second.label, second.source) == (0, "cat", "edited")


def test_a_line_by_hand_finds_its_class_among_the_others(file: Path) -> None:
    file.write_text(
        '{"class_id": 4, "label": "cat", "prompt": "a"}\n{"label": "cat", "prompt": "b"}\n'
        '{"class_id": 4, "prompt": "c"}\n'
    )
    assert [(prompt.class_id, prompt.label) for prompt in read_prompt_file(file)] == [(4, "cat")] * 3


def test_a_derived_id_depends_on_class_and_text_alone(file: Path) -> None:
    lines = [{"label": label, "prompt": text} for label in ("cat", "ship") for text in ("a", "b")]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ids = {prompt.prompt + prompt.label: prompt.id for prompt in read_prompt_file(file, LABELS)}
    file.write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)))
    assert {prompt.prompt + prompt.label: prompt.id for prompt in read_prompt_file(file, LABELS)} == ids
    assert len(set(ids.values())) == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"label": "cat", "prompt": ', "no JSON object: Expecting value at column 28$"),
        ("a photo of a cat", "no JSON object: "),
        ('["cat"]', r'no JSON object; write \{"label"'),
        ('{"label": "cat", "promt": "x"}', "unknown key 'promt'; did you mean 'prompt'?"),
        ('{"label": "cat"}', '"prompt" is missing or empty'),
        ('{"label": "cat", "prompt": "  "}', '"prompt" is missing or empty'),
        ('{"label": "cat", "prompt": 3}', '"prompt" is 3; write a text'),
        ('{"prompt": "x"}', 'neither "label" nor "class_id"'),
        ('{"label": "ships", "prompt": "x"}', "unknown label 'ships'; did you mean 'ship'?"),
        ('{"class_id": 3, "prompt": "x"}', '"class_id" is 3; write 0 to 2'),
        ('{"class_id": -1, "prompt": "x"}', '"class_id" is -1; write 0 to 2'),
        ('{"class_id": true, "prompt": "x"}', '"class_id" is True; write a whole number'),
        ('{"class_id": 2, "label": "cat", "prompt": "x"}', "\"label\" is 'cat', but class 2 is 'ship'"),
        ('{"id": "first", "label": "cat", "prompt": "x"}', "id 'first' is that of line 1; change it"),
        ('{"label": "cat", "prompt": "same"}', "is that of line 2; change it"),
    ],
)
def test_a_wrong_line_is_named(file: Path, line: str, message: str) -> None:
    file.write_text(f'{{"id": "first", "label": "cat", "prompt": "w"}}\n{{"label":"cat","prompt":"same"}}\n\n{line}\n')
    with pytest.raises(FlgenError, match=message.replace("?", r"\?")) as caught:
        read_prompt_file(file, LABELS)
    assert str(caught.value).startswith(f"{file}:4: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"class_id": 7, "prompt": "x"}', '"label" is missing, and class 7 has none so far'),
        ('{"class_id": 7, "label": "cat", "prompt": "x"}', "label 'cat' is that of class 4, not of 7"),
        ('{"class_id": -7, "label": "dog", "prompt": "x"}', '"class_id" is -7; write 0 or more'),
    ],
)
def test_without_a_list_of_labels_the_file_must_agree_with_itself(file: Path, line: str, message: str) -> None:
    file.write_text(f'{{"class_id": 4, "label": "cat", "prompt": "w"}}\n{line}\n')
    with pytest.raises(FlgenError, match=message):
        read_prompt_file(file)


def test_a_missing_file_and_one_that_is_no_text_are_one_line(file: Path) -> None:
    with pytest.raises(FlgenError, match=r"cannot be read \(No such file or directory\): `flgen prompts`"):
        read_prompt_file(file)
    file.write_bytes(b"\x80\x81")
    with pytest.raises(FlgenError, match="no text in UTF-8"):
        read_prompt_file(file)
