"""Log-mel features: what the audio models read of a waveform, computed on its device.

The definition is FedAudio's (gptfl.md, section 5.3): the power spectrogram of 16 kHz audio through 1024-point periodic
Hann windows every 10 ms, centred with reflected edges; 128 triangles that are equally wide on the HTK mel scale from 0
to 8000 Hz and equally high; decibels, no power below 1e-10; every bin standardised over the recording's own time.
"""

from __future__ import annotations

import math
from functools import lru_cache

from flgen.deferred import TYPE_CHECKING, deferred_module

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = deferred_module("torch")

SAMPLE_RATE = 16_000  # Hz
WINDOW = 1024  # samples, and points of the transform
HOP = 160  # samples
MELS = 128
HIGHEST = 8000.0  # Hz
FLOOR = 1e-10  # power, -100 dB
LEAST_SAMPLES = WINDOW // 2 + 1  # the edges are reflected over half a window

_FRAMES_AT_ONCE = 16_384  # 67 MB of complex spectra


def frames(samples: int) -> int:
    """Return the number of time steps of the features of a recording of so many samples."""
    return 1 + samples // HOP


def log_mel(waveforms: Tensor) -> Tensor:
    """Return the features of recordings: decibels, standardised for each recording and mel bin.

    A bin that does not change over time becomes 0.

    Args:
        waveforms: int16 tensor (B, T) at 16 kHz, T at least LEAST_SAMPLES, on any device.

    Returns:
        float32 tensor (B, 1 + T // 160, 128) on the same device: (x - mean over time) / (deviation over time + 1e-5),
        where the deviation is the population's.

    Source: GPT-FL and FedAudio, gptfl.md, section 5.3.
    """
    # Counted from the floor: sums over a silent time are of zeros, so that 1e-5 does not blow up their rounding.
    decibels = mel_decibels(waveforms).sub_(10.0 * math.log10(FLOOR))
    spread, mean = torch.std_mean(decibels, dim=1, correction=0, keepdim=True)
    return decibels.sub_(mean).div_(spread.add_(1e-5))


def mel_decibels(waveforms: Tensor) -> Tensor:
    """Return the mel spectrogram in decibels, 10 log10(max(power, 1e-10)); full scale is 1.0.

    Args:
        waveforms: int16 tensor (B, T) at 16 kHz, T at least LEAST_SAMPLES, on any device.

    Returns:
        float32 tensor (B, 1 + T // 160, 128) on the same device.
    """
    recordings = max(1, _FRAMES_AT_ONCE // frames(waveforms.shape[1]))
    with torch.autocast(waveforms.device.type, enabled=False):
        return torch.cat([_mel_decibels(part) for part in waveforms.split(recordings)])


def mel_filters(device: torch.device | str = "cpu") -> Tensor:
    """Return the triangles, float32 (513, 128): the weight of each frequency k * 16000 / 1024 Hz in each mel bin.

    Bin j rises from point j to 1 at point j + 1 and falls to 0 at point j + 2 of 130 points that are equally spaced on
    the HTK scale, mel(f) = 2595 log10(1 + f / 700). The lowest bins are narrower than the spectrum's grid, so that
    some of them hold no frequency at all.
    """
    frequencies = torch.linspace(0.0, SAMPLE_RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    mels = torch.linspace(0.0, 2595.0 * math.log10(1.0 + HIGHEST / 700.0), MELS + 2, dtype=torch.float64)
    points = 700.0 * (10.0 ** (mels / 2595.0) - 1.0)  # Hz
    above = frequencies.unsqueeze(1) - points  # (513, 130)
    rising = above[:, :-2] / points.diff()[:-1]
    falling = -above[:, 2:] / points.diff()[1:]
    return torch.minimum(rising, falling).clamp_(min=0.0).to(device, torch.float32)


def _mel_decibels(waveforms: Tensor) -> Tensor:
    window, filters = _constants(waveforms.device)
    spectrum = torch.stft(
        waveforms.to(torch.float32).div_(32768.0),
        WINDOW,
        hop_length=HOP,
        window=window,
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )  # (B, 513, T')
    power = torch.view_as_real(spectrum).square_().sum(-1)
    return torch.matmul(power.mT, filters).clamp_(min=FLOOR).log10_().mul_(10.0)


@lru_cache(maxsize=8)
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the window and the filters; kept, since moving them to a GPU again would wait for it."""
    with torch.inference_mode(False):
        return torch.hann_window(WINDOW, periodic=True, device=device), mel_filters(device)
