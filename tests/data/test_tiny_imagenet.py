"""Tiny-ImageNet from a folder of the official shape: classes, splits, the place of every pixel, damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import assert_one_line, plain, read, write_image

from flgen.data import TinyImageNet
from flgen.errors import FlgenError, UsageError

QUADRANTS = ((230, 20, 20), (20, 200, 40), (30, 30, 220), (240, 240, 240))
"""Colours of an image's upper left, upper right, lower left and lower right."""
GREYS = {"n01": 40, "n02": 120, "n03": 200}


def quadrants() -> np.ndarray:
    pixels = plain(QUADRANTS[0], height=64, width=64)
    pixels[:32, 32:], pixels[32:, :32], pixels[32:, 32:] = QUADRANTS[1:]
    return pixels


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three classes with 2 training images each and 4 validation images; the first image of n02 has four colours."""
    folder = tmp_path / "tiny-imagenet-200"
    for wnid, grey in GREYS.items():
        for number in (0, 1):
            write_image(folder / f"train/{wnid}/images/{wnid}_{number}.JPEG", plain((grey,) * 3, 64, 64), quality=95)
        (folder / f"train/{wnid}/{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
    write_image(folder / "train/n02/images/n02_0.JPEG", quadrants(), quality=98, subsampling=0)
    owners = ["n03", "n01", "n02", "n03"]
    for number, wnid in enumerate(owners):
        write_image(folder / f"val/images/val_{number}.JPEG", plain(GREYS[wnid], 64, 64), quality=95)  # grey files
    rows = [f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n" for number, wnid in enumerate(owners)]
    (folder / "val/val_annotations.txt").write_text("".join(rows))
    (folder / "wnids.txt").write_text("n02\nn03\nn01\n")
    names = ["n00\tentity", "n01\tgoldfish, Carassius auratus", "n02\tEgyptian cat", "n03\tflagpole, flagstaff", ""]
    (folder / "words.txt").write_text("\n".join(names))
    return folder


def test_classes_are_ordered_by_wordnet_id_and_have_their_first_name(folder):
    data = read(TinyImageNet(str(folder.parent)))
    assert data.class_names == ("goldfish", "Egyptian cat", "flagpole")
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (data.name, data.channels, data.image_size) == ("tiny_imagenet", 3, 64)


def test_the_official_validation_images_are_the_test_set_and_grey_files_become_rgb(folder):
    data = read(TinyImageNet(str(folder.parent)))
    assert data.test.labels.tolist() == [2, 0, 1, 2]
    assert data.test.images.shape == (4, 3, 64, 64)
    means = data.test.images.float().mean(dim=(2, 3))
    assert torch.allclose(means, torch.tensor([200.0, 40.0, 120.0, 200.0])[:, None].expand(4, 3), atol=1.0)


def test_every_pixel_is_where_it_was_in_the_image(folder):
    # The reference code reads height, width and channels in another order (defect 12): stripes of mixed colours.
    image = read(TinyImageNet(str(folder.parent))).train.images[2].float()
    parts = (image[:, :32, :32], image[:, :32, 32:], image[:, 32:, :32], image[:, 32:, 32:])
    for part, colour in zip(parts, QUADRANTS, strict=True):
        inside = part[:, 2:-2, 2:-2] - torch.tensor(colour)[:, None, None]
        assert inside.abs().max() <= 6


def test_the_folder_itself_may_be_the_root_and_images_can_be_shrunk(folder):
    data = read(TinyImageNet(str(folder), image_size=8))
    assert data.train.images.shape == (6, 3, 8, 8)
    corners = data.train.images[2][:, [1, 1, 6, 6], [1, 6, 1, 6]].T.float()
    assert (corners - torch.tensor(QUADRANTS)).abs().max() <= 6


def test_pixels_are_normalised_to_one_half_and_one_half(folder):
    data = TinyImageNet(str(folder.parent))
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert data.standardize(images).flatten().tolist() == pytest.approx([-1.0, -0.6, 1.0], abs=1e-6)


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("wnids.txt", "no wnids.txt in"),
        ("words.txt", "no words.txt in"),
        ("val/val_annotations.txt", "no val/val_annotations.txt in"),
        ("train/n03/images/*", "no *.JPEG in"),
        ("val/images/val_2.JPEG", "val_2.JPEG does not exist"),
    ],
)
def test_what_is_missing_is_named_with_where_it_was_looked_for(folder, lost, named):
    for path in folder.glob(lost):
        path.unlink()
    with pytest.raises(FlgenError) as caught:
        read(TinyImageNet(str(folder.parent)))
    assert_one_line(caught.value, named, str(folder), "tiny-imagenet-200, as published by Stanford's CS231n course")


def test_a_missing_folder_is_named_with_its_option(tmp_path):
    with pytest.raises(FlgenError) as caught:
        TinyImageNet(str(tmp_path / "nowhere")).layout()
    assert_one_line(caught.value, "no wnids.txt, words.txt, train", "nowhere/tiny-imagenet-200", "`--data.root`")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("wnids.txt", b"\n", "it is empty"),
        ("wnids.txt", b"\xff\xfe\x00", "codec can't decode"),
        ("wnids.txt", b"n01\nn02\n", "val_0.JPEG has the class n03, not in wnids.txt"),
        ("words.txt", b"n01\tgoldfish\nn02\tcat\n", "no name of n03"),
        ("val/val_annotations.txt", b"val_0.JPEG\n", "val_0.JPEG has the class nothing"),
        ("val/images/val_1.JPEG", b"no image", "val_1.JPEG is damaged or not an image"),
    ],
)
def test_damaged_files_are_named(folder, file, content, says):
    (folder / file).write_bytes(content)
    with pytest.raises(FlgenError) as caught:
        read(TinyImageNet(str(folder.parent)))
    assert_one_line(caught.value, str(folder), says, "tiny-imagenet-200, as published by Stanford's CS231n course")


def test_an_image_of_two_pixels_is_refused():
    with pytest.raises(UsageError, match=r"--data.image_size` is 2"):
        TinyImageNet(image_size=2)
