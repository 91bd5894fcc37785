"""Image sets, and the two maps between bytes and [-1, 1]."""

from __future__ import annotations

import pytest
import torch

from flgen.data.image_set import ImageSet, to_bytes, to_unit_range
from flgen.errors import UsageError

EVERY_BYTE = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


def test_bytes_map_to_the_unit_range_and_back():
    unit = to_unit_range(EVERY_BYTE)
    assert unit.dtype == torch.float32
    assert unit.min() == -1.0
    assert unit.max() == 1.0
    assert torch.equal(to_bytes(unit), EVERY_BYTE)


@pytest.mark.parametrize(("value", "byte"), [(-3.0, 0), (-1.0, 0), (0.0, 128), (0.5, 191), (1.0, 255), (7.0, 255)])
def test_pixels_are_rounded_and_clamped(value, byte):
    # floor(clamp(255 * (x + 1) / 2 + 0.5, 0, 255)): 0 -> 128.0, 0.5 -> 191.75
    assert to_bytes(torch.full((1, 1, 1, 1), value)).item() == byte


def test_neither_map_changes_its_argument():
    images, unit = EVERY_BYTE.clone(), torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
    before = unit.clone()
    to_unit_range(images)
    to_bytes(unit)
    assert torch.equal(images, EVERY_BYTE)
    assert torch.equal(unit, before)


def test_a_subset_keeps_images_labels_and_attributes_together():
    images = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1)
    part = ImageSet(images, torch.arange(5) * 10, {"age": torch.arange(5) + 20}).subset(torch.tensor([3, 0]))
    assert len(part) == 2
    assert part.images.flatten().tolist() == [3, 0]
    assert part.labels.tolist() == [30, 0]
    assert part.attributes["age"].tolist() == [23, 20]


def test_moving_to_the_same_device_copies_nothing():
    images = ImageSet(EVERY_BYTE, torch.zeros(1, dtype=torch.int64))
    assert images.to("cpu").images.data_ptr() == images.images.data_ptr()


@pytest.mark.parametrize(
    ("images", "labels", "attributes", "says"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), {}, r"uint8 images .*not float32 \(2, 1, 4, 4\)"),
        (EVERY_BYTE[0], torch.zeros(1, dtype=torch.int64), {}, r"not uint8 \(1, 16, 16\)"),
        (EVERY_BYTE, torch.zeros(2, dtype=torch.int64), {}, r"1 images need labels .*not int64 \(2,\)"),
        (EVERY_BYTE, torch.zeros(1), {}, r"labels .*not float32"),
        (EVERY_BYTE, torch.zeros(1, dtype=torch.int64), {"Male": torch.zeros(3)}, r"need Male .*not float32 \(3,\)"),
    ],
)
def test_tensors_of_the_wrong_kind_are_refused(images, labels, attributes, says):
    with pytest.raises(UsageError, match=says):
        ImageSet(images, labels, attributes)
