"""Texts of a class by a language model of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError, UsageError
from flgen.experiment import option_ranges
from flgen.synthesis.extra import require_extra
from flgen.synthesis.pretrained import check_local, local_files
from flgen.synthesis.samples import SampleRequest
from flgen.synthesis.synthesizer import Sample, Synthesizer

if TYPE_CHECKING:
    from flgen.synthesis.text_model import TextModel

TRIES = 3


class TextSamples(Synthesizer):
    """Texts by a language model: one that chats is given the prompt as a request, any other goes on from it.

    Args:
        checkpoint: Folder of the model and its tokenizer as transformers saves them, or an id on its hub.
        max_new_tokens: Longest text, tokens.
        temperature: Of the sampling.
        top_p: Share of the probability that is sampled from.
        precision: Type of the weights.
        local_files_only: Whether an id must be on this machine already; false lets transformers download it.

    Raises:
        UsageError: An option is out of its range.
    """

    modality = "text"

    def __init__(
        self,
        checkpoint: str,
        max_new_tokens: int = 60,
        temperature: float = 1.0,
        top_p: float = 0.95,
        precision: Literal["32", "bf16", "16"] = "32",
        local_files_only: bool = False,
    ) -> None:
        option_ranges.at_least("synthesizer", 1, max_new_tokens=max_new_tokens)
        if not temperature > 0:
            raise UsageError(f"--synthesizer.temperature is {temperature}: give a number above 0")
        if not 0 < top_p <= 1:
            raise UsageError(f"--synthesizer.top_p is {top_p}: give a share above 0, at most 1")
        self.checkpoint = checkpoint
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.top_p = top_p
        self.precision = precision
        self.local_files_only = local_files_only

    def files(self) -> list[Path]:
        """Return the checkpoint, if it is a folder of this machine."""
        return local_files(self.checkpoint)

    def check(self, requests: Sequence[SampleRequest]) -> None:
        """Make sure that transformers is installed, and that a checkpoint that is a path exists."""
        require_extra("transformers")
        check_local("--synthesizer.checkpoint", self.checkpoint)

    @cached_property
    def _model(self) -> TextModel:
        from flgen.synthesis.text_model import TextModel

        self.check([])
        return TextModel(
            self.checkpoint,
            device=str(self.device),
            precision=self.precision,
            local_files_only=self.local_files_only,
            option="--synthesizer",
        )

    def make_batch(self, requests: Sequence[SampleRequest]) -> list[Sample]:
        """Return one text for each request, each sampled under its own seed.

        Raises:
            FlgenError: If the model writes nothing.
        """
        return [self._write(request) for request in requests]

    def _write(self, request: SampleRequest) -> Sample:
        for attempt in range(TRIES):
            (text,) = self._model.write(
                instruction=request.prompt,
                lead=request.prompt,
                count=1,
                seed=(request.seed + attempt) % 2**63,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
            )
            written = " ".join(text.removeprefix(request.prompt).split())
            if written:
                facts = {"guidance": None, "provider": "transformers", "model": self.checkpoint, "revision": None}
                return Sample(request, written.encode(), "txt", {**facts, "attempt": attempt})
        raise FlgenError(
            f"--synthesizer.checkpoint {self.checkpoint}: wrote nothing after {request.prompt!r}, {TRIES} times; "
            "change the prompt or --synthesizer.temperature"
        )
