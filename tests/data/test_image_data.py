"""What every data set offers: layout, set-up, splitting, loaders for an ordinary Trainer."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import lightning
import numpy as np
import pytest
import torch
from small_data import RandomImages

from flgen.data import IID, ByAttribute, Digits, ImageData, Shards
from flgen.data.image_data import ImageLayout
from flgen.data.image_set import to_unit_range
from flgen.errors import FlgenError, UsageError


def test_the_data_sets_are_lightning_data_modules():
    assert isinstance(Digits(), lightning.LightningDataModule)
    assert isinstance(Digits(), ImageData)


def test_importing_the_data_package_does_not_import_torch():
    heavy = ("torch", "torchvision", "lightning", "sklearn", "webdataset")
    check = f"import sys, flgen.data; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_data_before_setup_are_an_error_that_says_so():
    with pytest.raises(FlgenError, match="RandomImages holds no data yet; call its setup"):
        _ = RandomImages().train


def test_setup_reads_once():
    data = RandomImages()
    data.setup()
    train = data.train
    data.setup("fit")
    assert data.train is train


def test_layout_is_known_before_setup():
    data = RandomImages(channels=3)
    assert (data.name, data.classes, data.class_names) == ("random", 3, ("a", "b", "c"))
    assert (data.channels, data.image_size) == (3, 6)
    assert data.layout().shape == (3, 6, 6)


def test_data_that_contradict_their_layout_are_refused():
    class Contradiction(RandomImages):
        def layout(self) -> ImageLayout:
            return ImageLayout("mine", ("a", "b"), channels=1, image_size=6)

    with pytest.raises(
        UsageError, match=r"mine has images uint8 \(90, 1, 6, 6\) with labels up to 2, .* and 2 classes"
    ):
        Contradiction().setup()


def test_an_empty_split_is_refused():
    with pytest.raises(FlgenError, match="random has a split without images"):
        RandomImages(count=0).setup()


class Normalised(RandomImages):
    """Random images with a mean and a deviation for each."""

    def layout(self) -> ImageLayout:
        return replace(super().layout(), mean=(0.2, 0.4, 0.6), std=(0.5, 0.25, 0.125))


def test_images_are_standardized_channel_by_channel():
    images = torch.tensor([51, 204, 255], dtype=torch.uint8).reshape(1, 3, 1, 1).expand(2, 3, 4, 4)
    result = Normalised(channels=3).standardize(images)
    assert result.dtype == torch.float32
    assert result.shape == (2, 3, 4, 4)
    # (0.2 - 0.2) / 0.5, (0.8 - 0.4) / 0.25, (1 - 0.6) / 0.125
    assert result[1, :, 2, 3].tolist() == pytest.approx([0.0, 1.6, 3.2], abs=1e-6)
    assert images.unique().tolist() == [51, 204, 255]


def test_standardized_images_may_be_trained_on_after_they_were_evaluated_on():
    data = Normalised(channels=3)
    images = torch.full((2, 3, 4, 4), 7, dtype=torch.uint8)
    with torch.inference_mode():
        first = data.standardize(images)
    weight = torch.ones(1, requires_grad=True)
    (weight * data.standardize(images)).sum().backward()
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(first.sum().item(), rel=1e-6)


def test_without_mean_and_deviation_images_are_mapped_to_the_unit_range_bit_for_bit(random_data):
    every_byte = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(random_data.standardize(every_byte), to_unit_range(every_byte))


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.5,), None),
        (None, (0.5,)),
        ((0.5, 0.5), (0.5, 0.5)),
        ((0.5,), (0.0,)),
        ((0.5,), (float("nan"),)),
        ((float("inf"),), (1.0,)),
    ],
)
def test_a_layout_needs_one_mean_and_one_positive_deviation_per_channel(mean, std):
    with pytest.raises(UsageError, match=r"layout of mine has mean .*each of 1 channels, std above 0"):
        ImageLayout("mine", ("a",), channels=1, image_size=8, mean=mean, std=std)


def test_clients_are_split_and_tabulated(random_data):
    partition = random_data.split_clients(Shards(3, 2), np.random.default_rng(0))
    table = random_data.label_table(partition)
    assert table.shape == (3, 3)
    assert table.sum() == 90
    assert [int(total) for total in table.sum(axis=1)] == [len(rows) for rows in partition]


def test_clients_can_be_split_by_an_attribute(random_data):
    partition = random_data.split_clients(ByAttribute(2, "even"), np.random.default_rng(0))
    assert partition[0].tolist() == list(range(0, 90, 2))
    assert partition[1].tolist() == list(range(1, 90, 2))


def test_client_data_are_the_rows_of_the_partition(random_data):
    partition = random_data.split_clients(IID(4), np.random.default_rng(0))
    client = random_data.client_data(2, partition[2], "cpu")
    (images, _), *_ = client.in_order(100)
    assert torch.equal(images, random_data.train.images[torch.from_numpy(partition[2])])
    assert client.label_counts.tolist() == random_data.label_table(partition)[2].tolist()


def test_loaders_give_float_images_in_the_unit_range(random_data):
    random_data.batch_size = 40
    batches = list(random_data.train_dataloader())
    assert [len(labels) for _, labels in batches] == [40, 40, 10]
    images, labels = batches[0]
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert -1.0 <= images.min() < -0.9
    assert 0.9 < images.max() <= 1.0


def test_the_training_loader_shuffles_anew_in_each_pass_and_alike_in_each_run(random_data):
    def two_passes() -> list[list[int]]:
        loader = random_data.train_dataloader()
        return [[int(label) for _, labels in loader for label in labels] for _ in range(2)]

    torch.manual_seed(1)
    first = two_passes()
    torch.manual_seed(2)  # the global generator plays no part
    assert two_passes() == first
    assert first[0] != first[1]
    assert sorted(first[0]) == sorted(random_data.train.labels.tolist())


def test_the_test_loader_keeps_the_order(random_data):
    labels = torch.cat([labels for _, labels in random_data.test_dataloader()])
    assert torch.equal(labels, random_data.test.labels)


@pytest.mark.filterwarnings("ignore")
def test_an_ordinary_trainer_trains_on_it(random_data, tmp_path):
    class Logistic(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(36, 3)
            self.seen = 0

        def training_step(self, batch, batch_index):
            images, labels = batch
            self.seen += len(labels)
            return torch.nn.functional.cross_entropy(self.linear(images.flatten(1)), labels)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    model = Logistic()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, datamodule=random_data)
    assert model.seen == 180


def test_digits_are_the_1797_of_scikit_learn_with_the_same_share_of_each_held_out():
    digits = Digits()
    digits.setup()
    assert (len(digits.train), len(digits.test)) == (1438, 359)
    assert digits.train.images.shape == (1438, 1, 8, 8)
    assert digits.train.images.max() == 255
    held_out = torch.bincount(digits.test.labels)
    assert held_out.min() >= 35
    assert held_out.max() <= 37
    again = Digits()
    again.setup()
    assert torch.equal(again.test.images, digits.test.images)


def test_digits_scale_their_sixteen_grey_levels_to_bytes():
    digits = Digits()
    digits.setup()
    assert digits.train.images.unique().tolist() == [round(level * 255 / 16) for level in range(17)]


def test_the_public_and_the_private_half_of_the_digits_share_no_image_and_miss_none():
    whole, public, private = Digits(), Digits(part="public"), Digits(part="private")
    for data in (whole, public, private):
        data.setup()
    halves = sorted(image.tobytes() for data in (public, private) for image in data.train.images.numpy())
    assert halves == sorted(image.tobytes() for image in whole.train.images.numpy())
    counts = [data.train.labels.bincount() for data in (public, private)]
    assert (counts[0] - counts[1]).abs().max() <= 1
    assert public.test.images.equal(private.test.images)
    assert (public.name, private.name) == ("digits-public", "digits-private")
    assert Digits(part="public", test_fraction=0.1).name == "digits-0.1-public"  # other images, hence another name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"part": "public"}),
        ({"test_fraction": 0.25}, {"test_fraction": 0.3}),
        ({"part": "public", "test_fraction": 0.3}, {"part": "private"}),
        ({"part": "private"}, {"part": "private", "image_size": 16}),
    ],
)
def test_digits_share_images_with_digits_of_other_fractions_halves_and_sizes(one, other):
    assert Digits(**one).shares_samples_with(Digits(**other))
    assert Digits(**other).shares_samples_with(Digits(**one))


@pytest.mark.parametrize("size", [8, 16])
def test_the_halves_of_the_digits_share_no_image_at_any_size(size):
    halves = Digits(part="public", image_size=size), Digits(part="private")
    assert not halves[0].shares_samples_with(halves[1])
    assert not halves[1].shares_samples_with(halves[0])


def test_digits_come_in_other_sizes():
    digits = Digits(image_size=16, test_fraction=0.5)
    digits.setup()
    assert digits.test.images.shape[1:] == (1, 16, 16)
    assert abs(len(digits.test) - len(digits.train)) < 10


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"image_size": 2}, "--data.image_size` is 2"),
        ({"test_fraction": 0.0}, "--data.test_fraction` is 0.0"),
        ({"test_fraction": 1.0}, "--data.test_fraction` is 1.0"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, says):
    with pytest.raises(UsageError, match=says):
        Digits(**options)
