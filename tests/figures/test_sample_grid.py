import numpy as np
import pytest
import torch
from PIL import Image

from flgen.errors import FlgenError
from flgen.figures.sample_grid import GAP, GAP_VALUE, sample_grid, save_png


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (10, 3, 5, 7), dtype=torch.uint8, generator=generator)


def tile(grid, row, column, height, width):
    top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
    return grid[:, top : top + height, left : left + width]


def test_images_stand_row_by_row_and_free_places_are_grey(images):
    grid = sample_grid(images, columns=4, minimum_side=1)
    assert grid.dtype == torch.uint8
    assert grid.shape == (3, GAP + 3 * (5 + GAP), GAP + 4 * (7 + GAP))
    for index, image in enumerate(images):
        assert torch.equal(tile(grid, index // 4, index % 4, 5, 7), image)
    assert torch.equal(tile(grid, 2, 2, 5, 7), torch.full((3, 5, 7), GAP_VALUE, dtype=torch.uint8))
    assert grid[:, :GAP].unique().tolist() == grid[:, :, -GAP:].unique().tolist() == [GAP_VALUE]


def test_small_images_are_enlarged_smoothly_to_the_smallest_sufficient_size():
    digits = torch.arange(64 * 64).remainder(256).to(torch.uint8).reshape(64, 1, 8, 8)
    grid = sample_grid(digits, minimum_side=512)
    assert grid.shape == (1, 530, 530)  # 8 by 8 tiles of 64, nine gaps of 2; tiles of 56 would give 466
    enlarged = tile(grid, 1, 2, 64, 64).float()
    shrunk = torch.nn.functional.avg_pool2d(enlarged, 8)[0]
    assert (shrunk - digits[10].float()).abs().mean() < 2  # grey levels: smooth, and still the same digit


def test_large_images_keep_their_size(images):
    large = torch.zeros(4, 1, 400, 300, dtype=torch.uint8)
    assert sample_grid(large).shape == (1, 800 + 3 * GAP, 600 + 3 * GAP)


@pytest.mark.parametrize(("n", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (5, 3, 2), (9, 3, 3), (64, 8, 8)])
def test_without_columns_the_grid_is_about_square(n, columns, rows):
    grid = sample_grid(torch.zeros(n, 1, 4, 4, dtype=torch.uint8), minimum_side=1)
    assert grid.shape == (1, GAP + rows * (4 + GAP), GAP + columns * (4 + GAP))


def test_fewer_images_than_columns_leave_no_empty_columns(images):
    assert sample_grid(images[:2], columns=8, minimum_side=1).shape == (3, 5 + 2 * GAP, 2 * 7 + 3 * GAP)


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(4, 1, 8, 8), torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(1, 8, 8, dtype=torch.uint8)],
)
def test_anything_but_a_batch_of_bytes_is_refused(wrong):
    with pytest.raises(ValueError, match="takes uint8 images"):
        sample_grid(wrong)


def test_a_grid_needs_a_column(images):
    with pytest.raises(ValueError, match="at least 1 column, got 0"):
        sample_grid(images, columns=0)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_png_holds_exactly_the_picture(tmp_path, images, channels, mode):
    grid = sample_grid(images[:, :channels], minimum_side=64)
    path = tmp_path / "samples" / "round-00010.png"
    save_png(grid, path)
    with Image.open(path) as picture:
        assert (picture.format, picture.mode) == ("PNG", mode)
        pixels = np.asarray(picture).reshape(*grid.shape[1:], channels)
    assert torch.equal(torch.from_numpy(pixels.copy()).permute(2, 0, 1), grid)
    assert list(path.parent.iterdir()) == [path]


def test_an_unwritable_place_is_one_clear_line(tmp_path, images):
    (tmp_path / "samples").write_text("a file where a folder should be")
    with pytest.raises(FlgenError, match=r"cannot write .*round-00001\.png.*--run_dir"):
        save_png(sample_grid(images), tmp_path / "samples" / "round-00001.png")
