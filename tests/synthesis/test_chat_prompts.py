"""Prompts by a chat model, played by a server on the loopback."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import Answer, Asked, EndpointServer, chat_answer

from flgen.errors import FlgenError, UsageError
from flgen.synthesis.chat_prompts import ChatPrompts, texts_of_list
from flgen.synthesis.endpoint import EndpointOptions
from flgen.synthesis.prompt_file import read_prompt_file
from flgen.synthesis.prompts import write_prompts
from flgen.synthesis.request_budget import Prices

LABELS = ["cat", "dog", "owl"]

Connect = Callable[..., ChatPrompts]


def obliging(asked: Asked) -> Answer:
    """Answer with as many prompts as were asked for, none of which is there already."""
    text = asked.body["messages"][-1]["content"]
    count, label = re.match(r"Write (\d+) .*?\"([^\"]+)\"", text).groups()  # type: ignore[union-attr]
    there = len(texts_of_list(text.partition("already")[2]))
    return chat_answer(json.dumps([f"a photo of a {label} number {there + n}" for n in range(int(count))]))


@pytest.fixture
def connect(server: EndpointServer, key: str, tmp_path: Path) -> Connect:
    server.respond = obliging

    def connect(endpoint: dict[str, Any] | None = None, **options: Any) -> ChatPrompts:
        reached: dict[str, Any] = {"base_url": server.url, "backoff_s": 0.01, "cache_dir": str(tmp_path / "answers")}
        reached |= endpoint or {}
        return ChatPrompts("m", EndpointOptions(**reached), **options)

    return connect


def test_prompts_come_in_batches_that_name_those_that_are_there(
    connect: Connect, server: EndpointServer, tmp_path: Path
) -> None:
    report = write_prompts(["cat"], connect(batch=4), tmp_path / "p.jsonl", prompts_per_label=10)
    prompts = read_prompt_file(tmp_path / "p.jsonl")
    assert [prompt.prompt for prompt in prompts] == [f"a photo of a cat number {n}" for n in range(10)]
    assert {(prompt.source, prompt.provider, prompt.model) for prompt in prompts} == {("model", "openai", "m")}
    assert report.from_templates == 0
    first, second, third = [asked.body["messages"][0]["content"] for asked in server.asked]
    assert first.startswith("Write 4 prompts")
    assert "already" not in first
    assert 'already, write others: ["a photo of a cat number 0"' in second
    assert third.startswith("Write 2 prompts")


def test_a_rerun_asks_nothing_twice(connect: Connect, server: EndpointServer, tmp_path: Path) -> None:
    for name in ("first.jsonl", "second.jsonl"):
        source = connect(batch=5)
        write_prompts(["cat", "dog"], source, tmp_path / name, prompts_per_label=10)
    assert len(server.asked) == 4
    assert (tmp_path / "first.jsonl").read_bytes() == (tmp_path / "second.jsonl").read_bytes()
    assert source.summary().startswith("0 requests, 4 answers from the cache")


def test_a_failure_keeps_the_labels_that_are_complete(connect: Connect, server: EndpointServer, tmp_path: Path) -> None:
    server.respond = lambda asked: Answer(status=400) if "dog" in str(asked.body) else obliging(asked)
    with pytest.raises(FlgenError, match="answered 400"):
        write_prompts(LABELS, connect({"concurrency": 1}), tmp_path / "p.jsonl", prompts_per_label=2)
    assert {prompt.label for prompt in read_prompt_file(tmp_path / "p.jsonl")} == {"cat"}
    server.respond = obliging
    before = len(server.asked)
    write_prompts(LABELS, connect(), tmp_path / "p.jsonl", prompts_per_label=2)
    written = [prompt.label for prompt in read_prompt_file(tmp_path / "p.jsonl")]
    assert written == ["cat", "cat", "dog", "dog", "owl", "owl"]
    assert len(server.asked) - before == 2


def test_several_labels_are_asked_for_at_once_and_stand_in_order(
    connect: Connect, server: EndpointServer, tmp_path: Path
) -> None:
    def slow(asked: Asked) -> Answer:
        return Answer(obliging(asked).content, delay_s=0.2)

    server.respond = slow
    labels = [f"thing {n}" for n in range(6)]
    write_prompts(labels, connect({"concurrency": 3}), tmp_path / "p.jsonl", prompts_per_label=2)
    assert server.most_at_once == 3
    assert [prompt.class_id for prompt in read_prompt_file(tmp_path / "p.jsonl")] == [n // 2 for n in range(12)]


def test_poor_answers_are_asked_again_and_the_rest_is_templates(
    connect: Connect, server: EndpointServer, tmp_path: Path
) -> None:
    answers = ["I cannot do that.", '["a cat", "a cat asleep indoors", 3]', '["no such animal here"]', "", "null", "[]"]
    server.script = [chat_answer(answer) for answer in answers]
    write_prompts(["cat"], connect(), tmp_path / "p.jsonl", prompts_per_label=3)
    prompts = read_prompt_file(tmp_path / "p.jsonl")
    assert [(prompt.prompt, prompt.source) for prompt in prompts] == [
        ("a cat asleep indoors", "model"),
        ("a photo of a cat", "template"),
        ("a close-up photo of a cat", "template"),
    ]
    assert len(server.asked) == 6


def test_an_answer_of_another_form_counts_as_a_poor_one(connect: Connect, server: EndpointServer) -> None:
    server.script = [Answer({"choices": []}), Answer({"choices": [{"message": {}}]}), Answer({"output": "x"})]
    source = connect()
    assert [source.propose("cat", 2, [], attempt, 0) for attempt in range(3)] == [[], [], []]


def test_the_cap_on_cost_ends_the_run_with_complete_labels(
    connect: Connect, server: EndpointServer, tmp_path: Path
) -> None:
    endpoint = {"max_cost": 0.13, "prices": Prices(per_1k_output_tokens=1.0), "concurrency": 1}
    with pytest.raises(FlgenError, match=r"endpoint\.max_cost: the next request may cost 0\.1, and 0\.04 of 0\.13 are"):
        write_prompts(
            ["cat", "dog", "owl"], connect(endpoint, max_tokens=100), tmp_path / "p.jsonl", prompts_per_label=2
        )
    assert {prompt.label for prompt in read_prompt_file(tmp_path / "p.jsonl")} == {"cat", "dog"}
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('["a", "b"]', ["a", "b"]),
        ('Here are [2] prompts:\n```json\n[\n "a",\n "b"\n]\n```', ["a", "b"]),
        ('{"prompts": ["a [x]", "b\\n"]}', ["a [x]", "b\n"]),
        ('["a", "b", "cut o', ["a", "b"]),
        ('["a", {"b": 1}, "c"]', ["a"]),
        ("[1, 2]", []),
        ("none", []),
        ("[[[[", []),
    ],
)
def test_a_list_of_texts_is_found_in_whatever_is_around_it(content: str, texts: list[str]) -> None:
    assert texts_of_list(content) == texts


def test_what_an_endpoint_can_do_is_said_by_options(connect: Connect, server: EndpointServer) -> None:
    server.respond = lambda asked: chat_answer('{"prompts": ["x"]}')
    connect().propose("cat", 2, [], 0, 2**40 + 5)
    assert set(server.asked[0].body) == {"model", "messages", "temperature", "max_tokens"}
    able = connect(
        temperature=None,
        max_tokens=10,
        max_tokens_name="max_completion_tokens",
        send_seed=True,
        json_format=True,
        extra_body={"reasoning_effort": "low"},
        instruction="Give me {count} of {label}.",
    )
    assert able.propose("cat", 2, [], 0, 2**40 + 5) == ["x"]
    body = server.asked[1].body
    assert body.pop("messages")[0]["content"].startswith("Give me 2 of cat. ")
    assert body == {
        "model": "m",
        "max_completion_tokens": 10,
        "seed": 5,
        "response_format": {"type": "json_object"},
        "reasoning_effort": "low",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "--prompts.batch is 0"),
        ({"max_tokens": 0}, "--prompts.max_tokens is 0"),
        ({"instruction": "a cat"}, r"--prompts.instruction needs \{label\}"),
        ({"instruction": "{label} {n}"}, r"--prompts.instruction needs \{label\}"),
        ({"templates": ["cat"]}, r"--prompts.templates: 'cat' has no \{label\}"),
        ({"endpoint": {"timeout_s": 0}}, "--prompts.endpoint.timeout_s is 0"),
    ],
)
def test_options_out_of_range_are_refused(connect: Connect, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        connect(**options)
