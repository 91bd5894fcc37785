"""Client shards: written once, read back bit for bit, streamed beyond a budget, refused when damaged."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_data import RandomImages

from flgen.data import IID, AsStored, ClientShards, Shards
from flgen.data.client_data import StreamedClientData, TensorClientData
from flgen.data.image_data import ImageLayout
from flgen.data.shards import read_index, write_client_shards
from flgen.errors import FlgenError, UsageError


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=[1, 3])
def data(request) -> RandomImages:
    data = RandomImages(channels=request.param)
    data.setup()
    return data


@pytest.fixture
def partition(data) -> list[np.ndarray]:
    return data.split_clients(Shards(3, 2), np.random.default_rng(0))


@pytest.fixture
def folder(data, partition, tmp_path):
    rule = Shards(3, 2).describe()
    write_client_shards(data, partition, tmp_path / "shards", samples_per_shard=8, partitioner=rule, seed=5)
    return tmp_path / "shards"


def opened(folder, **options) -> ClientShards:
    data = ClientShards(str(folder), **options)
    data.setup()
    return data


def test_the_index_says_what_is_stored(folder, data, partition):
    index = read_index(folder)
    assert index.layout == data.layout()
    assert index.partitioner == {"class": "Shards", "clients": 3, "shards_per_client": 2}
    assert index.seed == 5
    assert [client.samples for client in index.clients] == [30, 30, 30]
    assert [list(client.label_counts) for client in index.clients] == data.label_table(partition).tolist()
    assert [shard.samples for shard in index.clients[0].shards] == [8, 8, 8, 6]
    assert index.test.samples == 12


def test_mean_and_deviation_of_the_channels_are_stored(tmp_path, random_data):
    class Normalised(RandomImages):
        def layout(self) -> ImageLayout:
            return replace(super().layout(), mean=(0.1307,), std=(1 / 3,))

    data = Normalised()
    data.setup()
    write_client_shards(data, [np.arange(4)], tmp_path / "shards")
    stored = ClientShards(str(tmp_path / "shards"))
    assert stored.layout() == data.layout()
    assert torch.equal(stored.standardize(data.test.images), data.standardize(data.test.images))
    assert not torch.equal(stored.standardize(data.test.images), random_data.standardize(data.test.images))


def test_an_index_from_before_there_were_mean_and_deviation_is_read(folder, data):
    content = json.loads((folder / "index.json").read_text())
    assert content.pop("mean") is content.pop("std") is None
    (folder / "index.json").write_text(json.dumps(content))
    assert read_index(folder).layout == data.layout()


def test_an_index_with_half_a_normalisation_is_damaged(folder):
    content = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(content | {"mean": [0.5]}))
    with pytest.raises(FlgenError, match=r"index.json is damaged \(the layout .* has mean \(0.5,\) and std None"):
        read_index(folder)


def test_a_client_read_into_memory_gives_the_batches_of_the_original(folder, data, partition):
    stored = opened(folder)
    rows = stored.split_clients(AsStored(), np.random.default_rng(0))
    for client in range(3):
        original, read_back = data.client_data(client, partition[client]), stored.client_data(client, rows[client])
        assert isinstance(read_back, TensorClientData)
        pairs = zip(original.batches(7, seeded(), steps=9), read_back.batches(7, seeded(), steps=9), strict=True)
        for (images, labels), (images_back, labels_back) in pairs:
            assert torch.equal(images, images_back)
            assert torch.equal(labels, labels_back)


def test_test_images_and_all_clients_come_back_with_their_attributes(folder, data, partition):
    stored = opened(folder)
    assert torch.equal(stored.test.images, data.test.images)
    assert torch.equal(stored.test.labels, data.test.labels)
    everyone = data.train.subset(torch.from_numpy(np.concatenate(partition)))
    assert torch.equal(stored.train.images, everyone.images)
    assert torch.equal(stored.train.attributes["even"], everyone.attributes["even"])


def test_the_stored_data_set_describes_itself_before_it_is_read(folder, data):
    stored = ClientShards(str(folder))
    assert (stored.name, stored.classes, stored.class_names) == ("random", 3, ("a", "b", "c"))
    assert (stored.channels, stored.image_size) == (data.channels, 6)


def test_the_stored_partition_numbers_the_clients_samples_one_after_another(folder, data, partition):
    stored = opened(folder)
    rows = stored.split_clients(AsStored(), np.random.default_rng(0))
    assert [indices.tolist() for indices in rows] == [[*range(30)], [*range(30, 60)], [*range(60, 90)]]
    assert np.array_equal(stored.label_table(rows), data.label_table(partition))


def test_a_client_beyond_the_budget_is_streamed(folder, data):
    bytes_per_client = 30 * data.channels * 36
    rows = np.arange(30)
    within = opened(folder, memory_budget_mb=bytes_per_client / 1e6).client_data(0, rows)
    beyond = opened(folder, memory_budget_mb=(bytes_per_client - 1) / 1e6).client_data(0, rows)
    assert isinstance(within, TensorClientData)
    assert isinstance(beyond, StreamedClientData)
    assert beyond.samples == within.samples == 30
    assert torch.equal(beyond.label_counts, within.label_counts)


def test_samples_are_stored_in_mixed_order(tmp_path):
    data = RandomImages(count=60)
    data.setup()
    by_label = np.argsort(data.train.labels.numpy(), kind="stable")
    write_client_shards(data, [by_label], tmp_path / "shards", samples_per_shard=20)
    stream = opened(tmp_path / "shards", memory_budget_mb=0).client_data(0, by_label)
    (_, labels), *_ = stream.in_order(20)  # the first shard
    assert len(labels.unique()) == 3


def test_the_same_request_writes_the_same_bytes(data, partition, tmp_path):
    for name in ("one", "two"):
        write_client_shards(data, partition, tmp_path / name, samples_per_shard=8)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 1 + 3 * 4 + 2
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_client_without_samples_is_stored_too(tmp_path, random_data):
    write_client_shards(random_data, [np.arange(4), np.array([], dtype=np.int64)], tmp_path / "shards")
    stored = opened(tmp_path / "shards")
    assert stored.client_data(1, np.array([], dtype=np.int64)).samples == 0
    assert len(stored.train) == 4


def test_an_empty_folder_may_be_there_but_not_a_full_one(data, partition, tmp_path):
    (tmp_path / "empty").mkdir()
    write_client_shards(data, partition, tmp_path / "empty")
    before = sorted((tmp_path / "empty").rglob("*"))
    with pytest.raises(FlgenError, match=r"empty exists and is not an empty folder; .*`--output`"):
        write_client_shards(data, partition, tmp_path / "empty")
    assert sorted((tmp_path / "empty").rglob("*")) == before


def test_an_interrupted_writing_leaves_nothing_behind(data, partition, tmp_path, monkeypatch):
    monkeypatch.setattr("flgen.data.shards._png", lambda image: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_client_shards(data, partition, tmp_path / "shards")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(data, partition, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FlgenError, match=r"cannot be written.*`--output`"):
        write_client_shards(data, partition, tmp_path / "file" / "shards")


def test_shards_of_no_samples_are_refused(data, partition, tmp_path):
    with pytest.raises(UsageError, match="--samples_per_shard` is 0"):
        write_client_shards(data, partition, tmp_path / "shards", samples_per_shard=0)


def test_stored_clients_cannot_be_split_again(folder):
    with pytest.raises(UsageError, match=r"already split into 3 clients; use `--partition AsStored` in place of IID"):
        opened(folder).split_clients(IID(3), np.random.default_rng(0))


def test_a_folder_without_an_index_is_refused(tmp_path):
    with pytest.raises(FlgenError, match=r"index.json does not exist; .*`--data.root`"):
        opened(tmp_path)


def change_index(folder, change) -> None:
    content = json.loads((folder / "index.json").read_text())
    change(content)
    (folder / "index.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda index: index.pop("clients"), "no entry 'clients'"),
        (lambda index: index.update(format="other"), "its format is not flgen-client-shards"),
        (lambda index: index.update(version=2), "has version 2 and this flgen reads version 1"),
        (lambda index: index.update(classes=4), "4 classes with 3 names"),
        (lambda index: index["clients"][0].update(samples=31), "numbers of samples contradict"),
        (lambda index: index["clients"][0].update(label_counts=[30]), "numbers of samples contradict"),
        (lambda index: index["clients"][1]["shards"][0].update(file="../x.tar"), r"../x.tar lies outside the folder"),
        (lambda index: index["test"]["shards"][0].update(file="/etc/passwd"), r"/etc/passwd lies outside the folder"),
        (lambda index: index.update(clients=3), "is damaged"),
    ],
)
def test_an_index_that_contradicts_itself_is_refused_on_one_line(folder, change, says):
    change_index(folder, change)
    with pytest.raises(FlgenError, match=says) as caught:
        opened(folder)
    assert "\n" not in str(caught.value)
    assert "index.json" in str(caught.value)


def test_an_index_that_is_no_json_is_refused(folder):
    (folder / "index.json").write_text('{"format": ')
    with pytest.raises(FlgenError, match=r"index.json is damaged .*flgen partition"):
        opened(folder)


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    shard = folder / "client-0000" / "shard-00000.tar"
    shard.rename(tmp_path / "elsewhere.tar")
    shard.symlink_to(tmp_path / "elsewhere.tar")
    with pytest.raises(FlgenError, match="lies outside the folder"):
        opened(folder)


def rewrite_shard(path, change) -> None:
    """Apply `change(name, content) -> (name, content) | None` to every member of a tar file."""
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w") as tar:
        for name, content in filter(None, (change(*member) for member in members)):
            facts = tarfile.TarInfo(name)
            facts.size = len(content)
            tar.addfile(facts, io.BytesIO(content))


def flipped(png: bytes) -> bytes:
    """Return a PNG file with one bit of its pixels' checksum flipped."""
    at = png.index(b"IEND") - 8
    return png[:at] + bytes([png[at] ^ 1]) + png[at + 1 :]


