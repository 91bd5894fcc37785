"""Any folder of images: classes, held-out files, formats, damage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import plain, write_image

from flgen.data import ImageFolder
from flgen.data.pixels import decode_files, resize
from flgen.errors import FlgenError, UsageError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def read(root, **options) -> ImageFolder:
    data = ImageFolder(str(root), **{"image_size": 8, **options})
    data.setup()
    return data


@pytest.fixture
def two_classes(tmp_path):
    """Ten red and ten green images, some in deeper folders, and things that are no images."""
    for number in range(10):
        write_image(tmp_path / "red" / f"{number}.png", plain(RED))
        write_image(tmp_path / "green" / f"box{number % 3}" / f"{number}.bmp", plain(GREEN))
    (tmp_path / "green" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    write_image(tmp_path / ".cache" / "0.png", plain(BLUE))
    (tmp_path / "labels").mkdir()
    return tmp_path


def test_sub_folders_with_images_are_the_classes(two_classes):
    data = read(two_classes, test_fraction=0.2)
    assert data.class_names == ("green", "red")
    assert (len(data.train), len(data.test)) == (16, 4)
    assert torch.bincount(data.test.labels).tolist() == [2, 2]
    for image, label in zip(data.train.images, data.train.labels, strict=True):
        assert image[:, 4, 4].tolist() == list((GREEN, RED)[label])


def test_the_same_files_are_held_out_in_every_run(tmp_path):
    for number in range(20):
        write_image(tmp_path / f"{number:02d}.png", plain(number))
    first, again = read(tmp_path, channels=1), read(tmp_path, channels=1)
    assert torch.equal(first.test.images, again.test.images)
    assert len(first.test) == 2


def test_a_folder_without_sub_folders_is_one_class_named_after_it(tmp_path):
    for number in range(5):
        write_image(tmp_path / "faces" / f"{number}.png", plain(RED))
    data = read(tmp_path / "faces", test_fraction=0.4)
    assert data.class_names == ("faces",)
    assert (len(data.train), len(data.test)) == (3, 2)


@pytest.mark.parametrize("classes", [("red/", "green/"), ("", "")])
def test_train_and_test_folders_are_kept_apart(tmp_path, classes):
    for number in range(4):
        write_image(tmp_path / "train" / f"{classes[0]}{number}.png", plain(RED))
        write_image(tmp_path / "train" / f"{classes[1]}other{number}.png", plain(GREEN))
    write_image(tmp_path / "test" / f"{classes[0]}9.png", plain(RED))
    data = read(tmp_path)
    assert (len(data.train), len(data.test)) == (8, 1)
    assert data.class_names == (("green", "red") if classes[0] else (tmp_path.name,))
    assert data.test.labels.tolist() == [data.classes - 1]


def test_a_class_that_only_the_test_folder_has_is_refused(tmp_path):
    write_image(tmp_path / "train" / "red" / "0.png", plain(RED))
    write_image(tmp_path / "test" / "blue" / "0.png", plain(BLUE))
    with pytest.raises(FlgenError, match=r"has the class blue, which .* lacks"):
        read(tmp_path)


def test_loose_images_beside_class_folders_are_left_out_with_a_warning(two_classes):
    write_image(two_classes / "loose.png", plain(BLUE))
    with pytest.warns(UserWarning, match="its 1 loose images are left out"):
        assert read(two_classes).class_names == ("green", "red")


def test_the_largest_central_square_is_resized(tmp_path):
    pixels = plain(BLUE, height=16, width=48)
    pixels[:, 16:32] = RED
    write_image(tmp_path / "wide.png", pixels)
    (image,) = decode_files([tmp_path / "wide.png"], image_size=8, channels=3)
    assert image[:, :, 1:-1].flatten(1).unique(dim=1).flatten().tolist() == list(RED)


def test_orientation_tags_are_honoured(tmp_path):
    pixels = plain(BLUE)
    pixels[:4] = RED  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    write_image(tmp_path / "turned.png", pixels, exif=exif)
    (image,) = decode_files([tmp_path / "turned.png"], image_size=8, channels=3)
    assert image[:, 0, 0].tolist() == list(BLUE)
    assert image[:, 7, 0].tolist() == list(RED)


def test_colours_and_greys_are_converted_as_asked(tmp_path):
    write_image(tmp_path / "a.png", plain((255, 255, 255)))
    write_image(tmp_path / "b.png", plain(128))
    assert read(tmp_path, channels=1, test_fraction=0.5).train.images.shape == (1, 1, 8, 8)
    assert decode_files([tmp_path / "b.png"], 8, 3).unique().tolist() == [128]


def test_a_large_photo_decoded_fast_looks_like_the_same_photo_decoded_fully(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    photo = np.asarray(Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC))
    write_image(tmp_path / "photo.jpg", photo, quality=95)
    fast, full = (decode_files([tmp_path / "photo.jpg"], 32, 3, fast_jpeg=fast).float() for fast in (True, False))
    assert (fast - full).abs().mean() < 2.0


def test_files_keep_their_order_on_many_threads(tmp_path):
    paths = []
    for number in range(300):
        paths.append(tmp_path / f"{number}.png")
        write_image(paths[-1], plain(number % 256))
    assert decode_files(paths, 8, 1)[:, 0, 0, 0].tolist() == [number % 256 for number in range(300)]


def test_resizing_a_tensor_agrees_with_pillow():
    images = torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = resize(images, 16).permute(0, 2, 3, 1).int()
    for image, mine in zip(images, ours, strict=True):
        pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((16, 16), Image.Resampling.BILINEAR)
        assert (torch.from_numpy(np.asarray(pillow).copy()).int() - mine).abs().max() <= 1


def test_resizing_to_the_same_size_copies_nothing():
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert resize(images, 8) is images


def test_a_missing_folder_is_named_with_its_option(tmp_path):
    with pytest.raises(FlgenError, match=r"folder of images .*nowhere does not exist; .*`--data.root`"):
        read(tmp_path / "nowhere")


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(FlgenError, match=r"holds no images .*`--data.root`"):
        read(tmp_path)


def test_a_single_image_leaves_nothing_to_test_on(tmp_path):
    write_image(tmp_path / "0.png", plain(RED))
    with pytest.raises(FlgenError, match="too few images"):
        read(tmp_path)


@pytest.mark.parametrize("keep", [0, 20, 200])
def test_a_truncated_image_is_named_on_one_line(two_classes, keep):
    damaged = two_classes / "red" / "3.png"
    write_image(damaged, np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8))
    damaged.write_bytes(damaged.read_bytes()[:keep])
    with pytest.raises(FlgenError, match=r"red/3.png is damaged or not an image") as caught:
        read(two_classes)
    assert "\n" not in str(caught.value)


def test_sixteen_bit_images_are_refused_rather_than_clipped(tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(FlgenError, match=r"deep.png has pixels of mode I.*8 bits"):
        decode_files([tmp_path / "deep.png"], 8, 1)


def test_two_channels_do_not_exist(tmp_path):
    with pytest.raises(UsageError, match=r"--data.channels` is 2"):
        ImageFolder(str(tmp_path), channels=2)
