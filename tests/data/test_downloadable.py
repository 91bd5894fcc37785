"""MNIST, Fashion-MNIST and CelebA from files that the tests write, and what is said when files are wrong."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import filelock
import numpy as np
import pytest
import torch
import torchvision.datasets
from small_data import assert_one_line, plain, read, write_idx, write_image, write_mnist_split

import flgen.data.downloadable
from flgen.data import CIFAR10, CIFAR100, MNIST, CelebA, FashionMNIST
from flgen.errors import FlgenError


@pytest.mark.parametrize("folder", ["", "MNIST/raw"])
@pytest.mark.parametrize("compress", [False, True])
def test_mnist_files_lie_in_root_or_where_torchvision_puts_them(tmp_path, folder, compress):
    images = write_mnist_split(tmp_path / folder, "train", 20, compress)
    write_mnist_split(tmp_path / folder, "t10k", 10, compress)
    data = read(MNIST(str(tmp_path), image_size=28))
    assert (data.name, data.classes, data.channels) == ("mnist", 10, 1)
    assert np.array_equal(data.train.images[:, 0].numpy(), images)
    assert data.train.labels.tolist() == [*range(10), *range(10)]
    assert len(data.test) == 10


def test_mnist_is_interpolated_to_32_pixels_by_default(tmp_path):
    write_mnist_split(tmp_path, "train", 4)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", np.full((2, 28, 28), 77))
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.zeros(2))
    data = read(MNIST(str(tmp_path)))
    assert data.train.images.shape == (4, 1, 32, 32)
    assert data.train.images.dtype == torch.uint8
    assert data.test.images.unique().tolist() == [77]


def test_mnist_with_its_test_images_alone_is_split_with_a_warning(tmp_path):
    images = write_mnist_split(tmp_path, "t10k", 50, compress=True)
    with pytest.warns(
        UserWarning, match="test images only; of these 50, .* 40 are used for training and 10 for testing"
    ):
        data = read(MNIST(str(tmp_path), image_size=28))
    both = torch.cat((data.train.images, data.test.images))[:, 0].numpy()
    assert (len(data.train), len(data.test)) == (40, 10)
    assert {image.tobytes() for image in both} == {image.tobytes() for image in images}


def test_mnist_with_half_of_its_training_files_is_incomplete(tmp_path):
    write_mnist_split(tmp_path, "t10k", 10)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(5))
    with pytest.raises(FlgenError) as caught:
        read(MNIST(str(tmp_path)))
    assert_one_line(caught.value, "no train-images-idx3-ubyte(.gz)", str(tmp_path), "--data.root")


def test_fashion_mnist_has_its_own_folder_and_names(tmp_path):
    write_mnist_split(tmp_path / "FashionMNIST" / "raw", "train", 20)
    write_mnist_split(tmp_path / "FashionMNIST" / "raw", "t10k", 10)
    data = read(FashionMNIST(str(tmp_path)))
    assert data.name == "fashion_mnist"
    assert data.class_names[9] == "Ankle boot"
    assert len(data.train) == 20


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "bytes for the shape (6, 28, 28)"),
        (lambda path: path.write_bytes(b"<html>not found</html>"), "no IDX file"),
        (lambda path: path.write_bytes(b"\x1f\x8b" + bytes(20)), "is damaged"),
        (lambda path: write_idx(path, np.zeros((5, 28, 28))), "has 5 images but"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path, damage, says):
    write_mnist_split(tmp_path, "train", 6)
    write_mnist_split(tmp_path, "t10k", 6)
    damage(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(FlgenError) as caught:
        read(MNIST(str(tmp_path)))
    assert_one_line(caught.value, "train-images-idx3-ubyte", says)


@pytest.mark.parametrize(
    ("data_set", "wanted"),
    [
        (MNIST, "train-images-idx3-ubyte"),
        (FashionMNIST, "FashionMNIST/raw"),
        (CIFAR10, "cifar-10-batches-py"),
        (CIFAR100, "cifar-100-python"),
        (CelebA, "list_attr_celeba.txt"),
    ],
)
def test_a_missing_root_says_what_was_looked_for_and_what_to_do(data_set, wanted, tmp_path):
    data = data_set(str(tmp_path / "nowhere"))
    data.prepare_data()
    with pytest.raises(FlgenError) as caught:
        data.setup()
    assert_one_line(caught.value, wanted, str(tmp_path / "nowhere"), "`--data.root`", "`--data.download true`")
    assert not (tmp_path / "nowhere").exists()


def test_files_are_fetched_once_when_that_is_asked_for(tmp_path, monkeypatch):
    fetched = []

    def download(self: torchvision.datasets.MNIST) -> None:
        fetched.append(self.root)
        write_mnist_split(Path(self.raw_folder), "train", 6)
        write_mnist_split(Path(self.raw_folder), "t10k", 6)

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    for _ in range(2):
        assert len(read(MNIST(str(tmp_path / "new"), download=True)).train) == 6
    assert len(fetched) == 1


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    def download(self: torchvision.datasets.MNIST) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    with pytest.raises(FlgenError) as caught:
        MNIST(str(tmp_path), download=True).prepare_data()
    assert_one_line(caught.value, "mnist could not be downloaded", str(tmp_path), "Name or service not known")


def test_a_download_does_not_wait_for_ever_for_another_process(tmp_path, monkeypatch):
    monkeypatch.setattr(flgen.data.downloadable, "DOWNLOAD_TIMEOUT_S", 0.05)
    with filelock.FileLock(tmp_path / ".flgen-download.lock"), pytest.raises(FlgenError) as caught:
        MNIST(str(tmp_path), download=True).prepare_data()
    assert_one_line(caught.value, "another process has held", ".flgen-download.lock")


@pytest.fixture(params=["", "celeba"])
def celeba_root(request, tmp_path) -> Path:
    """Six faces: 0 to 2 train, 3 valid, 4 and 5 test; every face is a grey square on a black margin."""
    folder = tmp_path / request.param
    male, smiling = [1, -1, 1, -1, -1, 1], [-1, -1, 1, 1, 1, 1]
    splits = [0, 0, 0, 1, 2, 2]
    for face in range(6):
        pixels = plain((0, 0, 0), height=218, width=178)
        pixels[29:189, 9:169] = 40 * face + 20  # the central 160x160
        write_image(folder / "img_align_celeba" / f"{face:06d}.jpg", pixels, quality=98)
    rows = [f"{face:06d}.jpg  {male[face]:d}  {smiling[face]:d}" for face in range(6)]
    (folder / "list_attr_celeba.txt").write_text("\n".join(["6", "Male Smiling ", *rows]) + "\n")
    lines = [f"{face:06d}.jpg {split}" for face, split in enumerate(splits)]
    (folder / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_celeba_has_the_official_splits_and_its_attributes(celeba_root):
    data = read(CelebA(str(celeba_root)))
    assert (len(data.train), len(data.test)) == (3, 2)
    assert data.train.labels.tolist() == data.train.attributes["Male"].tolist() == [1, 0, 1]
    assert data.train.attributes["Smiling"].tolist() == [0, 0, 1]
    assert data.test.labels.tolist() == [0, 1]
    assert data.class_names == ("Female", "Male")


def test_celeba_faces_are_cropped_to_the_central_160_pixels(celeba_root):
    data = read(CelebA(str(celeba_root), image_size=32))
    assert data.train.images.shape == (3, 3, 32, 32)
    for face, image in zip((0, 1, 2), data.train.images, strict=True):
        assert abs(image[:, 2:-2, 2:-2].float().mean() - (40 * face + 20)) < 1.5
        assert image.float().std() < 8  # none of the black margin is left


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("list_attr_celeba.txt", "1\nMale Smiling\n000000.jpg 1\n", "is damaged (invalid column index"),
        ("list_attr_celeba.txt", "1\nMale Smiling\n000000.jpg 1 yes\n", "is damaged (could not convert"),
        ("list_attr_celeba.txt", "1\nFemale Smiling\n000000.jpg 1 1\n", "no attribute Male"),
        ("list_attr_celeba.txt", "", "is damaged"),
        ("list_eval_partition.txt", "000000.jpg 0\n", "000001.jpg has no split"),
        ("list_eval_partition.txt", "\n".join(f"{face:06d}.jpg 0" for face in range(6)), "a split without images"),
        ("img_align_celeba/000002.jpg", "no jpeg", "000002.jpg is damaged or not an image"),
    ],
)
def test_damaged_celeba_files_are_named(celeba_root, file, content, says):
    folder = celeba_root if (celeba_root / "list_attr_celeba.txt").exists() else celeba_root / "celeba"
    (folder / file).write_text(content)
    with pytest.raises(FlgenError) as caught:
        read(CelebA(str(celeba_root)))
    assert_one_line(caught.value, Path(file).name, says)


def test_a_celeba_image_that_is_not_there_is_named(celeba_root):
    (missing,) = celeba_root.rglob("000001.jpg")
    missing.unlink()
    with pytest.raises(FlgenError, match=r"000001.jpg does not exist"):
        read(CelebA(str(celeba_root)))
