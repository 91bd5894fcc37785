"""The small diffusion pipeline: an ordinary pipeline on disk, whose digits a classifier can learn from."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from flgen.data import Digits
from flgen.errors import UsageError
from flgen.synthesis.diffusion_images import DiffusionImages
from flgen.synthesis.samples import BareLabel, plan_samples
from flgen.synthesis.small_diffusion import train_small_diffusion
from flgen.synthesis.synthesizer import content_digest

pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("no_hub")

DIGITS = [str(digit) for digit in range(10)]


def trained(folder: Path, steps: int) -> Digits:
    """Train on every other image of the training split, and return the data set."""
    data = Digits()
    data.setup()
    public = data.train.subset(torch.arange(0, len(data.train), 2))
    torch.manual_seed(1)
    train_small_diffusion(public.images, public.labels, DIGITS, folder, steps=steps)
    return data


def test_it_is_a_pipeline_as_any_other(tmp_path: Path) -> None:
    trained(tmp_path / "model", steps=2)
    expected = torch.rand(2)
    generator = DiffusionImages(str(tmp_path / "model"), steps=2, batch_size=4, local_files_only=True)
    prompts = [BareLabel("p", 0, "a photo of 7")]
    samples = list(generator.synthesize(plan_samples(["7"], prompts, 6, seed=0, guidance="integers")))
    assert {Image.open(io.BytesIO(sample.content)).size for sample in samples} == {(8, 8)}
    assert Image.open(io.BytesIO(samples[0].content)).mode == "L"
    assert len({sample.content for sample in samples}) == 6

    trained(tmp_path / "again", steps=2)
    assert content_digest(tmp_path / "again") == content_digest(tmp_path / "model")  # by its own seed alone
    assert torch.equal(torch.rand(2), expected)


def test_it_says_how_far_it_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("flgen.synthesis.small_diffusion.LOG_EVERY_S", 0.0)
    with caplog.at_level("INFO", "flgen"):
        trained(tmp_path / "model", steps=2)
    assert caplog.messages[:4] == [
        f"small diffusion pipeline: {network}, step {step}/2"
        for network in ("autoencoder", "denoiser")
        for step in (1, 2)
    ]


def test_other_images_are_refused(tmp_path: Path) -> None:
    for images in (torch.zeros(4, 1, 9, 9, dtype=torch.uint8), torch.zeros(4, 1, 8, 8)):
        with pytest.raises(UsageError, match=r"uint8 images \(N, C, H, W\), sides in eights, not \(4, 1, "):
            train_small_diffusion(images, torch.zeros(4, dtype=torch.int64), ["0"], tmp_path, steps=1)


def accuracy_after_training_on(images: Tensor, labels: Tensor, data: Digits) -> float:
    """Train a small classifier on images (N, 1, 8, 8) and return its accuracy on the real test split."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 16, 10),
    )
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    inputs = data.standardize(images)
    for _ in range(400):
        rows = torch.randint(len(inputs), (64,))
        loss = F.cross_entropy(network(inputs[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = network(data.standardize(data.test.images)).argmax(1)
    return float((found == data.test.labels).float().mean())


@pytest.mark.long
def test_a_classifier_learns_real_digits_from_its_samples(tmp_path: Path) -> None:
    data = trained(tmp_path / "model", steps=1200)
    generator = DiffusionImages(str(tmp_path / "model"), steps=20, batch_size=50, local_files_only=True)
    prompts = [BareLabel(f"p{n}", n, f"a photo of {digit}") for n, digit in enumerate(DIGITS)]
    samples = list(generator.synthesize(plan_samples(DIGITS, prompts, 60, seed=0, guidance="integers")))
    images = torch.stack([data.decode_sample(sample.content, sample.extension) for sample in samples])
    labels = torch.tensor([sample.request.class_id for sample in samples])
    assert accuracy_after_training_on(images, labels, data) > 0.8
