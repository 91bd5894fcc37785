"""Prompts by a language model of transformers that runs here."""

from __future__ import annotations

from collections.abc import Sequence

from flgen.errors import UsageError
from flgen.synthesis.chat_prompts import check_instruction
from flgen.synthesis.pretrained import Precision
from flgen.synthesis.prompt_source import PromptSource
from flgen.synthesis.templates import Modality, Templates, check_template, filled
from flgen.synthesis.text_model import TextModel

LEADS: dict[Modality, str] = {
    "image": "A photo of {a} {label}",
    "sound": "The sound of {label}",
    "speech": "{label}",
    "text": "A sentence that expresses {label}:",
}
INSTRUCTIONS: dict[Modality, str] = {
    "image": 'Describe in one sentence of 5 to 25 words a realistic photo of "{label}". Use the word "{label}".',
    "sound": 'Describe in one sentence of 5 to 25 words a recording of "{label}". Use the word "{label}".',
    "speech": 'Say one short sentence that contains "{label}".',
    "text": 'Ask in one sentence for a short text of the class "{label}". Use the word "{label}".',
}


class LocalPrompts(PromptSource):
    """Lets a language model write prompts: one that chats is instructed, any other goes on from the prompt's start.

    A sequence-to-sequence model, such as the T5 of the authors' code, gets the start as its input and writes all of
    the prompt. What is missing after all retries comes from templates.

    Args:
        checkpoint: Folder of the model and its tokenizer as transformers saves them, or an id on its hub.
        modality: What the prompts are for.
        lead: Start of a prompt, with `{label}` and `{a}`; null takes the built-in one of the modality.
        instruction: What to ask a model that chats, with `{label}`; null takes the built-in one.
        batch: Texts that are written at once.
        max_new_tokens: Longest text, tokens.
        temperature: Of the sampling.
        top_p: Share of the probability that is sampled from.
        device: "cpu", "cuda" or "cuda:1"; "auto" is a GPU if there is one.
        precision: Type of the weights; "auto" is fp16 on a GPU and fp32 elsewhere.
        local_files_only: Whether an id must be on this machine already; false lets transformers download it.
        templates: Templates for what is missing; null takes the built-in ones.

    Raises:
        UsageError: An option is out of its range.

    Source: specification of GPT-FL, sections 3.1 and 3.6.
    """

    provider = "transformers"
    batch: int

    def __init__(
        self,
        checkpoint: str,
        modality: Modality = "image",
        lead: str | None = None,
        instruction: str | None = None,
        batch: int = 32,
        max_new_tokens: int = 40,
        temperature: float = 1.0,
        top_p: float = 0.95,
        device: str = "auto",
        precision: Precision = "auto",
        local_files_only: bool = True,
        templates: list[str] | None = None,
    ) -> None:
        for option, value in (("batch", batch), ("max_new_tokens", max_new_tokens)):
            if value < 1:
                raise UsageError(f"--prompts.{option} is {value}: give 1 or more")
        if not temperature > 0:
            raise UsageError(f"--prompts.temperature is {temperature}: give a number above 0")
        if not 0 < top_p <= 1:
            raise UsageError(f"--prompts.top_p is {top_p}: give a share above 0, at most 1")
        if lead is not None:
            check_template(lead, "--prompts.lead")
        self.checkpoint = self.model = checkpoint
        self.modality = modality
        self.lead = lead
        self.instruction = check_instruction(instruction)
        self.batch = batch
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.top_p = top_p
        self.device = device
        self.precision = precision
        self.local_files_only = local_files_only
        self.templates = templates
        self._fallback = Templates(templates, modality)
        self._text_model: TextModel | None = None

    def propose(self, label: str, count: int, taken: Sequence[str], attempt: int, seed: int) -> list[str]:
        """Return a batch of texts, the first line of each; they follow from the seed alone.

        There are always `batch` of them, since many a sampled text is not taken.
        """
        if self._text_model is None:
            self._text_model = TextModel(
                self.checkpoint,
                device=self.device,
                precision=self.precision,
                local_files_only=self.local_files_only,
                option="--prompts",
            )
        instruction = (self.instruction or INSTRUCTIONS[self.modality]).format(label=label, count=1)
        texts = self._text_model.write(
            instruction=instruction,
            lead=filled(self.lead or LEADS[self.modality], label),
            count=self.batch,
            seed=seed,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
        )
        return [_first_line(text) for text in texts]

    def fallback(self) -> Templates:
        return self._fallback


def _first_line(text: str) -> str:
    """Return the first line that says something, without quotes around it."""
    lines = [line.strip().strip('"“”').strip() for line in text.splitlines()]
    return next((line for line in lines if line), "")
