"""Log-mel features, beside a plain rendering of their definition (gptfl.md, section 5.3)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_data import tone

from flgen.data.log_mel import LEAST_SAMPLES, frames, log_mel, mel_decibels, mel_filters


def by_definition(waveform: np.ndarray) -> np.ndarray:
    """Return the decibels of one recording, float64 (frames, 128), frame by frame and triangle by triangle."""
    padded = np.pad(waveform / 32768.0, 512, mode="reflect")
    window = np.array([0.5 - 0.5 * math.cos(2 * math.pi * n / 1024) for n in range(1024)])
    hertz = [700 * (10 ** (2840.0230467083184 * point / 129 / 2595) - 1) for point in range(130)]
    result = []
    for start in range(0, len(waveform) + 1, 160):
        power = np.abs(np.fft.rfft(padded[start : start + 1024] * window)) ** 2
        bins = []
        for low, centre, high in zip(hertz, hertz[1:], hertz[2:], strict=False):
            weights = [
                max(0.0, min((k * 15.625 - low) / (centre - low), (high - k * 15.625) / (high - centre)))
                for k in range(513)
            ]
            bins.append(10 * math.log10(max(float(power @ np.array(weights)), 1e-10)))
        result.append(bins)
    return np.array(result)


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(-9000, 9000, 1500).astype(np.int16)


def test_decibels_are_those_of_the_definition(noise):
    decibels = mel_decibels(torch.from_numpy(noise)[None])[0].numpy()
    expected = by_definition(noise)
    assert decibels.shape == expected.shape == (10, 128)
    assert np.abs(decibels - expected).max() < 2e-3


def test_a_bin_is_standardised_over_the_time_of_its_recording(noise):
    decibels = by_definition(noise)
    expected = (decibels - decibels.mean(axis=0)) / (decibels.std(axis=0) + 1e-5)
    waveforms = torch.from_numpy(np.stack([noise, noise // 2]))
    assert np.abs(log_mel(waveforms)[0].numpy() - expected)[:, decibels.std(axis=0) > 0.1].max() < 2e-3
    assert torch.equal(log_mel(waveforms)[:1], log_mel(waveforms[:1]))


@pytest.mark.parametrize(("seconds", "steps"), [(1.0, 101), (5.0, 501), (0.6, 61)])
def test_there_is_a_step_every_ten_milliseconds(seconds, steps):
    waveforms = torch.zeros(2, round(seconds * 16_000), dtype=torch.int16)
    assert log_mel(waveforms).shape == (2, steps, 128)
    assert log_mel(waveforms).dtype == torch.float32
    assert frames(waveforms.shape[1]) == steps


def test_silence_is_minus_100_decibels_and_has_features_of_zero():
    silence = torch.zeros(1, 16_000, dtype=torch.int16)
    assert mel_decibels(silence).sub(-100).abs().max() < 1e-4
    assert torch.count_nonzero(log_mel(silence)) == 0


def test_nothing_but_the_floor_at_minus_100_decibels_limits_the_range():
    loud_then_silent = np.concatenate([tone(1000, 0.5), np.zeros(8000, dtype=np.int16)])
    decibels = mel_decibels(torch.from_numpy(loud_then_silent)[None])[0]
    assert decibels.max() > 35
    assert decibels[-10:].max() < -99.9  # with a range of 80 dB it would be near -40


@pytest.mark.parametrize("hertz", [500, 1000, 4000])
def test_a_tone_is_loudest_in_the_bin_of_its_frequency_on_the_htk_scale(hertz):
    decibels = mel_decibels(torch.from_numpy(tone(hertz, 0.5))[None])[0].mean(dim=0)
    step = 2595 * math.log10(1 + 8000 / 700) / 129
    assert abs(int(decibels.argmax()) + 1 - 2595 * math.log10(1 + hertz / 700) / step) <= 1


def test_filters_are_triangles_of_height_one_without_area_norm():
    filters = mel_filters()
    assert filters.shape == (513, 128)
    assert 0.9 < filters[:, 100:].max(dim=0).values.min() <= filters.max() <= 1.0
    assert (filters[0] == 0).all()


def test_a_long_batch_is_worked_off_in_parts_with_the_same_result(monkeypatch, noise):
    waveforms = torch.from_numpy(np.stack([np.roll(noise, shift) for shift in range(5)]))
    whole = log_mel(waveforms)
    monkeypatch.setattr("flgen.data.log_mel._FRAMES_AT_ONCE", 20)
    assert (log_mel(waveforms) - whole).abs().max() < 1e-4


def test_mixed_precision_does_not_reach_the_features(noise):
    waveforms = torch.from_numpy(noise)[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = log_mel(waveforms)
    assert torch.equal(mixed, log_mel(waveforms))


def test_the_shortest_recording_reflects_over_half_a_window():
    assert log_mel(torch.ones(1, LEAST_SAMPLES, dtype=torch.int16)).shape == (1, 4, 128)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_features(noise):
    waveforms = torch.from_numpy(noise)[None]
    assert (log_mel(waveforms.cuda()).cpu() - log_mel(waveforms)).abs().max() < 1e-2
