"""Samples by formula: decodable, reproducible, and learnable."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from flgen.errors import UsageError
from flgen.synthesis.procedural import Procedural
from flgen.synthesis.samples import BareLabel, SampleRequest, plan_samples

CLASSES = 10


def requests(per_class: int, seed: int = 0) -> list[SampleRequest]:
    names = [f"class {n}" for n in range(CLASSES)]
    return plan_samples(names, [BareLabel(f"p{n}", n, name) for n, name in enumerate(names)], per_class, seed=seed)


def features(modality: str, seed: int, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what a simple classifier looks at: pixels, or the spectrum of a tone."""
    generator = Procedural(modality, size=12, seconds=0.25)  # type: ignore[arg-type]
    rows, labels = [], []
    for sample in generator.synthesize(requests(per_class, seed)):
        labels.append(sample.request.class_id)
        if modality == "image":
            rows.append(np.asarray(Image.open(io.BytesIO(sample.content)), dtype=float).ravel())
        else:
            _, waveform = wavfile.read(io.BytesIO(sample.content))
            rows.append(np.abs(np.fft.rfft(waveform))[:2000].reshape(-1, 10).sum(1))
    return np.stack(rows), np.array(labels)


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_a_classifier_learns_the_classes(modality: str) -> None:
    train, of_train = features(modality, seed=1, per_class=8)
    test, of_test = features(modality, seed=2, per_class=4)
    centres = np.stack([train[of_train == class_id].mean(0) for class_id in range(CLASSES)])
    nearest = ((test[:, None] - centres[None]) ** 2).sum(-1).argmin(1)
    assert (nearest == of_test).mean() > 0.9


def test_a_sentence_has_words_of_its_class() -> None:
    texts: dict[int, list[str]] = {n: [] for n in range(CLASSES)}
    for sample in Procedural("text").synthesize(requests(30)):
        texts[sample.request.class_id].append(sample.content.decode())
        assert sample.extension == "txt"
    words = [set(" ".join(of_class).replace(",", "").replace(".", "").split()) for of_class in texts.values()]
    assert all(len(set(of_class)) > 20 for of_class in texts.values())
    assert len({frozenset(of_class) for of_class in words}) == CLASSES


@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_the_same_request_is_the_same_sample(modality: str) -> None:
    contents = [[s.content for s in Procedural(modality).synthesize(requests(2))] for _ in range(2)]  # type: ignore[arg-type]
    assert contents[0] == contents[1]
    assert len(set(contents[0])) == 2 * CLASSES


def test_grey_images_are_grey() -> None:
    sample = next(Procedural(size=9, channels=1).synthesize(requests(1)))
    assert (Image.open(io.BytesIO(sample.content)).mode, sample.facts["height"]) == ("L", 9)


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--synthesizer.size is 0"):
        Procedural(size=0)
    with pytest.raises(UsageError, match=r"--synthesizer.seconds is -1"):
        Procedural(seconds=-1)
