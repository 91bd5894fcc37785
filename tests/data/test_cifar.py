"""CIFAR-10 and CIFAR-100 from files that the tests write."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
from small_data import assert_one_line, read

from flgen.data import CIFAR10, CIFAR100
from flgen.errors import FlgenError


def write_pickle(folder: Path, name: str, content: object) -> list[str]:
    """Write a file as the data sets have it; return torchvision's entry for it: name and hash."""
    blob = pickle.dumps(content)
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(blob)
    return [name, hashlib.md5(blob).hexdigest()]


def pixels(red: int) -> np.ndarray:
    """Four equal images, each row the red, green and blue plane of one."""
    return np.tile(np.repeat(np.array([red, 100, 200], dtype=np.uint8), 1024), (4, 1))


@pytest.fixture
def cifar10_root(tmp_path, monkeypatch) -> Path:
    """A CIFAR-10 folder of 4 images per file, whose hashes torchvision is told."""
    source = torchvision.datasets.CIFAR10
    folder = tmp_path / source.base_folder

    def batch(name: str, red: int) -> list[str]:
        return write_pickle(folder, name, {"data": pixels(red), "labels": [0, 1, 8, 9]})

    monkeypatch.setattr(source, "train_list", [batch(f"data_batch_{i}", i) for i in range(1, 6)])
    monkeypatch.setattr(source, "test_list", [batch("test_batch", 50)])
    name, digest = write_pickle(folder, "batches.meta", {"label_names": ["x"] * 10})
    monkeypatch.setattr(source, "meta", {"filename": name, "key": "label_names", "md5": digest})
    return tmp_path


@pytest.fixture
def cifar100_root(tmp_path, monkeypatch) -> Path:
    """A CIFAR-100 folder of 4 images per split, whose hashes torchvision is told."""
    source = torchvision.datasets.CIFAR100
    folder = tmp_path / source.base_folder

    def batch(name: str, red: int) -> list[str]:
        labels = {"fine_labels": [0, 53, 98, 99], "coarse_labels": [4, 4, 14, 13]}
        return write_pickle(folder, name, {"data": pixels(red), **labels})

    monkeypatch.setattr(source, "train_list", [batch("train", 7)])
    monkeypatch.setattr(source, "test_list", [batch("test", 50)])
    name, digest = write_pickle(folder, "meta", {"fine_label_names": ["x"] * 100})
    monkeypatch.setattr(source, "meta", {"filename": name, "key": "fine_label_names", "md5": digest})
    return tmp_path


def test_cifar10_is_read_as_channels_first(cifar10_root):
    data = read(CIFAR10(str(cifar10_root)))
    assert data.train.images.shape == (20, 3, 32, 32)
    assert data.train.images[5].unique(dim=-1).squeeze(-1).unique(dim=-1).flatten().tolist() == [2, 100, 200]
    assert data.train.labels[:4].tolist() == [0, 1, 8, 9]
    assert len(data.test) == 4
    assert (data.name, data.channels, data.class_names[9]) == ("cifar10", 3, "truck")


def test_cifar100_has_the_fine_labels(cifar100_root):
    data = read(CIFAR100(str(cifar100_root)))
    assert (data.name, data.channels, data.classes) == ("cifar100", 3, 100)
    assert data.train.images[3].unique(dim=-1).squeeze(-1).unique(dim=-1).flatten().tolist() == [7, 100, 200]
    assert data.train.labels.tolist() == data.test.labels.tolist() == [0, 53, 98, 99]
    assert [data.class_names[label] for label in (0, 53, 98, 99)] == ["apple", "orange", "woman", "worm"]


def test_the_hundred_classes_are_in_alphabetical_order():
    names = CIFAR100().class_names
    assert len(names) == 100
    assert list(names) == sorted(set(names))


def test_cifar_can_be_shrunk(cifar10_root, cifar100_root):
    assert read(CIFAR10(str(cifar10_root), image_size=16)).test.images.shape == (4, 3, 16, 16)
    assert read(CIFAR100(str(cifar100_root), image_size=16)).test.images.shape == (4, 3, 16, 16)


@pytest.mark.parametrize("image_size", [32, 16])
@pytest.mark.parametrize(
    ("data_set", "mean", "std"),
    [
        (CIFAR10, (0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)),
        (CIFAR100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ],
)
def test_the_channels_are_normalised_by_the_published_numbers(data_set, mean, std, image_size):
    data = data_set(image_size=image_size)
    grey = torch.full((1, 3, 2, 2), 51, dtype=torch.uint8)  # 0.2
    expected = [(0.2 - m) / s for m, s in zip(mean, std, strict=True)]
    assert data.standardize(grey)[0, :, 1, 0].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("data_set", [CIFAR10, CIFAR100])
def test_centred_pixels_lie_between_minus_one_and_one(data_set):
    bytes_ = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert data_set(pixels="centred").standardize(bytes_).flatten().tolist() == pytest.approx(
        [-1.0, -0.6, 1.0], abs=1e-6
    )


@pytest.mark.parametrize(
    ("data_set", "folder", "file"),
    [(CIFAR10, "cifar-10-batches-py", "data_batch_3"), (CIFAR100, "cifar-100-python", "train")],
)
def test_a_file_with_another_hash_is_not_unpickled(data_set, folder, file, cifar10_root, cifar100_root):
    (cifar10_root / folder / file).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(FlgenError) as caught:
        read(data_set(str(cifar10_root)))
    assert_one_line(caught.value, f"{folder} is damaged", "--data.download true")
