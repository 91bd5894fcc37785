"""WAV files of generated sound."""

from __future__ import annotations

import io

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError

if TYPE_CHECKING:
    import numpy as np
else:
    np = deferred_module("numpy")


def encode_wav(waveform: np.ndarray, sample_rate: int) -> bytes:
    """Return a waveform as a 16-bit mono WAV file; what is beyond [-1, 1] is clipped.

    Args:
        waveform: float array (T,).
        sample_rate: Hz.

    Raises:
        FlgenError: If it is empty or not finite.
    """
    from scipy.io import wavfile

    if waveform.ndim != 1 or len(waveform) == 0 or not np.isfinite(waveform).all():
        raise FlgenError("the model made no sound that can be stored (empty, or not finite); try a higher precision")
    buffer = io.BytesIO()
    wavfile.write(buffer, sample_rate, (waveform.clip(-1.0, 1.0) * 32767).round().astype(np.int16))
    return buffer.getvalue()
