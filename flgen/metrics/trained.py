"""Feature extractors for small data sets: a CNN classifier trained on the data set at hand, once, and cached.

No pretrained network knows 8x8 digits. The classifier's penultimate layer gives features in which FID and its
relatives mean something for such images, without any download.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import re
import time
import zipfile
from pathlib import Path
from typing import Any, Protocol

import filelock
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flgen.errors import FlgenError, UsageError

log = logging.getLogger("flgen")

RECIPE = 2  # raise it with every change below that changes the trained weights
SEED = 20240229
FEATURES = 64
WIDTHS = (32, 64)
BATCH = 64
LEARNING_RATE = 3e-3
LEAST_STEPS, EPOCHS, MOST_STEPS = 600, 4, 3000
LOCK_TIMEOUT_S = 1800.0  # the other processes wait this long for the one that trains


class LabelledImages(Protocol):
    """One split: `images` (N, C, H, W) uint8 and `labels` (N,) int64."""

    @property
    def images(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...


class LabelledData(Protocol):
    """What a trained extractor needs of a data module."""

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> int: ...
    @property
    def train(self) -> LabelledImages: ...
    @property
    def test(self) -> LabelledImages: ...


class TrainedExtractor(nn.Module):
    """A small convolutional classifier whose penultimate layer is the feature vector.

    Args:
        shape: (channels, height, width) of the images it is made for.
        classes: Number of classes.
        generator: Source of the initial weights; None leaves them as constructed.
    """

    mean: Tensor
    std: Tensor
    scale: Tensor

    def __init__(self, shape: tuple[int, int, int], classes: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.shape = shape
        channels, height, width = shape
        layers: list[nn.Module] = []
        outputs, stride = WIDTHS[0], 1 if max(height, width) <= 16 else 2
        while True:
            layers += [nn.Conv2d(channels, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs)]
            layers.append(nn.ReLU())
            height, width = -(-height // stride), -(-width // stride)
            if max(height, width) <= 4 and outputs == WIDTHS[1]:
                break
            channels, outputs, stride = outputs, WIDTHS[1], 2
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(outputs * height * width, FEATURES), nn.ReLU())
        self.head = nn.Linear(FEATURES, classes)
        self.register_buffer("mean", torch.zeros(shape[0], 1, 1))
        self.register_buffer("std", torch.ones(shape[0], 1, 1))
        self.register_buffer("scale", torch.ones(()))  # root mean square of the training set's features
        self.accuracy = 0.0  # share of held-out images that are classified correctly
        if generator is not None:
            for module in self.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) uint8 to features (B, 64), of unit mean square over the training set."""
        return self.body(self.normalised(images)) / self.scale

    def class_scores(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) uint8 to logits (B, classes)."""
        return self.head(self.body(self.normalised(images)))

    def normalised(self, images: Tensor) -> Tensor:
        """Return the images as float32 of the trained shape, zero mean and unit deviation over the training set.

        Args:
            images: uint8, or floats in [0, 255] through which gradients flow (B, C, H, W).
        """
        channels, *size = self.shape
        if images.shape[1] not in (1, channels):
            raise UsageError(f"the extractor takes images of {channels} channel(s) and these have {images.shape[1]}")
        pixels = images.expand(-1, channels, -1, -1).float() / 255
        if list(pixels.shape[2:]) != size:
            pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
        return (pixels - self.mean) / self.std


def trained_extractor(
    data: LabelledData,
    cache_dir: str | os.PathLike[str] | None = None,
    option: str = "--evaluation.extractors",
) -> TrainedExtractor:
    """Return the extractor of a data set from the cache, or train it and put it there.

    One process trains while the others wait for its file. Training draws from a generator of its own, so that a
    second training on the same machine gives the same weights.

    Args:
        data: Data module; `train` is learnt from, `test` gives the held-out accuracy.
        cache_dir: Folder of cached extractors; default `$FLGEN_CACHE/extractors`, else `~/.cache/flgen/extractors`.
        option: Where the data set was chosen, for messages.

    Raises:
        UsageError: The data set cannot be classified: no images, no labels, one class.
        FlgenError: The lock of the cache is held for longer than half an hour.
    """
    _check(data, option)
    path = _cache_folder(cache_dir) / _file_name(data)
    extractor = _read(path, data, log_damage=False)
    if extractor is not None:
        return extractor
    lock = filelock.FileLock(f"{path}.lock", timeout=LOCK_TIMEOUT_S)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise FlgenError(
            f"another process has been training the extractor '{data.name}' for over {LOCK_TIMEOUT_S:g} s "
            f"(lock {path}.lock): wait for it or stop it, or set FLGEN_CACHE to another folder"
        ) from error
    except (OSError, NotImplementedError) as error:
        log.warning("extractor '%s' is trained but not kept: cannot write to %s (%s)", data.name, path.parent, error)
        return _train(data)
    try:
        extractor = _read(path, data, log_damage=True)
        if extractor is None:
            extractor = _train(data)
            _write(path, extractor)
        return extractor
    finally:
        lock.release()


def _check(data: LabelledData, option: str) -> None:
    where = f"the extractor '{data.name}' is a classifier trained on its data set"
    other = f"choose another {option}"
    if data.classes < 2:
        raise UsageError(f"{where}, which has fewer than two classes: {other}")
    for split, images, labels in (
        ("train", data.train.images, data.train.labels),
        ("test", data.test.images, data.test.labels),
    ):
        if len(images) == 0 or labels.shape != (len(images),):
            raise UsageError(
                f"{where}, whose {split} split has {len(images)} images and labels {tuple(labels.shape)}: {other}"
            )
        if int(labels.min()) < 0 or int(labels.max()) >= data.classes:
            raise UsageError(f"{where}, whose {split} labels are not all in 0..{data.classes - 1}: {other}")


def _cache_folder(cache_dir: str | os.PathLike[str] | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    return Path(os.environ.get("FLGEN_CACHE") or "~/.cache/flgen").expanduser() / "extractors"


def _file_name(data: LabelledData) -> str:
    """Name the cache file after everything that the trained weights and the stored accuracy depend on."""
    digest = hashlib.blake2b(digest_size=16)
    recipe = [RECIPE, SEED, FEATURES, WIDTHS, BATCH, LEARNING_RATE, LEAST_STEPS, EPOCHS, MOST_STEPS, data.classes]
    digest.update(json.dumps(recipe).encode())
    for split in (data.train, data.test):
        for tensor in (split.images, split.labels):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', data.name)}-{digest.hexdigest()}.pt"


def _read(path: Path, data: LabelledData, *, log_damage: bool) -> TrainedExtractor | None:
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not verify the checksums of the archive
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"wrong checksum of {damaged}")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        extractor = TrainedExtractor(_shape(data.train.images), data.classes)
        extractor.load_state_dict(content["state"])
        extractor.accuracy = float(content["accuracy"])
    except Exception as error:  # a damaged file can raise nearly anything
        if log_damage:
            log.warning("extractor '%s' is trained again: the file %s is damaged (%s)", data.name, path, error)
        return None
    log.info("extractor '%s': held-out accuracy %.4f, from %s", data.name, extractor.accuracy, path)
    return extractor.requires_grad_(False).eval()


def _write(path: Path, extractor: TrainedExtractor) -> None:
    content = io.BytesIO()
    torch.save({"accuracy": extractor.accuracy, "state": extractor.state_dict()}, content)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.getvalue())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        log.warning("the trained extractor is not kept: cannot write %s (%s)", path, error)


def _train(data: LabelledData) -> TrainedExtractor:
    images, labels = data.train.images, data.train.labels.to(data.train.images.device)
    device = images.device
    generator = torch.Generator().manual_seed(SEED)
    steps = min(max(LEAST_STEPS, EPOCHS * len(images) // BATCH), MOST_STEPS)
    log.info("training the extractor '%s' on %d images (%d steps)", data.name, len(images), steps)
    started = time.monotonic()
    with (
        torch.inference_mode(False),  # the caller may be evaluating
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        extractor = TrainedExtractor(_shape(images), data.classes, generator).to(device)
        mean, deviation = _channel_moments(images)
        extractor.mean.copy_(mean)
        extractor.std.copy_(deviation)
        optimizer = torch.optim.AdamW(extractor.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(steps):
            while len(order) < BATCH:
                order = torch.cat([order, torch.randperm(len(images), generator=generator)])
            batch, order = order[:BATCH].to(device), order[BATCH:]
            pixels = _shifted(extractor.normalised(images[batch]), generator)
            loss = F.cross_entropy(extractor.head(extractor.body(pixels)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        extractor.requires_grad_(False).eval()
        extractor.scale.copy_(_root_mean_square(extractor, images))
        extractor.accuracy = _accuracy(extractor, data.test)
    log.info(
        "extractor '%s': held-out accuracy %.4f, trained in %.1f s",
        data.name,
        extractor.accuracy,
        time.monotonic() - started,
    )
    return extractor.cpu()


def _shape(images: Tensor) -> tuple[int, int, int]:
    _, channels, height, width = images.shape
    return channels, height, width


def _channel_moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each channel, in units of 1/255, both (C, 1, 1)."""
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256).cpu() for channel in images.unbind(dim=1)])
    share = counts.double() / counts.sum(dim=1, keepdim=True)  # (C, 256)
    mean = share @ values
    deviation = ((share @ values.square()) - mean.square()).clamp(min=0).sqrt().clamp(min=1 / 255)
    return mean.float()[:, None, None], deviation.float()[:, None, None]


