"""Speech by SpeechT5: a tiny one of random weights, with the x-vectors of three speakers."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from requests_of import some_requests
from safetensors.numpy import save_file
from scipy.io import wavfile

from flgen.errors import FlgenError, UsageError
from flgen.synthesis.speech import SpeechT5, read_speakers

pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")
pytestmark = pytest.mark.usefixtures("no_hub")

Tiny = Callable[[str], Path]


def small(tiny_pipeline: Tiny, **options: Any) -> SpeechT5:
    folder = tiny_pipeline("speecht5")
    places = {"checkpoint": folder / "model", "vocoder": folder / "vocoder", "speakers": folder / "speakers.npy"}
    return SpeechT5(**{name: str(place) for name, place in places.items()} | {"local_files_only": True, **options})


def test_every_request_is_spoken_by_a_speaker_of_its_own(tiny_pipeline: Tiny) -> None:
    requests = some_requests(8)
    samples = list(small(tiny_pipeline).synthesize(requests))
    assert [sample.request for sample in samples] == requests
    assert {sample.facts["speaker_id"] for sample in samples} == {0, 1, 2}
    for sample in samples:
        rate, waveform = wavfile.read(io.BytesIO(sample.content))
        record = sample.record()
        assert (rate, record["sample_rate"], record["guidance"]) == (16000, 16000, None)
        assert record["seconds"] == len(waveform) / 16000
        assert record["speaker_id"] == int(sample.request.speaker * 3)
    assert len({sample.content for sample in samples}) == len(samples)


def test_speech_follows_from_its_seed_although_the_model_draws_globally(tiny_pipeline: Tiny) -> None:
    requests = some_requests(2)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first = list(small(tiny_pipeline).synthesize(requests))
    assert torch.equal(torch.rand(3), expected)
    backwards = list(small(tiny_pipeline).synthesize(requests[::-1]))
    assert [sample.content for sample in first] == [sample.content for sample in backwards[::-1]]


def test_x_vectors_come_as_npy_or_safetensors(tmp_path: Path) -> None:
    vectors = np.arange(12, dtype=np.float64).reshape(3, 4)
    np.save(tmp_path / "v.npy", vectors)
    save_file({"any name": vectors.astype(np.float16)}, tmp_path / "v.safetensors")
    for name in ("v.npy", "v.safetensors"):
        read = read_speakers(tmp_path / name)
        assert read.dtype == np.float32
        assert np.array_equal(read, vectors)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "there is no such file"), (b"text", "no matrix of x-vectors"), (np.zeros(5), r"shape \(5,\)")],
)
def test_x_vectors_that_cannot_be_read_are_one_line(content: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(FlgenError, match=rf"^--synthesizer.speakers .*v.npy: .*{said}"):
        read_speakers(path)


def test_x_vectors_of_another_model_are_refused(tiny_pipeline: Tiny, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.zeros((2, 7), dtype=np.float32))
    generator = small(tiny_pipeline, speakers=str(tmp_path / "v.npy"))
    with pytest.raises(FlgenError, match="rows of 7 numbers; the model takes 16"):
        list(generator.synthesize(some_requests(1)))


def test_missing_weights_name_their_option(tiny_pipeline: Tiny, tmp_path: Path) -> None:
    for option in ("checkpoint", "vocoder"):
        with pytest.raises(FlgenError, match=rf"^--synthesizer.{option} .*nowhere: there is no such folder"):
            small(tiny_pipeline, **{option: str(tmp_path / "nowhere")}).check(some_requests(1))
        with pytest.raises(
            FlgenError, match=rf"^--synthesizer.{option} nobody/nothing: is no folder, and no model of this id"
        ):
            list(small(tiny_pipeline, **{option: "nobody/nothing"}).synthesize(some_requests(1)))


def test_impossible_options_are_refused(tiny_pipeline: Tiny) -> None:
    with pytest.raises(UsageError, match=r"--synthesizer.longest is 0"):
        small(tiny_pipeline, longest=0)
