"""Sound and speech: tiny AudioLDM, AudioLDM2 and SpeechT5 of random weights, saved and loaded as real ones are."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from requests_of import some_requests
from scipy.io import wavfile

from flgen.errors import FlgenError, UsageError
from flgen.synthesis.sound import AudioLDM
from flgen.synthesis.waveforms import encode_wav

pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("no_hub")

Tiny = Callable[[str], Path]


def small(checkpoint: Path, **options: Any) -> AudioLDM:
    return AudioLDM(
        str(checkpoint), **{"steps": 2, "seconds": 0.032, "batch_size": 4, "local_files_only": True, **options}
    )


@pytest.mark.parametrize("kind", ["audioldm", "audioldm2"])
def test_a_pipeline_from_disk_makes_one_sound_per_request(kind: str, tiny_pipeline: Tiny) -> None:
    requests = some_requests(3, "integers")
    samples = list(small(tiny_pipeline(kind)).synthesize(requests))
    assert {sample.request.id for sample in samples} == {request.id for request in requests}
    for sample in samples:
        rate, waveform = wavfile.read(io.BytesIO(sample.content))
        assert (rate, waveform.dtype, waveform.shape) == (16000, np.int16, (512,))
        record = sample.record()
        assert (record["seconds"], record["sample_rate"]) == (0.032, 16000)
        assert (record["guidance"], record["steps"]) == (sample.request.guidance, 2)
    assert len({sample.content for sample in samples}) == len(samples)
    again = list(small(tiny_pipeline(kind)).synthesize(requests))
    assert [sample.content for sample in again] == [sample.content for sample in samples]


def test_the_pipeline_s_own_guidance_is_an_option(tiny_pipeline: Tiny) -> None:
    (sample, _) = small(tiny_pipeline("audioldm"), guidance="pipeline").synthesize(some_requests(1))
    assert sample.record()["guidance"] == 2.5


def test_a_pipeline_that_draws_is_refused(tiny_pipeline: Tiny) -> None:
    with pytest.raises(FlgenError, match=r"a StableDiffusionPipeline makes no sound from prompts; images are made by"):
        list(small(tiny_pipeline("stable_diffusion")).synthesize(some_requests(1)))


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--synthesizer.seconds is 0"):
        AudioLDM("owner/name", seconds=0)


def test_a_wav_file_has_the_waveform() -> None:
    wave = np.linspace(-1.5, 1.5, 31)
    rate, stored = wavfile.read(io.BytesIO(encode_wav(wave, 8000)))
    assert rate == 8000
    assert np.array_equal(stored, (wave.clip(-1, 1) * 32767).round().astype(np.int16))
    for silence in (np.zeros(0), np.array([np.nan]), np.zeros((2, 3))):
        with pytest.raises(FlgenError, match="no sound that can be stored"):
            encode_wav(silence, 8000)
