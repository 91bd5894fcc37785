"""From WAV files to int16 waveforms of one rate and length."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.io import wavfile
from scipy.signal import resample_poly
from torch import Tensor

from flgen.data.log_mel import SAMPLE_RATE
from flgen.data.pixels import one_line
from flgen.data.threads import for_each_row
from flgen.errors import FlgenError

FULL_SCALE = 32768.0
HIGHEST_RATE = 768_000
"""Hz. The filter of a conversion is as long as the rate, and a header can claim billions."""


def decode_waveforms(names: Sequence[str], samples: int, read: Callable[[str], bytes] | None = None) -> Tensor:
    """Decode WAV files on one thread per core.

    Args:
        names: Paths of the files, or what else `read` knows them by.
        samples: Length of the result: longer recordings are cut, shorter ones are followed by zeros.
        read: Returns a file's bytes; by default they lie at the path.

    Returns:
        int16 tensor (len(names), samples) at 16 kHz.

    Raises:
        FlgenError: If a file is missing, damaged or no WAV file.
    """
    waveforms = np.zeros((len(names), samples), dtype=np.int16)

    def decode(row: int) -> None:
        name = names[row]
        try:
            content = Path(name).read_bytes() if read is None else read(name)
        except OSError as error:
            raise FlgenError(f"{name} cannot be read ({error.strerror}); put it there again") from error
        waveforms[row] = decode_waveform(content, samples, name)

    for_each_row(len(names), decode)
    return torch.from_numpy(waveforms)


def decode_waveform(content: bytes, samples: int | None, named: str = "this .wav file") -> np.ndarray:
    """Decode one WAV file: its first channel, resampled to 16 kHz, cut or followed by zeros.

    Args:
        content: The file's bytes.
        samples: Length of the result; None keeps the recording's own.
        named: What messages call it.

    Returns:
        int16 array (samples,).

    Raises:
        FlgenError: If it is damaged, empty or no WAV file.
    """
    rate, recording = _read(content, named)
    if samples is None:
        samples = len(recording) * SAMPLE_RATE // rate
    if rate != SAMPLE_RATE:
        common = math.gcd(rate, SAMPLE_RATE)
        needed = -(-samples * rate // SAMPLE_RATE) + rate // 10  # the filter looks ahead far less than 0.1 s
        recording = resample_poly(recording[:needed], SAMPLE_RATE // common, rate // common)
    waveform = np.zeros(samples, dtype=np.int16)
    kept = np.rint(recording[:samples] * FULL_SCALE)
    waveform[: len(kept)] = np.clip(kept, -FULL_SCALE, FULL_SCALE - 1)
    return waveform


def _read(content: bytes, named: str) -> tuple[int, np.ndarray]:
    """Return the rate in Hz and the first channel, float64 (T,), where 1.0 is full scale."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks of other programs, which do not matter
            rate, recording = wavfile.read(io.BytesIO(content))
        recording = recording.reshape(len(recording), -1)[:, 0]
        if not 1 <= rate <= HIGHEST_RATE or len(recording) == 0:
            raise ValueError(f"{len(recording)} samples at {rate} Hz")
    except Exception as error:  # a damaged header makes the reader raise nearly anything
        raise FlgenError(f"{named} is damaged or no WAV file ({one_line(error)}); replace or remove it") from error
    if recording.dtype == np.uint8:
        return rate, (recording.astype(np.float64) - 128.0) / 128.0
    if np.issubdtype(recording.dtype, np.integer):
        return rate, recording / -float(np.iinfo(recording.dtype).min)
    if not np.isfinite(recording).all():
        raise FlgenError(f"{named} is damaged (it holds numbers that are not finite); replace or remove it")
    return rate, recording.astype(np.float64)