@pytest.mark.parametrize("memory_budget_mb", [100.0, 0.0])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), "the file is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "shard-00001.tar is damaged"),
        (lambda path: path.write_bytes(b"no tar file at all" * 100), "shard-00001.tar is damaged"),
        (lambda path: path.write_bytes(b""), "shard-00001.tar is damaged"),
        (
            lambda path: rewrite_shard(path, lambda name, content: (name, content[:-14] if "png" in name else content)),
            "shard-00001.tar is damaged",
        ),
        (
            lambda path: rewrite_shard(
                path, lambda name, content: (name, flipped(content) if "png" in name else content)
            ),
            "shard-00001.tar is damaged",
        ),
        (
            lambda path: rewrite_shard(path, lambda name, content: (name, b"7" if "cls" in name else content)),
            "label 7 is none of 3 classes",
        ),
        (
            lambda path: rewrite_shard(path, lambda name, content: None if "cls" in name else (name, content)),
            "a sample without cls",
        ),
        (
            lambda path: rewrite_shard(path, lambda name, content: (name, b"[]" if "json" in name else content)),
            "shard-00001.tar is damaged",
        ),
    ],
)
def test_a_damaged_shard_is_named_on_one_line(folder, memory_budget_mb, damage, says):
    damage(folder / "client-0001" / "shard-00001.tar")
    with pytest.raises(FlgenError, match=says) as caught:
        for _ in opened(folder, memory_budget_mb=memory_budget_mb).client_data(1, np.arange(30)).in_order(8):
            pass
    assert "\n" not in str(caught.value)
    assert "flgen partition" in str(caught.value)


