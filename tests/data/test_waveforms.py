"""WAV files as int16 waveforms of one rate and length."""

from __future__ import annotations

import io

import numpy as np
import pytest
from scipy.io import wavfile
from small_data import assert_one_line, tone, write_wav

from flgen.data.waveforms import decode_waveform, decode_waveforms
from flgen.errors import FlgenError


def encoded(waveform: np.ndarray, rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    wavfile.write(buffer, rate, waveform)
    return buffer.getvalue()


def test_int16_at_16_khz_is_taken_as_it_is():
    extremes = np.array([-32768, -1, 0, 1, 32767], dtype=np.int16)
    assert decode_waveform(encoded(extremes), 5).tolist() == extremes.tolist()


def test_longer_recordings_are_cut_and_shorter_ones_followed_by_zeros():
    recording = np.arange(1, 7, dtype=np.int16)
    assert decode_waveform(encoded(recording), 4).tolist() == [1, 2, 3, 4]
    assert decode_waveform(encoded(recording), 8).tolist() == [1, 2, 3, 4, 5, 6, 0, 0]
    assert decode_waveform(encoded(recording), None).tolist() == recording.tolist()


def test_only_the_first_channel_counts():
    stereo = np.stack([np.arange(4), np.full(4, 99)], axis=1).astype(np.int16)
    assert decode_waveform(encoded(stereo), 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("waveform", "expected"),
    [
        (np.array([0, 128, 255], dtype=np.uint8), [-32768, 0, 127 * 256]),
        (np.array([-(2**31), 0, 2**30], dtype=np.int32), [-32768, 0, 16384]),
        (np.array([-1.0, 0.25, 1.5], dtype=np.float32), [-32768, 8192, 32767]),
    ],
)
def test_other_types_are_scaled_to_16_bits_and_clipped(waveform, expected):
    assert decode_waveform(encoded(waveform), 3).tolist() == expected


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100])
def test_other_rates_are_resampled_to_16_khz(rate):
    resampled = decode_waveform(encoded(tone(440, 1.0, rate), rate), 16_000).astype(float)
    assert np.abs(resampled - tone(440, 1.0))[200:-200].max() < 0.002 * 32768


def test_what_lies_behind_the_kept_seconds_does_not_matter():
    long = tone(440, 3.0, 44_100)
    ends_early = long[: int(1.2 * 44_100)]
    assert np.array_equal(
        decode_waveform(encoded(long, 44_100), 16_000), decode_waveform(encoded(ends_early, 44_100), 16_000)
    )


def test_files_are_decoded_in_their_order(tmp_path):
    for row in range(150):
        write_wav(tmp_path / f"{row}.wav", np.full(3, row, dtype=np.int16))
    waveforms = decode_waveforms([str(tmp_path / f"{row}.wav") for row in range(150)], 3)
    assert waveforms[:, 2].tolist() == list(range(150))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no sound at all",
        encoded(tone(440, 0.1))[:30],
        encoded(np.zeros(0, dtype=np.int16)),
        encoded(np.array([0.0, np.nan], dtype=np.float32)),
    ],
    ids=["empty", "text", "half a header", "no samples", "not finite"],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path, content):
    (tmp_path / "broken.wav").write_bytes(content)
    with pytest.raises(FlgenError) as caught:
        decode_waveforms([str(tmp_path / "broken.wav")], 100)
    assert_one_line(caught.value, "broken.wav is damaged", "replace or remove it")


def test_a_missing_file_is_named_in_one_line(tmp_path):
    with pytest.raises(FlgenError) as caught:
        decode_waveforms([str(tmp_path / "absent.wav")], 100)
    assert_one_line(caught.value, "absent.wav cannot be read (No such file")
