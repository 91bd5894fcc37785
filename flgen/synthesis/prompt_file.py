"""prompts.jsonl: what a generator is asked for, one prompt a line, for programs and for people who edit it.

A line is a JSON object with the fields of `Prompt`. Who adds a line by hand needs two of them, `label` (or `class_id`)
and `prompt`.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError
from flgen.experiment.plain_values import NotPlainError, json_value
from flgen.experiment.records import atomic_replace

if TYPE_CHECKING:
    from flgen.privacy import label_table
else:
    label_table = deferred_module("flgen.privacy.label_table")


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Args:
        id: Its name, of which a file has no other; samples made from it refer to it.
        class_id: Index of its label among all labels.
        label: The label.
        prompt: The text that a generator gets.
        source: Who wrote it: "model" (a language model), "template" (a label was filled in) or "edited" (a person).
        provider: What wrote it, such as "templates", "openai" or "transformers".
        model: Name of the language model; None if there is none.

    Source: specification of GPT-FL, section 1.1.
    """

    id: str
    class_id: int
    label: str
    prompt: str
    source: str
    provider: str
    model: str | None = None


def prompt_id(class_id: int, prompt: str) -> str:
    """Return the id of a prompt that has none: it follows from class and text, not from its place in the file."""
    return f"{class_id}-{hashlib.blake2b(prompt.encode(), digest_size=6).hexdigest()}"


def write_prompt_file(prompts: Iterable[Prompt], path: str | os.PathLike[str]) -> None:
    """Write all prompts in one step: the file is either what it was, or complete."""
    with atomic_replace(Path(path)) as temporary:
        lines = (json.dumps(dataclasses.asdict(prompt), ensure_ascii=False) + "\n" for prompt in prompts)
        temporary.write_text("".join(lines), encoding="utf-8")


def read_prompt_file(path: str | os.PathLike[str], labels: Sequence[str] | None = None) -> list[Prompt]:
    """Return the prompts of a file, in its order.

    Args:
        path: The file.
        labels: All labels, in the order of their class ids; None takes classes and labels as the lines have them.

    Raises:
        FlgenError: The file is missing, or one of its lines is no prompt; the message names the line.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FlgenError(f"{file} is no text in UTF-8 (byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise FlgenError(f"{file} cannot be read ({error.strerror}): `flgen prompts` writes such a file") from None
    prompts: list[Prompt] = []
    line_of_id: dict[str, int] = {}
    label_of_class = dict(enumerate(labels or ()))
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            prompt = _parse(line, labels, label_of_class)
            if prompt.id in line_of_id:
                first = line_of_id[prompt.id]
                raise ValueError(f"id {prompt.id!r} is that of line {first}; change it, or remove one of the lines")
        except ValueError as error:
            raise FlgenError(f"{file}:{number}: {str(error)[:500]}") from None
        line_of_id[prompt.id] = number
        label_of_class.setdefault(prompt.class_id, prompt.label)
        prompts.append(prompt)
    return prompts


def _parse(line: str, labels: Sequence[str] | None, label_of_class: dict[int, str]) -> Prompt:
    """Return the prompt of one line; a ValueError says what is wrong with it."""
    try:
        entry = json_value(line)
    except NotPlainError as error:
        raise ValueError(f"no JSON object: {error}") from None
    if not isinstance(entry, dict):
        raise ValueError('no JSON object; write {"label": ..., "prompt": ...}')
    _check_fields(entry)
    text = " ".join(str(entry.get("prompt") or "").split())
    if not text:
        raise ValueError('"prompt" is missing or empty; write one, or remove the line')
    class_id, label = _class_of(entry, labels, label_of_class)
    return Prompt(
        id=entry.get("id") or prompt_id(class_id, text),
        class_id=class_id,
        label=label,
        prompt=text,
        source=entry.get("source") or "edited",
        provider=entry.get("provider") or "hand",
        model=entry.get("model"),
    )


def _check_fields(entry: dict[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(Prompt)]
    for name, value in entry.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise ValueError(f"unknown key {name!r}; {hint}")
        wanted = int if name == "class_id" else str
        if value is not None and (isinstance(value, bool) or not isinstance(value, wanted)):
            raise ValueError(f'"{name}" is {value!r}; write {"a whole number" if wanted is int else "a text"}')


def _class_of(entry: dict[str, Any], labels: Sequence[str] | None, label_of_class: dict[int, str]) -> tuple[int, str]:
    """Return class id and label of an entry that has both, or one from which the other follows."""
    class_id: int | None = entry.get("class_id")
    label: str | None = entry.get("label")
    same = {label_table.canonical(known): number for number, known in label_of_class.items()}
    if class_id is None:
        if not label:
            raise ValueError('neither "label" nor "class_id"; write one of them')
        class_id = same.get(label_table.canonical(label))
        if class_id is None:
            close = difflib.get_close_matches(label, label_of_class.values(), n=1)
            raise ValueError(f"unknown label {label!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    if class_id < 0 or (labels is not None and class_id >= len(labels)):
        most = "" if labels is None else f" to {len(labels) - 1}"
        raise ValueError(f'"class_id" is {class_id}; write 0{most or " or more"}')
    known_label = label_of_class.get(class_id)
    if known_label is None and not label:
        raise ValueError(f'"label" is missing, and class {class_id} has none so far; write it')
    if known_label is not None and label and label_table.canonical(label) != label_table.canonical(known_label):
        raise ValueError(f'"label" is {label!r}, but class {class_id} is {known_label!r}; change one of them')
    if known_label is None and label and same.get(label_table.canonical(label), class_id) != class_id:
        raise ValueError(f"label {label!r} is that of class {same[label_table.canonical(label)]}, not of {class_id}")
    return class_id, str(known_label or label)
