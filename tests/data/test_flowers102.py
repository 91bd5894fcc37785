"""Flowers-102 from files that the tests write."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from scipy.io import savemat
from small_data import assert_one_line, plain, read, write_image
from torchvision.transforms import v2

from flgen.data import Flowers102
from flgen.errors import FlgenError, UsageError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six images of one colour, 10 * number grey; classes 1, 2, 102, 1, 2, 102; training 5 and 2, test 3, 1 and 6."""
    folder = tmp_path / "flowers-102"
    for number in range(1, 7):
        write_image(folder / "jpg" / f"image_{number:05d}.jpg", plain((10 * number,) * 3, 20, 28))
    savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 2, 102, 1, 2, 102]], dtype=np.uint8)})
    splits = {"trnid": [[5, 2]], "valid": [[4]], "tstid": [[3, 1, 6]]}
    savemat(folder / "setid.mat", {name: np.array(numbers, dtype=np.uint16) for name, numbers in splits.items()})
    return tmp_path


def test_the_official_splits_and_labels_from_zero(root: Path):
    data = read(Flowers102(str(root), image_size=8))
    assert data.train.images.shape == (2, 3, 8, 8)
    assert data.train.images[:, 0, 0, 0].tolist() == pytest.approx([50, 20], abs=2)
    assert data.train.labels.tolist() == [1, 1]
    assert data.test.images[:, 0, 0, 0].tolist() == pytest.approx([30, 10, 60], abs=2)
    assert data.test.labels.tolist() == [101, 0, 101]
    assert (data.name, data.channels, data.image_size, data.classes) == ("flowers102", 3, 8, 102)


def test_the_official_validation_images_may_be_trained_on(root: Path):
    data = read(Flowers102(str(root), image_size=8, with_validation=True))
    assert data.train.images[:, 0, 0, 0].tolist() == pytest.approx([50, 20, 40], abs=2)
    assert data.train.labels.tolist() == [1, 1, 0]
    assert len(data.test) == 3


def test_the_whole_photograph_or_its_centre_is_kept(root: Path):
    pixels = np.zeros((64, 128, 3), dtype=np.uint8)
    pixels[:, 96:] = 200  # the right quarter of a wide photograph
    write_image(root / "flowers-102" / "jpg" / "image_00005.jpg", pixels)
    centre, whole = (
        read(Flowers102(str(root), image_size=8, whole=whole)).train.images[0, 0] for whole in (False, True)
    )
    assert centre.max() < 20
    assert whole[:, 6:].min() > 150
    assert whole[:, :5].max() < 50
    content = (root / "flowers-102" / "jpg" / "image_00005.jpg").read_bytes()
    decoded = Flowers102(str(root), image_size=8, whole=True).decode_sample(content, ".jpg")
    assert torch.equal(decoded[0], whole)  # generated images go the same way


def test_the_folder_itself_will_do(root: Path):
    assert len(read(Flowers102(str(root / "flowers-102"), image_size=8)).test) == 3


def test_the_default_is_the_published_size():
    assert Flowers102().image_size == 224
    assert Flowers102().layout().shape == (3, 224, 224)


def test_names_are_torchvisions_in_natural_words():
    ours, theirs = Flowers102().class_names, torchvision.datasets.Flowers102.classes
    assert len(set(ours)) == 102
    changed = {their: our for our, their in zip(ours, theirs, strict=True) if our != their}
    assert changed == {
        "pink-yellow dahlia?": "pink-yellow dahlia",
        "globe-flower": "globe flower",
        "desert-rose": "desert rose",
    }
    assert ours[87] == "cyclamen"  # `cyclamen ` in the authors' list
    assert all(name == " ".join(name.split()).lower() for name in ours)


def gradient(height: int, width: int) -> Image.Image:
    """A smooth image, in which a crop that is off by a pixel shows."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows * 255 // height, columns * 255 // width, rows * 0], -1).astype(np.uint8))


@pytest.mark.parametrize(("height", "width"), [(500, 667), (768, 768), (300, 260)])
def test_a_generated_image_is_resized_to_256_and_its_central_224_pixels_are_kept(height: int, width: int):
    image, file = gradient(height, width), BytesIO()
    image.save(file, "PNG")
    published = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])
    sample = Flowers102().decode_sample(file.getvalue(), ".png")
    difference = (sample.int() - published(image).int()).abs()
    assert sample.shape == (3, 224, 224)
    assert difference.max() <= 2
    assert difference.float().mean() < 0.5


def test_stored_photographs_go_the_same_way(tmp_path: Path, root: Path):
    file = root / "flowers-102" / "jpg" / "image_00003.jpg"
    gradient(60, 90).save(file, quality=100, subsampling=0)
    data = read(Flowers102(str(root), image_size=28))
    assert torch.equal(data.test.images[0], data.decode_sample(file.read_bytes(), "jpg"))


def test_channels_are_normalised_as_imagenet_is():
    grey = torch.full((1, 3, 1, 1), 51, dtype=torch.uint8)  # 0.2
    expected = [(0.2 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    assert Flowers102().standardize(grey).flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_pixels_can_be_centred_instead():
    grey = torch.full((1, 3, 1, 1), 51, dtype=torch.uint8)
    assert Flowers102(pixels="centred").standardize(grey).flatten().tolist() == pytest.approx([-0.6] * 3, abs=1e-6)


def test_what_is_missing_is_said_on_one_line(root: Path, tmp_path: Path):
    (root / "flowers-102" / "setid.mat").unlink()
    with pytest.raises(FlgenError) as caught:
        read(Flowers102(str(root)))
    assert_one_line(caught.value, "flowers102: no setid.mat in", "--data.root", "--data.download true")
    with pytest.raises(FlgenError) as caught:
        read(Flowers102(str(tmp_path / "elsewhere")))
    assert_one_line(caught.value, "no imagelabels.mat, setid.mat, jpg/ in")


def test_damaged_tables_are_said_on_one_line(root: Path):
    table = root / "flowers-102" / "imagelabels.mat"
    table.write_bytes(b"no table")
    with pytest.raises(FlgenError) as caught:
        read(Flowers102(str(root)))
    assert_one_line(caught.value, "imagelabels.mat is damaged", "--data.download true")
    savemat(table, {"labels": np.array([[1, 2]])})
    with pytest.raises(FlgenError) as caught:
        read(Flowers102(str(root)))
    assert_one_line(caught.value, "setid.mat names image 5, but imagelabels.mat has 2 labels")


def test_an_image_that_is_missing_is_named(root: Path):
    (root / "flowers-102" / "jpg" / "image_00006.jpg").unlink()
    with pytest.raises(FlgenError, match=r"image_00006\.jpg does not exist"):
        read(Flowers102(str(root)))


def test_it_is_fetched_by_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(torchvision.datasets, "Flowers102", lambda root, download: asked.append((root, download)))
    Flowers102(str(tmp_path), download=True).prepare_data()
    assert asked == [(tmp_path, True)]


def test_an_impossible_size_is_refused():
    with pytest.raises(UsageError, match=r"`--data.image_size` is 3"):
        Flowers102(image_size=3)