def _shifted(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return each image (B, C, H, W) moved by up to a sixteenth of its size, its edge pixels repeated."""
    count, _, height, width = pixels.shape
    reach = max(1, max(height, width) // 16)
    padded = F.pad(pixels, (reach,) * 4, mode="replicate")
    down, right = torch.randint(0, 2 * reach + 1, (2, count), generator=generator).to(pixels.device)
    rows = down[:, None] + torch.arange(height, device=pixels.device)  # (B, H)
    columns = right[:, None] + torch.arange(width, device=pixels.device)  # (B, W)
    image = torch.arange(count, device=pixels.device)
    return padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _root_mean_square(extractor: TrainedExtractor, images: Tensor) -> Tensor:
    squares = [extractor(batch).double().square().sum() for batch in images.split(1000)]
    return (torch.stack(squares).sum() / (len(images) * FEATURES)).sqrt().clamp(min=1e-6)


def _accuracy(extractor: TrainedExtractor, split: LabelledImages) -> float:
    correct = 0
    for images, labels in zip(split.images.split(1000), split.labels.split(1000), strict=True):
        scores = extractor.class_scores(images.to(extractor.mean.device))
        correct += int((scores.argmax(dim=1).cpu() == labels.cpu()).sum())
    return correct / len(split.labels)
