"""Data sets of a kind of their own, and single files as samples of a data set."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import RandomImages, assert_one_line, random_images, read

from flgen.data import IID, ImageData, LabelledData
from flgen.data.image_data import ImageLayout
from flgen.data.image_set import ImageSet
from flgen.data.labelled_data import Layout
from flgen.data.labelled_set import LabelledSet
from flgen.data.shards import write_client_shards
from flgen.errors import FlgenError, UsageError


@dataclass(frozen=True)
class PointLayout(Layout):
    @property
    def shape(self) -> tuple[int]:
        return (2,)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64


class Points(LabelledData):
    """Twelve points of the plane, in two classes; a module sees their doubles."""

    noun = "points"

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self._dtype = dtype

    def layout(self) -> PointLayout:
        return PointLayout("points", ("left", "right"))

    def load(self) -> tuple[LabelledSet, LabelledSet]:
        points = torch.arange(24, dtype=self._dtype).reshape(12, 2)
        labels = torch.arange(12) % 2
        return LabelledSet(points, labels), LabelledSet(points[:4], labels[:4])

    def standardize(self, stored: torch.Tensor) -> torch.Tensor:
        return 2 * stored


def test_data_of_any_kind_are_divided_among_clients_and_drawn_in_batches():
    points = read(Points())
    rows = points.split_clients(IID(3), np.random.default_rng(0))
    (inputs, labels), *_ = points.client_data(0, rows[0]).in_order(10)
    assert inputs.dtype == torch.float64
    assert inputs.tolist() == points.train.inputs[torch.from_numpy(rows[0])].tolist()
    assert points.label_table(rows).sum(axis=0).tolist() == [6, 6]
    assert labels.tolist() == (rows[0] % 2).tolist()
    (tested, _), *_ = points.client_test_data(np.array([1, 3])).in_order(10)
    assert tested.tolist() == [[2, 3], [6, 7]]


def test_an_ordinary_trainer_gets_what_a_module_takes():
    points = read(Points())
    inputs, labels = next(iter(points.test_dataloader()))
    assert inputs.tolist() == [[0, 2], [4, 6], [8, 10], [12, 14]]
    assert labels.tolist() == [0, 1, 0, 1]
    assert sorted(torch.cat([inputs for inputs, _ in points.train_dataloader()])[:, 0].tolist()) == list(
        range(0, 48, 4)
    )


def test_samples_of_another_type_than_the_layout_says_are_refused():
    with pytest.raises(UsageError) as caught:
        Points(torch.float32).setup()
    assert_one_line(caught.value, "points has points float32 (12, 2)", "its layout says float64 (2,) and 2 classes")


def test_what_a_data_set_of_a_new_kind_lacks_is_named():
    with pytest.raises(TypeError, match="Points is not a complete data set: it needs a method decode_sample"):
        Points().decode_sample(b"", ".txt")
    with pytest.raises(TypeError, match="a property shape"):
        _ = Layout("mine", ()).shape


class Given(ImageData):
    """Images that it is given, of a name that it is given."""

    def __init__(self, train: ImageSet, test: ImageSet, called: str = "given") -> None:
        super().__init__()
        self._splits, self._called = (train, test), called

    def layout(self) -> ImageLayout:
        return ImageLayout(self._called, ("a", "b", "c"), 1, self._splits[0].images.shape[-1])

    def load(self) -> tuple[ImageSet, ImageSet]:
        return self._splits


def test_samples_that_two_data_sets_share_are_found_whatever_the_data_sets_are_called():
    some, others, held_out = (random_images(9, seed=seed) for seed in (2, 3, 4))
    other = read(Given(some, held_out))
    assert not read(Given(others, others)).shares_samples_with(other)  # one class and name, but other images
    one = others.followed_by(some.subset(torch.tensor([8])))
    assert read(Given(one, others, "mine")).shares_samples_with(other)
    assert read(Given(held_out, others, "mine")).shares_samples_with(other)  # clients may have what is held out
    assert not read(Given(others, some, "mine")).shares_samples_with(other)  # what a network was not trained on


def test_samples_of_two_shapes_may_be_the_same_if_class_or_name_is():
    small, large = (read(Given(random_images(9, side=side), random_images(9, side=side))) for side in (6, 8))
    assert small.shares_samples_with(large)
    assert not RandomImages().shares_samples_with(large)
    assert Points().shares_samples_with(read(Given(*large.load(), "points")))


def test_shards_are_of_images_only(tmp_path):
    points = read(Points())
    with pytest.raises(UsageError) as caught:
        write_client_shards(points, [np.arange(3)], tmp_path / "shards")
    assert_one_line(caught.value, "`--output` stores images", "`--data Points` holds points", "flgen fit")
    assert not (tmp_path / "shards").exists()


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("extension", [".png", "png", ".PNG"])
def test_a_png_of_the_set_s_own_size_is_taken_as_it_is(extension):
    pixels = np.arange(36, dtype=np.uint8).reshape(6, 6)
    sample = RandomImages().decode_sample(encoded(pixels, "PNG"), extension)
    assert sample.dtype == torch.uint8
    assert sample.tolist() == [pixels.tolist()]


def test_the_central_square_of_a_larger_picture_is_resized_and_made_grey():
    pixels = np.zeros((12, 24, 3), dtype=np.uint8)
    pixels[:, 4:20] = (90, 90, 90)  # the filter looks one pixel beyond the square
    assert RandomImages().decode_sample(encoded(pixels, "PNG"), ".png").unique().tolist() == [90]
    colour = RandomImages(channels=3).decode_sample(encoded(pixels, "JPEG"), ".jpg")
    assert colour.shape == (3, 6, 6)


@pytest.mark.parametrize(
    ("content", "extension", "says"),
    [
        (b"no picture", ".png", "this .png file is damaged or not an image"),
        (encoded(NOISE, "PNG")[:2000], ".png", "this .png file is damaged"),
        (encoded(NOISE, "PNG"), ".jpg", "this .jpg file is damaged or not an image"),
        (b"RIFF", ".wav", "a .wav file is no image; give .png, .jpg, .jpeg"),
    ],
    ids=["text", "half a file", "another format", "a recording"],
)
def test_a_file_that_is_no_picture_is_refused(content, extension, says):
    with pytest.raises(FlgenError) as caught:
        RandomImages().decode_sample(content, extension)
    assert_one_line(caught.value, says)
