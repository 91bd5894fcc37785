"""`flgen prompts`: from labels to a file that a person can edit."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from endpoint_server import Answer, Asked, EndpointServer, chat_answer
from forked_commands import ForkedCommand

from flgen.cli import main
from flgen.synthesis.prompt_file import read_prompt_file

Flgen = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def chat(server: EndpointServer, tmp_path: Path) -> list[str]:
    """Return the options of a run by chat; a label takes the server a moment."""

    def respond(asked: Asked) -> Answer:
        label = asked.body["messages"][0]["content"].rpartition('contains "')[2].partition('"')[0]
        answer = chat_answer(json.dumps([f"a {label} in place {n}" for n in range(3)]), tokens=(1000, 500))
        return Answer(answer.content, delay_s=0.3)

    server.respond = respond
    endpoint = {
        "base_url": server.url,
        "concurrency": 1,
        "cache_dir": "answers",
        "timeout_s": 5,
        "prices": {"per_1k_input_tokens": 0.1, "per_1k_output_tokens": 1.0},
    }
    config = {
        "label_names": ["cat", "dog", "owl", "ship"],
        "prompts": {"class_path": "ChatPrompts", "init_args": {"model": "m", "endpoint": endpoint}},
        "prompts_per_label": 3,
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    return ["prompts", "--config", "c.yaml"]


def test_labels_of_the_labels_command_become_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = ["airplane", "ship"]
    (tmp_path / "labels.json").write_text(json.dumps({"labels": labels, "complete": True}))
    assert main(["prompts", "--labels", "labels.json", "--prompts_per_label", "2"]) == 0
    said = capsys.readouterr()
    assert said.out == "4 prompts for 2 labels, 4 from templates: prompts.jsonl\n"
    assert "flgen: label 1/2 'airplane': 2 prompts, 2 from templates\n" in said.err
    prompts = read_prompt_file(tmp_path / "prompts.jsonl", labels)
    assert [prompt.prompt for prompt in prompts[1:3]] == ["a close-up photo of an airplane", "a photo of a ship"]


def test_the_classes_of_a_data_set_become_prompts(tmp_path: Path) -> None:
    templates = '--prompts.templates=["the digit {label}"]'
    assert main(["prompts", "--data=Digits", templates, "--output=d/p.jsonl"]) == 0
    prompts = read_prompt_file(tmp_path / "d" / "p.jsonl")
    assert [(prompt.class_id, prompt.prompt) for prompt in prompts] == [(n, f"the digit {n}") for n in range(10)]


def test_an_edited_file_is_taken_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"label": "dog", "prompt": "my own dog"}\n')
    assert main(["prompts", "--label_names", "[cat, dog]", "--prompts_per_label", "1"]) == 0
    assert "; 1 label had prompts already" in capsys.readouterr().out
    assert [prompt.prompt for prompt in read_prompt_file("prompts.jsonl")] == ["a photo of a cat", "my own dog"]
    (tmp_path / "prompts.jsonl").write_text(
        '{"label": "dog", "prompt": "my own dog"}\n{"label": "dg", "prompt": "x"}\n'
    )
    assert main(["prompts", "--label_names", "[cat, dog]"]) == 1
    assert capsys.readouterr().err == "flgen: error: prompts.jsonl:2: unknown label 'dg'; did you mean 'dog'?\n"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "say where the labels are: --labels FILE, --data CLASS or --label_names [A, B]\n"),
        (["--labels=x", "--data=flgen.data.Digits"], 2, "--label_names [A, B], not --labels and --data together\n"),
        (["--labels=none.json"], 1, "--labels none.json cannot be read (No such file or directory): `flgen labels`"),
        (["--labels=broken.json"], 1, "--labels broken.json is no file of labels"),
        (["--labels=list.json"], 1, "--labels list.json is no file of labels"),
        (["--label_names=[a]", "--prompts=Template"], 2, "did you mean Templates?"),
        (["--label_names=[a]", "--prompts.templates=[a]"], 2, "--prompts.templates: 'a' has no {label}"),
        (
            ["--label_names=[a]", "--prompts=ChatPrompts", "--prompts.model=m"],
            2,
            "missing: --prompts.endpoint.base_url",
        ),
        (
            ["--label_names=[a]", "--prompts=ChatPrompts", "--prompts.model=m", "--prompts.endpoint.timeout=3"],
            2,
            "--prompts.endpoint.timeout: EndpointOptions has no 'timeout'; did you mean timeout_s?",
        ),
        (["--label_names=[a]", "--synonyms={b: [c]}"], 2, "--synonyms: 'b' is no label"),
        (["--label_names=[a]", "--prompts_per_label=0"], 2, "--prompts_per_label is 0: give 1 or more"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, message: str
) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text('["a", "b"]')
    assert main(["prompts", *arguments]) == status
    said = capsys.readouterr().err
    assert said.startswith("flgen: error: ")
    assert message in said
    assert said.count("\n") == 1


def test_the_last_line_says_what_it_cost_and_a_rerun_costs_nothing(
    chat: list[str], server: EndpointServer, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(chat) == 0
    said = capsys.readouterr()
    assert said.out == (
        "12 prompts for 4 labels, 0 from templates; 4 requests, 0 answers from the cache, cost 2.4: prompts.jsonl\n"
    )
    assert main([*chat, "--output", "again.jsonl"]) == 0
    assert "; 0 requests, 4 answers from the cache, cost 0: again.jsonl" in capsys.readouterr().out
    assert len(server.asked) == 4
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "prompts.jsonl").read_bytes()
    assert key not in said.out + said.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]


def test_without_a_key_nothing_is_sent(
    chat: list[str], server: EndpointServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert main(chat) == 2
    assert "the environment variable OPENAI_API_KEY is not set" in capsys.readouterr().err
    assert server.asked == []


def first_label_is_written(process: ForkedCommand, file: Path) -> None:
    """Wait until a run has written its first label."""
    deadline = time.monotonic() + 60
    while not file.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_stopped_run_goes_on_and_asks_nothing_twice(
    chat: list[str],
    server: EndpointServer,
    key: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    status: int,
) -> None:
    process = ForkedCommand(chat, Path.cwd())
    first_label_is_written(process, tmp_path / "prompts.jsonl")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status
    assert ("interrupted: labels that are complete are in prompts.jsonl" in said) == (number == signal.SIGINT)

    complete = {prompt.label for prompt in read_prompt_file(tmp_path / "prompts.jsonl")}
    assert "cat" in complete
    assert len(complete) < 4
    before = len(server.asked)
    assert main(chat) == 0
    assert len(server.asked) - before <= 4 - len(complete)
    assert len(server.asked) <= 5  # only an answer that was under way may have been lost
    assert re.search(rf"; {len(complete)} labels? had prompts already", capsys.readouterr().out)
    assert main([*chat, "--output", "whole.jsonl"]) == 0
    assert (tmp_path / "prompts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
