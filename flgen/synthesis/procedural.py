"""Samples by formula: images, tones and sentences that depend on the class, so that a whole pipeline runs in seconds.

Specification of GPT-FL, section 3.6 (`stub`). A classifier can learn the classes; nobody would take the samples for
real ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.experiment import option_ranges
from flgen.synthesis.diffusion_images import encode_png
from flgen.synthesis.samples import SampleRequest, sample_seed
from flgen.synthesis.synthesizer import Modality, Sample, Synthesizer
from flgen.synthesis.waveforms import encode_wav

if TYPE_CHECKING:
    import numpy as np
else:
    np = deferred_module("numpy")

GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, keep any number of classes apart
LOWEST_HZ, OCTAVES = 200.0, 4.0
FILLERS = ("well", "you know", "so", "I mean", "right", "look", "listen", "anyway", "really", "honestly")
WORDS_OF_CLASS = 6
WORDS: tuple[str, ...] = ("garden", "river", "window", "morning", "letter", "train", "music", "paper")
WORDS += ("silver", "winter", "orange", "market", "bridge", "shadow", "engine", "island", "kitchen")
WORDS += ("mountain", "pocket", "doctor", "planet", "summer", "ticket", "village", "thunder", "candle")
WORDS += ("harbour", "mirror", "pepper", "saddle", "tunnel", "velvet")


class Procedural(Synthesizer):
    """Images, tones or sentences by formula, in microseconds, of which each class has its own kind.

    An image is a grating whose direction and width, and a spot whose place, are those of the class; a tone has the
    pitch and the rhythm of its class; a sentence has words of its class. Shifts, noise and fillers come from the seed.

    Args:
        modality: What to make.
        size: Side of the images, pixels.
        channels: 1 (grey) or 3 (RGB).
        seconds: Length of the tones, s.
        sample_rate: Of the tones, Hz.

    Raises:
        UsageError: An option is out of its range.
    """

    def __init__(
        self,
        modality: Modality = "image",
        size: int = 32,
        channels: Literal[1, 3] = 3,
        seconds: float = 1.0,
        sample_rate: int = 16000,
    ) -> None:
        option_ranges.at_least("synthesizer", 1, size=size, sample_rate=sample_rate)
        if not 0 < seconds < float("inf"):
            raise UsageError(f"--synthesizer.seconds is {seconds}: give seconds above 0")
        self.modality = modality
        self.size = size
        self.channels = channels
        self.seconds = seconds
        self.sample_rate = sample_rate

    def make_batch(self, requests: Sequence[SampleRequest]) -> list[Sample]:
        """Return one sample for each request."""
        make: dict[Modality, Callable[[SampleRequest], Sample]] = {
            "image": self._image,
            "audio": self._tone,
            "text": self._sentence,
        }
        return [make[self.modality](request) for request in requests]

    def _sample(self, request: SampleRequest, content: bytes, extension: str, **facts: object) -> Sample:
        made = {"guidance": None, "provider": "procedural", "model": None, "revision": None}
        return Sample(request, content, extension, {**made, **facts})

    def _image(self, request: SampleRequest) -> Sample:
        generator = np.random.default_rng(request.seed)
        turn = GOLDEN * request.class_id % 1.0
        y, x = np.meshgrid(np.linspace(-1, 1, self.size), np.linspace(-1, 1, self.size), indexing="ij")
        angle = np.pi * turn + generator.normal(0, 0.05)
        waves = 1.0 + request.class_id % 3
        grating = np.sin(np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)) + generator.uniform(-0.6, 0.6))
        centre = 0.5 * np.array([np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)]) + generator.normal(0, 0.06, 2)
        spot = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / 0.08)
        tint = 0.5 + 0.5 * np.cos(2 * np.pi * (turn + np.arange(self.channels) / 3))  # (channels,)
        image = (0.3 + 0.2 * grating[..., None]) * (0.5 + 0.5 * tint) + 0.5 * spot[..., None]  # (size, size, channels)
        content, height, width = encode_png(image + generator.normal(0, 0.04, image.shape))
        return self._sample(request, content, "png", height=height, width=width)

    def _tone(self, request: SampleRequest) -> Sample:
        generator = np.random.default_rng(request.seed)
        samples = max(1, round(self.seconds * self.sample_rate))
        t = np.arange(samples) / self.sample_rate
        turn = GOLDEN * request.class_id % 1.0
        pitch = LOWEST_HZ * 2 ** (OCTAVES * turn) * 2 ** generator.normal(0, 0.01)
        beat = 2.0 + request.class_id % 4
        envelope = 0.6 + 0.4 * np.sin(2 * np.pi * (beat * t + generator.uniform()))
        overtone = 0.3 * np.sin(4 * np.pi * pitch * t + generator.uniform(0, 2 * np.pi))
        wave = 0.5 * envelope * (np.sin(2 * np.pi * pitch * t) + overtone) + generator.normal(0, 0.02, samples)
        content = encode_wav(wave, self.sample_rate)
        seconds = samples / self.sample_rate
        return self._sample(request, content, "wav", seconds=seconds, sample_rate=self.sample_rate)

    def _sentence(self, request: SampleRequest) -> Sample:
        of_class = random.Random(sample_seed(0, request.class_id, 0)).sample(WORDS, WORDS_OF_CLASS)
        draws = random.Random(request.seed)
        words = [of_class[int(draws.random() * len(of_class))] for _ in range(4)]
        filler = FILLERS[int(draws.random() * len(FILLERS))]
        text = f"{filler}, the {words[0]} and the {words[1]} of {request.label} near the {words[2]}, {words[3]} too."
        return self._sample(request, text.encode(), "txt")
