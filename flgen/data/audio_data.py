"""Audio data sets: labelled data whose samples are waveforms of one length, and whose modules read log-mel features."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from flgen.data.labelled_data import LabelledData, Layout
from flgen.data.log_mel import LEAST_SAMPLES, MELS, SAMPLE_RATE, frames
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from flgen.data.client_data import ClientData
    from flgen.data.labelled_set import LabelledSet
else:
    torch = deferred_module("torch")

log = logging.getLogger("flgen")


@dataclass(frozen=True)
class AudioLayout(Layout):
    """What is known of an audio data set before it is read.

    Args:
        name: Name of the data set, as it appears in file names and metrics.
        class_names: One name per class, in the order of the labels.
        seconds: Length of every recording.
    """

    seconds: float

    @property
    def sample_rate(self) -> int:
        """16,000 Hz."""
        return SAMPLE_RATE

    @property
    def shape(self) -> tuple[int]:
        """(samples,) of every recording."""
        return (round(self.seconds * SAMPLE_RATE),)

    @property
    def dtype(self) -> torch.dtype:
        """int16."""
        return torch.int16


class AudioData(LabelledData):
    """A set of training recordings and a set of test recordings, all of one length, in memory as int16 at 16 kHz.

    All samples of a set have the same length, so that no batch needs further padding and the mean over time of a model
    has no frames of other recordings' lengths in it. A recording that is shorter is followed by silence when it is
    read; that silence is part of the sample. A data set of your own derives from it and defines two methods,
    `layout()` and `load()`.

    Args:
        features_mb: The training set's log-mel features are computed once per client and kept on the device if all of
            them fit into so many MB (1e6 bytes), since they cost as much as a training step; else with every batch.
            The limit is for all clients together, so that a result does not depend on which ones share a process.

    Raises:
        UsageError: If `features_mb` is negative.
    """

    noun = "recordings"

    def __init__(self, features_mb: float = 1000.0) -> None:
        super().__init__()
        if not features_mb >= 0.0:
            raise UsageError(f"`--data.features_mb` is {features_mb}; it must be 0 or more")
        self.features_mb = features_mb

    def layout(self) -> AudioLayout:
        """Return name, classes and length of the recordings; nothing is decoded for it."""
        raise self._incomplete("layout")

    def setup(self, stage: str | None = None) -> None:
        """Read the data into memory, once, and say how many speakers were found; `stage` makes no difference.

        Raises:
            UsageError: If what `load()` returns is not what `layout()` says.
            FlgenError: If files are missing or damaged, or a split is empty.
        """
        if self._loaded is not None:
            return
        super().setup(stage)
        log.info("%s: %s", self.name, "; ".join(map(_count, ("training", "test"), (self.train, self.test))))

    def client_data(self, client: int, rows: np.ndarray, device: torch.device | str = "cpu") -> ClientData:
        """Return one client's data: recordings, or their features where these fit into `features_mb`.

        Args:
            client: The client's number.
            rows: The client's entry of `split_clients`.
            device: Where batches are wanted.
        """
        from flgen.data.client_data import TensorClientData

        bytes_each = 4 * MELS * frames(*self.layout().shape)
        keeps = self.standardize if len(self.train) * bytes_each <= self.features_mb * 1e6 else None
        return TensorClientData(self.train, rows, device, self.classes, keeps)

    def standardize(self, stored: torch.Tensor) -> torch.Tensor:
        """Return the log-mel features that an audio module reads; what is features already is returned as it is.

        Args:
            stored: int16 tensor (B, T), or float32 (B, 1 + T // 160, 128), on any device.

        Returns:
            float32 tensor (B, 1 + T // 160, 128) on the same device.

        Source: gptfl.md, section 5.3.
        """
        from flgen.data.log_mel import log_mel

        return stored if stored.is_floating_point() else log_mel(stored)

    def decode_sample(self, content: bytes, extension: str) -> torch.Tensor:
        """Return one WAV file as this data set stores recordings.

        Its first channel is resampled to 16 kHz, then cut or followed by zeros.

        Args:
            content: The file's bytes.
            extension: `.wav`; the dot may be missing.

        Returns:
            int16 tensor (T,).

        Raises:
            FlgenError: If the file is of another kind, or damaged.
        """
        from flgen.data.waveforms import decode_waveform

        kind = extension.lower().removeprefix(".")
        if kind != "wav":
            raise FlgenError(f"a .{kind} file is no recording; give .wav")
        return torch.from_numpy(decode_waveform(content, *self.layout().shape))


def _count(split: str, recordings: LabelledSet) -> str:
    speakers = recordings.attributes.get("speaker")
    of = "" if speakers is None else f" of {len(speakers.unique())} speakers"
    return f"{len(recordings)} {split} recordings{of}"


def check_seconds(seconds: float) -> None:
    """Refuse a length of recordings that has no features, or that no memory holds.

    Raises:
        UsageError: If it is below 0.1 s or above 60 s.
    """
    assert LEAST_SAMPLES < 0.1 * SAMPLE_RATE
    if not 0.1 <= seconds <= 60.0:
        raise UsageError(f"`--data.seconds` is {seconds}; it must be 0.1 to 60")
