"""Prompts by language models of transformers: tiny random ones, saved to disk and loaded back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from flgen.errors import FlgenError, UsageError
from flgen.synthesis.local_prompts import LocalPrompts
from flgen.synthesis.prompt_file import read_prompt_file
from flgen.synthesis.prompts import write_prompts

transformers = pytest.importorskip("transformers")

WORDS = ["A", "a", "photo", "of", "cat", "dog", "on", "the", "big", "small", "red", "grass", "with", "two", "that"]
WORDS += ["sits", "runs", "near", "water", "Tell", "user"]
CHAT = "{% for message in messages %}user {{ message.content }} {% endfor %}"


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)


def tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    vocabulary = {word: number for number, word in enumerate(["<end>", "<unknown>", *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unknown>"))
    words.pre_tokenizer = Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="<unknown>")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of 23 tokens, and its tokenizer, as transformers saves them."""
    folder = tmp_path_factory.mktemp("gpt2")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=len(WORDS) + 2, n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
        )
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 of the same words."""
    folder = tmp_path_factory.mktemp("t5")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        config = transformers.T5Config(vocab_size=len(WORDS) + 2, **sizes, decoder_start_token_id=0, eos_token_id=0)
        transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def local(checkpoint: Path, **options: Any) -> LocalPrompts:
    return LocalPrompts(str(checkpoint), device="cpu", **{"batch": 8, "max_new_tokens": 8, **options})


def test_a_model_goes_on_from_the_start_of_a_prompt(gpt2: Path, tmp_path: Path) -> None:
    report = write_prompts(["cat", "dog"], local(gpt2), tmp_path / "p.jsonl", prompts_per_label=12, seed=3)
    prompts = read_prompt_file(tmp_path / "p.jsonl")
    assert len(prompts) == 24
    assert report.from_templates == 0
    assert all(prompt.prompt.startswith(f"A photo of a {prompt.label}") for prompt in prompts)
    assert {(prompt.source, prompt.provider, prompt.model) for prompt in prompts} == {
        ("model", "transformers", str(gpt2))
    }


def test_texts_follow_from_the_seed_alone(gpt2: Path) -> None:
    torch.manual_seed(1)
    first = local(gpt2).propose("cat", 8, [], 0, 11)
    before = torch.random.get_rng_state()
    other = local(gpt2)
    assert other.propose("cat", 8, [], 0, 12) != first
    assert other.propose("cat", 3, ["x"], 2, 11) == first
    assert torch.equal(torch.random.get_rng_state(), before)


def test_labels_do_not_depend_on_each_other(gpt2: Path, tmp_path: Path) -> None:
    write_prompts(["cat", "dog"], local(gpt2), tmp_path / "both.jsonl", prompts_per_label=5)
    write_prompts(["dog"], local(gpt2), tmp_path / "one.jsonl", prompts_per_label=5)
    of_dog = [prompt.prompt for prompt in read_prompt_file(tmp_path / "both.jsonl") if prompt.label == "dog"]
    assert of_dog == [prompt.prompt for prompt in read_prompt_file(tmp_path / "one.jsonl")]


def test_a_sequence_to_sequence_model_writes_all_of_the_prompt(t5: Path) -> None:
    texts = local(t5, lead="{label} grass", temperature=3.0).propose("cat", 6, [], 0, 1)
    assert len(texts) == 8
    assert any(texts)
    assert not any(text.startswith("cat grass") for text in texts)


def test_a_model_that_chats_is_instructed(gpt2: Path, tmp_path: Path) -> None:
    chatting = transformers.AutoTokenizer.from_pretrained(gpt2)
    chatting.chat_template = CHAT
    transformers.AutoModelForCausalLM.from_pretrained(gpt2).save_pretrained(tmp_path / "chat")
    chatting.save_pretrained(tmp_path / "chat")
    asked: list[str] = []
    source = local(tmp_path / "chat", instruction="Tell a photo of {label}")
    source.propose("cat", 1, [], 0, 1)
    model: Any = source._text_model
    plain = model._tokenizer
    model._tokenizer = _Listening(plain, asked)
    texts = source.propose("cat", 3, [], 0, 1)
    assert asked == ["user Tell a photo of cat "]
    assert not any(text.startswith("A photo of a cat") for text in texts)


class _Listening:
    """A tokenizer that writes down what it is given."""

    def __init__(self, tokenizer: Any, asked: list[str]) -> None:
        self._tokenizer, self._asked = tokenizer, asked

    def __call__(self, text: str, **options: Any) -> Any:
        self._asked.append(text)
        return self._tokenizer(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@pytest.mark.parametrize("name", ["./nowhere", "empty", "nobody/no-such-model"])
def test_a_missing_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FlgenError, match=f"^--prompts.checkpoint {name}: ") as caught:
        LocalPrompts(name, device="cpu").propose("cat", 1, [], 0, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "--prompts.batch is 0"),
        ({"max_new_tokens": 0}, "--prompts.max_new_tokens is 0"),
        ({"temperature": 0.0}, "--prompts.temperature is 0"),
        ({"top_p": 1.5}, "--prompts.top_p is 1.5"),
        ({"lead": "a photo"}, "--prompts.lead: 'a photo' has no"),
        ({"instruction": "a photo"}, "--prompts.instruction needs"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LocalPrompts("x", **options)


def test_an_unknown_device_is_one_line(gpt2: Path) -> None:
    with pytest.raises(UsageError, match=r"--prompts\.device is tpu9: there is no such device"):
        LocalPrompts(str(gpt2), device="tpu9").propose("cat", 1, [], 0, 0)
