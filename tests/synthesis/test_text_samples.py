"""Texts by a tiny GPT-2 of random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from requests_of import some_requests

from flgen.errors import FlgenError, UsageError
from flgen.synthesis.text_samples import TextSamples

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("no_hub")

Tiny = Callable[[str], Path]


def small(tiny_pipeline: Tiny, **options: Any) -> TextSamples:
    return TextSamples(str(tiny_pipeline("gpt2")), **{"max_new_tokens": 12, "local_files_only": True, **options})


def test_a_model_writes_one_text_per_request(tiny_pipeline: Tiny) -> None:
    requests = some_requests(4)
    samples = list(small(tiny_pipeline).synthesize(requests))
    texts = [sample.content.decode() for sample in samples]
    assert [sample.request for sample in samples] == requests
    assert len(set(texts)) == len(texts)
    assert all(text and text == " ".join(text.split()) for text in texts)
    assert not any(text.startswith("a photo of") for text in texts)  # the prompt is no part of the sample
    assert samples[0].record()["guidance"] is None
    again = list(small(tiny_pipeline).synthesize(requests[::-1]))[::-1]
    assert [sample.content.decode() for sample in again] == texts


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FlgenError, match=r"^--synthesizer.checkpoint .*nowhere: there is no such folder"):
        TextSamples(str(tmp_path / "nowhere")).check(some_requests(1))


@pytest.mark.parametrize(("option", "value"), [("max_new_tokens", 0), ("temperature", 0), ("top_p", 1.5)])
def test_impossible_options_are_refused(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"--synthesizer.{option} is {value}"):
        TextSamples("owner/name", **{option: value})
