"""From labels to prompts, one label after the other: a run that was killed goes on with the next one.

Specification of GPT-FL, sections 1.1 (stage S1) and 3.1.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.federation.streams import RandomStreams
from flgen.synthesis.prompt_file import Prompt, prompt_id, read_prompt_file, write_prompt_file
from flgen.synthesis.prompt_source import PromptSource

if TYPE_CHECKING:
    from flgen.privacy import label_table
else:
    label_table = deferred_module("flgen.privacy.label_table")

log = logging.getLogger("flgen")

MANY_CLASSES = 100
FEWEST_WORDS, MOST_WORDS = 3, 40
RETRIES = 5
_TOKEN = re.compile(r"<\|?\w+\|?>|\[/?INST\]")  # what a language model marks its own text with


@dataclass(frozen=True)
class PromptReport:
    """What `write_prompts` did.

    Args:
        labels: Number of labels.
        prompts: Number of prompts in the file.
        from_templates: How many of them are templates that a label was filled into.
        kept: Labels that had prompts in the file already.
        short: Labels with fewer prompts than were asked for, and how many those have.
    """

    labels: int
    prompts: int
    from_templates: int
    kept: int
    short: Mapping[str, int]

    def __str__(self) -> str:
        text = f"{self.prompts} prompts for {_labels(self.labels)}, {self.from_templates} from templates"
        if self.kept:
            text += f"; {_labels(self.kept)} had prompts already"
        if self.short:
            fewest = min(self.short, key=lambda label: self.short[label])
            text += f"; {_labels(len(self.short))} below the number asked for, {fewest!r} {self.short[fewest]}"
        return text


def _labels(count: int) -> str:
    return "1 label" if count == 1 else f"{count} labels"


def default_prompts_per_label(labels: int) -> int:
    """Return N_p: 200 prompts per label, 20 if there are 100 labels or more."""
    return 20 if labels >= MANY_CLASSES else 200


def write_prompts(
    labels: Sequence[str],
    source: PromptSource,
    path: str | os.PathLike[str],
    *,
    prompts_per_label: int | None = None,
    synonyms: Mapping[str, Sequence[str]] | None = None,
    require_label: bool = True,
    seed: int = 0,
) -> PromptReport:
    """Write the prompts of all labels into a file; labels that have prompts there keep them as they are.

    Args:
        labels: All labels, in the order of their class ids.
        source: What proposes prompts.
        path: The file, prompts.jsonl.
        prompts_per_label: N_p; None is `default_prompts_per_label`.
        synonyms: Other names of a label, by label; a prompt may contain one of them instead.
        require_label: Whether a prompt must contain its label or a synonym.
        seed: The run's seed.

    Raises:
        UsageError: There are no labels, two are the same, or a synonym is of none.
        FlgenError: The file holds something else, or the source fails; labels that are complete are in the file.

    Source: specification of GPT-FL, section 3.1.
    """
    names = _names(labels, synonyms or {})
    wanted = default_prompts_per_label(len(labels)) if prompts_per_label is None else prompts_per_label
    if wanted < 1:
        raise UsageError(f"--prompts_per_label is {wanted}: give 1 or more")
    streams = RandomStreams(seed)
    prompts = read_prompt_file(path, labels) if Path(path).exists() else []
    done = {prompt.class_id for prompt in prompts}

    def write_one(class_id: int) -> list[Prompt]:
        return prompts_of_label(
            class_id, labels[class_id], source, wanted, streams, names[class_id] if require_label else ()
        )

    short: dict[str, int] = {}
    missing = [class_id for class_id in range(len(labels)) if class_id not in done]
    for class_id, written in zip(missing, source.in_order(write_one, missing), strict=True):
        prompts = sorted([*prompts, *written], key=lambda prompt: prompt.class_id)
        write_prompt_file(prompts, path)
        if len(written) < wanted:
            short[labels[class_id]] = len(written)
        templates = sum(prompt.source == "template" for prompt in written)
        log.info(
            "label %d/%d %r: %d prompts, %d from templates",
            class_id + 1, len(labels), labels[class_id], len(written), templates,
        )  # fmt: skip
    templates = sum(prompt.source == "template" for prompt in prompts)
    return PromptReport(len(labels), len(prompts), templates, len(done), short)


def prompts_of_label(
    class_id: int,
    label: str,
    source: PromptSource,
    wanted: int,
    streams: RandomStreams,
    names: Sequence[str] = (),
) -> list[Prompt]:
    """Return the prompts of one label.

    The source is asked until there are enough. It may fall short `RETRIES` times, beyond the calls that its batches
    need; then templates fill the rest, and the prompts say so.

    Args:
        class_id: Index of the label.
        label: The label.
        source: What proposes prompts.
        wanted: N_p, how many.
        streams: The run's random streams.
        names: What a prompt must contain one of; none if it need not.
    """
    words = as_words(label)
    accepted: dict[str, Prompt] = {}  # by normalised text

    def take(writer: PromptSource, proposed: Sequence[str], names: Sequence[str] | None) -> None:
        for text in proposed:
            text = " ".join(text.split())
            if len(accepted) < wanted and normalised(text) not in accepted:
                if names is not None and rejection(text, names):
                    continue
                fields = (writer.source, writer.provider, writer.model)
                accepted[normalised(text)] = Prompt(prompt_id(class_id, text), class_id, label, text, *fields)

    rule = None if source.source == "template" else names
    batch = source.batch or wanted
    for attempt in range(-(-wanted // batch) + (0 if rule is None else RETRIES)):
        if len(accepted) == wanted:
            break
        texts = [prompt.prompt for prompt in accepted.values()]
        stream = streams.seed_for(f"prompts/{label}", round=attempt)
        take(source, source.propose(words, min(batch, wanted - len(texts)), texts, attempt, stream), rule)
    fallback = source.fallback()
    if fallback is not None and len(accepted) < wanted:
        texts = [prompt.prompt for prompt in accepted.values()]
        take(fallback, fallback.propose(words, wanted, texts, 0, 0), None)
    return list(accepted.values())


def rejection(prompt: str, names: Sequence[str]) -> str | None:
    """Return why a prompt of a language model is not taken, None if it is.

    Args:
        prompt: The text, without white space around it.
        names: What it must contain one of, as whole words (a plural's s is allowed); none if it need not.

    Source: specification of GPT-FL, section 3.1.
    """
    words = len(prompt.split())
    if not FEWEST_WORDS <= words <= MOST_WORDS:
        return f"it has {words} words, not {FEWEST_WORDS} to {MOST_WORDS}"
    if not prompt.isprintable() or _TOKEN.search(prompt):
        return "it has characters or tokens that are no text"
    text = normalised(prompt)
    if names and not any(re.search(rf"(?<!\w){re.escape(normalised(name))}(?:e?s)?(?!\w)", text) for name in names):
        return f"it does not contain {' or '.join(repr(name) for name in names)}"
    return None


def normalised(text: str) -> str:
    """Return a text without what makes no difference: case, punctuation, spacing."""
    canonical: str = label_table.canonical(text)
    return " ".join(re.sub(r"[^\w]+", " ", canonical).split()) or canonical


def as_words(label: str) -> str:
    """Return a label as it stands in a text: `_` is a blank."""
    return " ".join(label.replace("_", " ").split())


def _names(labels: Sequence[str], synonyms: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """Return the names of every label, its own first."""
    if not labels:
        raise UsageError("there are no labels to write prompts for: give --labels, --data or --label_names")
    class_of: dict[str, int] = {}
    for class_id, label in enumerate(labels):
        same = class_of.setdefault(label_table.canonical(label), class_id)
        if not as_words(label):
            raise UsageError(f"label {class_id} is empty: name every class")
        if same != class_id:
            raise UsageError(f"labels {labels[same]!r} and {label!r} are the same: classes {same} and {class_id}")
    names: list[tuple[str, ...]] = [(as_words(label),) for label in labels]
    for label, others in synonyms.items():
        known = class_of.get(label_table.canonical(label))
        if known is None:
            close = difflib.get_close_matches(label, labels, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "there is no such label"
            raise UsageError(f"--synonyms: {label!r} is no label; {hint}")
        names[known] += tuple(others)
    return names
