"""Prompts by a chat model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from flgen.errors import UsageError
from flgen.synthesis.endpoint import Endpoint, EndpointOptions
from flgen.synthesis.prompt_source import Item, PromptSource, Result
from flgen.synthesis.templates import Modality, Templates

OPTION = "--prompts.endpoint"

INSTRUCTIONS: dict[Modality, str] = {
    "image": "Write {count} prompts for a text-to-image model. Each describes, in 5 to 25 words, one realistic photo "
    'whose subject is "{label}". Vary view, place, light, number and kind.',
    "sound": "Write {count} prompts for a text-to-audio model. Each describes, in 5 to 25 words, one recording in "
    'which "{label}" is what is heard. Vary source, distance, place and loudness.',
    "speech": 'Write {count} short sentences, of 3 to 12 words each, that a speaker says and that contain "{label}".',
    "text": "Write {count} requests to a language model. Each asks, in 5 to 25 words, for one short text of the class "
    '"{label}". Vary speaker, situation and style.',
}
"""What is asked for, by modality; the form of the answer and the prompts to avoid are added."""


class ChatPrompts(PromptSource):
    """Asks a chat model for prompts as a JSON list, in batches, naming the prompts that a label has already.

    What is missing after all retries comes from the built-in templates of the modality, or those given.

    Args:
        model: Name of the model at the endpoint.
        endpoint: Where the endpoint is, and how much may be asked of it.
        modality: What the prompts are for.
        instruction: What to ask for, with `{label}` and `{count}`; null takes the built-in text of the modality.
        batch: Most prompts per request.
        temperature: Of the model's sampling; null leaves it to the endpoint.
        max_tokens: Longest answer, tokens; null is no limit.
        max_tokens_name: What the endpoint calls this limit.
        send_seed: Whether requests have a seed; not every endpoint takes one.
        json_format: Whether to ask for `response_format: json_object`; not every endpoint takes it.
        extra_body: Further fields of every request.
        templates: Templates for what is missing; null takes the built-in ones.

    Raises:
        UsageError: An option is out of its range.

    Source: specification of GPT-FL, sections 3.1 and 3.6.
    """

    provider = "openai"

    def __init__(
        self,
        model: str,
        endpoint: EndpointOptions,
        modality: Modality = "image",
        instruction: str | None = None,
        batch: int = 50,
        temperature: float | None = 1.0,
        max_tokens: int | None = 4096,
        max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        send_seed: bool = False,
        json_format: bool = False,
        extra_body: dict[str, Any] | None = None,
        templates: list[str] | None = None,
    ) -> None:
        if batch < 1:
            raise UsageError(f"--prompts.batch is {batch}: give 1 or more")
        if max_tokens is not None and max_tokens < 1:
            raise UsageError(f"--prompts.max_tokens is {max_tokens}: give 1 or more, or null")
        self.model = model
        self.endpoint = endpoint
        self.modality = modality
        self.instruction = check_instruction(instruction)
        self.batch = batch
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.max_tokens_name = max_tokens_name
        self.send_seed = send_seed
        self.json_format = json_format
        self.extra_body = extra_body
        self.templates = templates
        self._fallback = Templates(templates, modality)
        self._endpoint = Endpoint(endpoint, OPTION)

    def propose(self, label: str, count: int, taken: Sequence[str], attempt: int, seed: int) -> list[str]:
        """Return the prompts of one answer; none if it holds no list of texts."""
        answer = self._endpoint.post_json("chat/completions", self._body(label, count, taken, seed), repeat=attempt)
        return [text for content in _contents(answer) for text in texts_of_list(content)]

    def fallback(self) -> Templates:
        return self._fallback

    def in_order(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        return self._endpoint.in_order(function, items)

    def summary(self) -> str:
        return self._endpoint.summary()

    def _body(self, label: str, count: int, taken: Sequence[str], seed: int) -> dict[str, Any]:
        instruction = (self.instruction or INSTRUCTIONS[self.modality]).format(label=label, count=count)
        form = '{"prompts": [...]}' if self.json_format else "a JSON list of strings"
        asked = f'{instruction} Every one contains "{label}". Answer with {form} and nothing else.'
        if taken:
            asked += f" These are there already, write others: {json.dumps(list(taken), ensure_ascii=False)}"
        body: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": asked}]}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.max_tokens is not None:
            body[self.max_tokens_name] = self.max_tokens
        if self.send_seed:
            body["seed"] = seed % 2**31
        if self.json_format:
            body["response_format"] = {"type": "json_object"}
        return {**body, **(self.extra_body or {})}


def check_instruction(instruction: str | None) -> str | None:
    """Return an instruction after making sure that label and count, and nothing else, can be filled in."""
    if instruction is None:
        return None
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(instruction) if name is not None}
    except ValueError as error:
        raise UsageError(f"--prompts.instruction cannot be filled in ({error}): double a brace that is meant") from None
    if "label" not in fields or fields - {"label", "count"}:
        raise UsageError("--prompts.instruction needs {label}, may have {count}, and no other field in braces")
    return instruction


def texts_of_list(content: str) -> list[str]:
    """Return the texts of the first JSON list of texts in an answer, up to where a cut-off answer ends.

    Args:
        content: What the model said; there may be other text around the list.
    """
    decoder = json.JSONDecoder()
    for start in (at for at, character in enumerate(content) if character == "["):
        texts, rest = [], content[start + 1 :].lstrip()
        while rest:
            try:
                text, end = decoder.raw_decode(rest)
            except json.JSONDecodeError:
                break
            if not isinstance(text, str):
                break
            texts.append(text)
            rest = rest[end:].lstrip()
            if not rest.startswith(","):
                break
            rest = rest[1:].lstrip()
        if texts:
            return texts
    return []


def _contents(answer: dict[str, Any]) -> list[str]:
    try:
        return [str(choice["message"]["content"] or "") for choice in answer["choices"]]
    except (KeyError, TypeError):
        return []