def test_a_shard_that_lost_samples_is_noticed(folder):
    path = folder / "client-0000" / "shard-00000.tar"
    with tarfile.open(path) as tar:
        first = tar.getmembers()[0].name.partition(".")[0]
    rewrite_shard(path, lambda name, content: None if name.startswith(first) else (name, content))
    with pytest.raises(FlgenError, match="holds 7 samples and not 8"):
        opened(folder).client_data(0, np.arange(30))


def test_labels_that_differ_from_the_index_are_noticed(folder):
    change_index(folder, lambda index: index["clients"][0].update(label_counts=[28, 1, 1]))
    with pytest.raises(FlgenError, match="the labels are not those of the index"):
        opened(folder).client_data(0, np.arange(30))


def test_pickled_members_are_never_loaded(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    path = folder / "client-0000" / "shard-00000.tar"

    def add_pickles(name: str, content: bytes) -> tuple[str, bytes]:
        return (name.replace("json", "pyd"), pickle.dumps(Trap())) if name.endswith("json") else (name, content)

    rewrite_shard(path, add_pickles)
    with pytest.raises(FlgenError, match="a sample without json"):
        opened(folder).client_data(0, np.arange(30))
    assert not (tmp_path / "sprung").exists()


def test_the_budget_cannot_be_negative():
    with pytest.raises(UsageError, match=r"--data.memory_budget_mb` is -1"):
        ClientShards("x", memory_budget_mb=-1.0)
