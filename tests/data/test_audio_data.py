"""Audio data: samples, features, and when these are kept."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from small_data import assert_one_line, read, tone, write_wav

from flgen.data.audio_data import AudioData, AudioLayout, check_seconds
from flgen.data.labelled_set import LabelledSet
from flgen.data.log_mel import log_mel
from flgen.errors import FlgenError, UsageError


class Tones(AudioData):
    """Eight recordings of a tenth of a second of two speakers, and two to test on."""

    def layout(self) -> AudioLayout:
        return AudioLayout("tones", ("low", "high"), seconds=0.1)

    def load(self) -> tuple[LabelledSet, LabelledSet]:
        waveforms = torch.from_numpy(np.stack([tone(300 + 200 * row, 0.1) for row in range(8)]))
        tones = LabelledSet(waveforms, torch.arange(8) // 4, {"speaker": torch.arange(8) % 2})
        return tones, tones.subset(torch.tensor([0, 4]))


def test_a_sample_is_int16_at_16_khz():
    layout = read(Tones()).layout()
    assert (layout.shape, layout.dtype, layout.sample_rate) == ((1600,), torch.int16, 16_000)


def test_how_many_speakers_were_found_is_said_once(caplog):
    tones = Tones()
    with caplog.at_level(logging.INFO, "flgen"):
        tones.setup()
        tones.setup()
    assert caplog.messages == ["tones: 8 training recordings of 2 speakers; 2 test recordings of 1 speakers"]


@pytest.mark.parametrize("features_mb", [1000.0, 0.0])
def test_modules_see_log_mel_features_whether_they_are_kept_or_not(features_mb):
    tones = read(Tones(features_mb))
    rows = np.array([5, 2, 7])
    expected = log_mel(tones.train.inputs[torch.from_numpy(rows)])
    (stored, labels), *_ = tones.client_data(0, rows).in_order(10)
    assert torch.allclose(tones.standardize(stored), expected, atol=1e-4)
    assert labels.tolist() == [1, 0, 1]
    assert stored.dtype == (torch.float32 if features_mb else torch.int16)


def test_features_are_kept_only_if_those_of_the_whole_training_set_fit():
    bytes_each = 4 * 128 * 11
    for features_mb, kept in ((8 * bytes_each / 1e6, True), (7.9 * bytes_each / 1e6, False)):
        (stored, _), *_ = read(Tones(features_mb)).client_data(0, np.array([1])).in_order(1)
        assert stored.is_floating_point() == kept


def test_kept_features_are_computed_once(monkeypatch):
    tones = read(Tones())
    client = tones.client_data(0, np.arange(6))
    list(client.in_order(2))
    monkeypatch.setattr("flgen.data.log_mel.log_mel", lambda waveforms: pytest.fail("computed again"))
    generator = torch.Generator().manual_seed(0)
    assert sum(len(labels) for _, labels in client.batches(4, generator, epochs=2)) == 12


def test_both_parts_of_a_split_client_keep_features():
    rest, held = read(Tones()).client_data(0, np.arange(6)).split(2, torch.Generator().manual_seed(0))
    assert (rest.samples, held.samples) == (4, 2)
    assert all(next(iter(part.in_order(9)))[0].shape[1:] == (11, 128) for part in (rest, held))


def test_test_batches_are_recordings():
    (stored, _), *_ = read(Tones()).client_test_data(np.array([1])).in_order(1)
    assert stored.dtype == torch.int16


def test_a_wav_file_becomes_a_sample(tmp_path):
    write_wav(tmp_path / "a.wav", tone(440, 0.05, 8_000), rate=8_000)
    sample = Tones().decode_sample((tmp_path / "a.wav").read_bytes(), ".wav")
    assert (sample.shape, sample.dtype) == ((1600,), torch.int16)
    assert sample[:800].abs().max() > 10_000
    assert sample[900:].abs().max() == 0


@pytest.mark.parametrize(
    ("content", "extension", "says"),
    [(b"RIFF", ".wav", "this .wav file is damaged"), (b"", ".mp3", "a .mp3 file is no recording; give .wav")],
    ids=["damaged", "another format"],
)
def test_a_file_that_is_no_recording_is_refused(content, extension, says):
    with pytest.raises(FlgenError) as caught:
        Tones().decode_sample(content, extension)
    assert_one_line(caught.value, says)


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.05, 61.0, float("nan")])
def test_a_length_without_features_is_refused(seconds):
    with pytest.raises(UsageError, match=r"`--data.seconds` is .* it must be 0.1 to 60"):
        check_seconds(seconds)


@pytest.mark.parametrize("features_mb", [-1.0, float("nan")])
def test_a_negative_limit_of_features_is_refused(features_mb):
    with pytest.raises(UsageError, match=r"`--data.features_mb` is"):
        Tones(features_mb)
