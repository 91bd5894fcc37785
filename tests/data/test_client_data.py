"""Batches of one client, from memory and from shards: the same promises for both."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from small_data import random_images

from flgen.data.client_data import StreamedClientData, TensorClientData
from flgen.data.image_set import ImageSet
from flgen.data.shards import Shard, read_index, write_client_shards
from flgen.errors import UsageError

ROWS = np.array([3, 40, 7, 22, 11, 65, 80, 1, 30, 55, 12])  # 11 samples


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def contents(images: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


@pytest.fixture(params=["memory", "stream"])
def client(request, random_data, tmp_path):
    """The same eleven samples, in memory and as a stream of three shards with a window of four."""
    if request.param == "memory":
        return TensorClientData(random_data.train, ROWS, "cpu", classes=3)
    write_client_shards(random_data, [ROWS], tmp_path / "shards", samples_per_shard=4)
    stored = read_index(tmp_path / "shards").clients[0]
    return StreamedClientData(stored.shards, torch.tensor(stored.label_counts), (1, 6, 6), "cpu", window=4)


@pytest.fixture
def owned(random_data) -> Counter[bytes]:
    return Counter(contents(random_data.train.images[torch.from_numpy(ROWS)]))


def test_a_client_knows_its_samples_and_labels(client, random_data):
    labels = random_data.train.labels[torch.from_numpy(ROWS)]
    assert client.samples == 11
    assert client.label_counts.tolist() == [int((labels == label).sum()) for label in range(3)]


def test_batches_are_bytes_with_integer_labels(client):
    images, labels = next(client.batches(4, seeded(), steps=1))
    assert images.dtype == torch.uint8
    assert images.shape == (4, 1, 6, 6)
    assert labels.dtype == torch.int64
    assert labels.shape == (4,)


def test_an_epoch_yields_every_sample_once_and_ends_with_a_smaller_batch(client, owned):
    batches = list(client.batches(4, seeded(), epochs=2))
    assert [len(labels) for _, labels in batches] == [4, 4, 3, 4, 4, 3]
    for one_pass in (batches[:3], batches[3:]):
        assert Counter(content for images, _ in one_pass for content in contents(images)) == owned


def test_steps_are_full_batches_that_go_on_over_passes(client, owned):
    batches = list(client.batches(4, seeded(), steps=11))  # 44 samples: four passes
    assert [len(labels) for _, labels in batches] == [4] * 11
    drawn = [content for images, _ in batches for content in contents(images)]
    for start in range(0, 44, 11):
        assert Counter(drawn[start : start + 11]) == owned


def test_a_batch_larger_than_the_client_repeats_whole_passes(client, owned):
    images, labels = next(client.batches(22, seeded(), steps=1))
    assert len(labels) == 22
    assert Counter(contents(images)) == Counter({content: 2 * count for content, count in owned.items()})


def test_images_and_labels_stay_together(client, random_data):
    label_of = dict(zip(contents(random_data.train.images), random_data.train.labels.tolist(), strict=True))
    for images, labels in client.batches(4, seeded(), steps=5):
        assert [label_of[content] for content in contents(images)] == labels.tolist()


def test_the_same_seed_gives_the_same_batches_and_every_pass_another_order(client):
    first, again, other = (
        [contents(images) for images, _ in client.batches(11, seeded(seed), epochs=2)] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert first[0] != first[1]


def test_in_order_is_one_pass_that_never_changes(client, owned):
    first, again = (list(client.in_order(4)) for _ in range(2))
    assert [len(labels) for _, labels in first] == [4, 4, 3]
    assert Counter(content for images, _ in first for content in contents(images)) == owned
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("request_", [{}, {"steps": 1, "epochs": 1}])
def test_exactly_one_of_steps_and_epochs_is_wanted(client, request_):
    with pytest.raises(UsageError, match="by steps or by epochs"):
        client.batches(4, seeded(), **request_)


def test_a_batch_of_nothing_is_refused(client):
    with pytest.raises(UsageError, match="batch size is 0"):
        client.batches(0, seeded(), steps=1)


def test_a_client_without_samples_says_so_instead_of_looping(random_data):
    empty = TensorClientData(random_data.train, np.array([], dtype=np.int64), "cpu", classes=3)
    assert empty.samples == 0
    assert empty.label_counts.tolist() == [0, 0, 0]
    assert list(empty.in_order(4)) == []
    with pytest.raises(UsageError, match=r"no samples; lower `--partition.clients`"):
        empty.batches(4, seeded(), steps=1)


def test_in_memory_the_order_of_rows_is_kept(random_data):
    (images, labels), *rest = TensorClientData(random_data.train, ROWS).in_order(100)
    assert not rest
    assert torch.equal(images, random_data.train.images[torch.from_numpy(ROWS)])
    assert torch.equal(labels, random_data.train.labels[torch.from_numpy(ROWS)])


def test_a_split_parts_the_samples_without_loss(random_data, owned):
    client = TensorClientData(random_data.train, ROWS, "cpu", classes=3)
    rest, held_back = client.split(4, seeded())
    assert (rest.samples, held_back.samples) == (7, 4)
    parts = [Counter(contents(next(part.in_order(100))[0])) for part in (rest, held_back)]
    assert parts[0] + parts[1] == owned
    assert not parts[0] & parts[1]
    assert torch.equal(rest.label_counts + held_back.label_counts, client.label_counts)
    assert len(rest.label_counts) == 3
    assert client.samples == 11


def test_a_split_depends_on_its_generator_alone(random_data):
    client = TensorClientData(random_data.train, ROWS, "cpu")

    def held_back(seed):
        return contents(next(client.split(4, seeded(seed))[1].in_order(100))[0])

    assert held_back(1) == held_back(1)
    assert held_back(1) != held_back(2)
    next(client.batches(4, seeded(3), steps=1))  # what is drawn from the client in between makes no difference
    assert held_back(2) == held_back(2)


def test_every_sample_is_held_back_as_often_as_any_other(random_data):
    client = TensorClientData(random_data.train, np.arange(10), "cpu")
    images = contents(random_data.train.images[:10])
    count = Counter()
    for seed in range(200):
        count.update(contents(next(client.split(3, seeded(seed))[1].in_order(100))[0]))
    assert sum(count.values()) == 600
    assert all(40 <= count[image] <= 80 for image in images)  # 60 expected, deviation 6.5


@pytest.mark.parametrize("count", [0, -1, 11, 12])
def test_a_split_leaves_something_on_both_sides(random_data, count):
    client = TensorClientData(random_data.train, ROWS, "cpu")
    with pytest.raises(UsageError, match=f"^this client has 11 samples: {count} cannot be held back$"):
        client.split(count, seeded())
    assert [part.samples for part in client.split(10, seeded())] == [1, 10]


def test_a_stream_cannot_be_split_and_says_what_to_do(random_data, tmp_path):
    write_client_shards(random_data, [ROWS], tmp_path / "shards", samples_per_shard=4)
    stored = read_index(tmp_path / "shards").clients[0]
    stream = StreamedClientData(stored.shards, torch.tensor(stored.label_counts), (1, 6, 6), "cpu", window=4)
    with pytest.raises(UsageError, match=r"streamed and cannot be split: .*--data.memory_budget_mb"):
        stream.split(4, seeded())


def test_on_another_device_only_the_clients_rows_are_moved():
    everyone = random_images(50)
    client = TensorClientData(everyone, np.arange(10, 20), "meta", classes=3)
    images, labels = next(client.batches(4, seeded(), steps=1))
    assert images.device.type == labels.device.type == "meta"
    assert images.shape == (4, 1, 6, 6)
    assert len(client._local) == 10


def test_a_stream_holds_no_more_than_its_window_of_samples(random_data, tmp_path, monkeypatch):
    write_client_shards(random_data, [np.arange(90)], tmp_path / "shards", samples_per_shard=9)
    stored = read_index(tmp_path / "shards").clients[0]
    opened: list[str] = []
    plain_open = type(stored.shards[0].path).open

    def counting_open(path, *args, **kwargs):
        opened.append(path.name)
        return plain_open(path, *args, **kwargs)

    monkeypatch.setattr(type(stored.shards[0].path), "open", counting_open)
    stream = StreamedClientData(stored.shards, torch.tensor(stored.label_counts), (1, 6, 6), window=10)
    next(stream.batches(4, seeded(), steps=1))
    assert 1 <= len(opened) <= 3  # of ten shards


def test_classes_that_an_image_set_lacks_still_count():
    images = ImageSet(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]))
    assert TensorClientData(images, np.array([1]), classes=4).label_counts.tolist() == [0, 1, 0, 0]
    assert TensorClientData(images, np.array([1])).label_counts.tolist() == [0, 1]


def test_samples_of_a_stream_are_those_of_its_shards(tmp_path):
    shards = [Shard(tmp_path / "a.tar", 3), Shard(tmp_path / "b.tar", 4)]
    assert StreamedClientData(shards, torch.tensor([7]), (1, 2, 2)).samples == 7
