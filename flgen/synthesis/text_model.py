"""A language model of transformers, loaded from disk and sampled from a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.synthesis.extra import require_extra
from flgen.synthesis.pretrained import Precision, check_local, loading, pick_dtype, seeded

if TYPE_CHECKING:
    import torch
    import transformers
else:
    torch = deferred_module("torch")
    transformers = deferred_module("transformers")


class TextModel:
    """Loads a text-generation model and its tokenizer, causal or sequence-to-sequence.

    Args:
        checkpoint: Folder of both as transformers saves them, or an id on its hub.
        device: "cpu", "cuda" or "cuda:1"; "auto" is a GPU if there is one.
        precision: Type of the weights; "auto" is fp16 on a GPU and fp32 elsewhere.
        local_files_only: Whether an id must be on this machine already.
        option: Where the options are given, for messages, such as `--prompts`.

    Raises:
        FlgenError: The model cannot be loaded, or transformers is not installed.
        UsageError: There is no such device.
    """

    def __init__(
        self, checkpoint: str, *, device: str, precision: Precision, local_files_only: bool, option: str
    ) -> None:
        require_extra("transformers")
        self.device = _device(device, f"{option}.device")
        place = f"{option}.checkpoint"
        check_local(place, checkpoint)
        known = Path(checkpoint).expanduser()
        name = str(known) if known.exists() else checkpoint
        # Code that lies beside the weights is not run, and nobody is asked at the terminal, as the library would.
        where: dict[str, Any] = {"local_files_only": local_files_only, "trust_remote_code": False}
        with loading(place, checkpoint):
            config = transformers.AutoConfig.from_pretrained(name, **where)
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(name, **where)
            self._whole = bool(config.is_encoder_decoder)  # such a model writes all of the text, not how it goes on
            loader = transformers.AutoModelForSeq2SeqLM if self._whole else transformers.AutoModelForCausalLM
            model: Any = loader.from_pretrained(name, dtype=pick_dtype(precision, self.device), **where)
        self._model = model.to(self.device).eval()
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token

    def write(
        self,
        *,
        instruction: str,
        lead: str,
        count: int,
        seed: int,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> list[str]:
        """Return texts that follow from the seed alone.

        Args:
            instruction: What a model that chats is asked for.
            lead: How the text starts, for any other model; it is part of what is returned.
            count: How many texts.
            seed: 0 to 2^63 - 1.
            max_new_tokens: Longest text, tokens.
            temperature: Of the sampling, above 0.
            top_p: Share of the probability that is sampled from.
        """
        chats = bool(getattr(self._tokenizer, "chat_template", None))
        asked = lead
        if chats:
            message = [{"role": "user", "content": instruction}]
            asked = self._tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        given = self._tokenizer(asked, return_tensors="pt", add_special_tokens=not chats).to(self.device)
        with seeded(seed, self.device), torch.no_grad():  # generate() takes no generator
            written = self._model.generate(
                input_ids=given["input_ids"],
                attention_mask=given["attention_mask"],
                do_sample=True,
                temperature=temperature,
                top_p=top_p,
                num_return_sequences=count,
                max_new_tokens=max_new_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
            )  # (count, tokens)
        if not self._whole:
            written = written[:, given["input_ids"].shape[1] :]
        texts = self._tokenizer.batch_decode(written, skip_special_tokens=True)
        return [text if chats or self._whole else lead + text for text in texts]


def _device(name: str, option: str) -> torch.device:
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise UsageError(f"{option} is {name}: there is no such device here; give cpu or auto") from None
    return device
