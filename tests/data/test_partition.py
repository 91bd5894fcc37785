"""Laws of the partitioners, and what they say when they cannot meet a request."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flgen.data import IID, AsStored, ByAttribute, Dirichlet, Partitioner, Pathological, Shards
from flgen.data.partition import label_table
from flgen.errors import UsageError

LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=120).map(lambda values: np.array(values, dtype=np.int64))
SEEDS = st.integers(0, 2**32 - 1)


def split(partitioner: Partitioner, labels: np.ndarray, seed: int = 0, **attributes: np.ndarray) -> list[np.ndarray]:
    return partitioner.split(labels, attributes, np.random.default_rng(seed))


def assert_law(partitioner: Partitioner, labels: np.ndarray, seed: int, **attributes: np.ndarray) -> list[np.ndarray]:
    """Every partition: one int64 array per client, indices in range, none twice, the same again for the same seed."""
    partition = split(partitioner, labels, seed, **attributes)
    dealt = np.concatenate(partition)
    assert len(partition) == partitioner.clients
    assert all(indices.dtype == np.int64 and indices.ndim == 1 for indices in partition)
    assert len(np.unique(dealt)) == len(dealt) <= len(labels)
    assert dealt.min(initial=0) >= 0
    assert dealt.max(initial=0) < len(labels)
    again = split(partitioner, labels, seed, **attributes)
    assert all(np.array_equal(one, other) for one, other in zip(partition, again, strict=True))
    return partition


@given(labels=LABELS, clients=st.integers(1, 20), seed=SEEDS)
def test_iid_gives_every_client_the_same_number_of_samples(labels, clients, seed):
    clients = min(clients, len(labels))
    partition = assert_law(IID(clients), labels, seed)
    assert {len(indices) for indices in partition} == {len(labels) // clients}


def test_iid_with_one_client_is_a_permutation_of_all_samples():
    (everything,) = split(IID(1), np.zeros(50, dtype=int), seed=3)
    assert np.array_equal(np.sort(everything), np.arange(50))
    assert not np.array_equal(everything, np.arange(50))


@given(labels=LABELS, clients=st.integers(1, 8), per_client=st.integers(1, 5), seed=SEEDS)
def test_shards_are_equal_runs_of_the_samples_sorted_by_label(labels, clients, per_client, seed):
    shards = clients * per_client
    if shards > len(labels):
        with pytest.raises(UsageError, match="--partition"):
            split(Shards(clients, per_client), labels, seed)
        return
    size = len(labels) // shards
    partition = assert_law(Shards(clients, per_client), labels, seed)
    by_label = np.argsort(labels, kind="stable")
    runs = {tuple(by_label[start : start + size]) for start in range(0, shards * size, size)}
    dealt = [tuple(run) for indices in partition for run in indices.reshape(per_client, size)]
    assert len(dealt) == shards
    assert set(dealt) == runs


def test_shards_that_align_with_classes_give_at_most_as_many_classes_as_shards():
    labels = np.repeat(np.arange(10), 60)
    classes = (label_table(split(Shards(10, 4), labels, seed=1), labels, 10) > 0).sum(axis=1)
    assert classes.max() <= 4
    assert classes.min() >= 1


@given(labels=LABELS, clients=st.integers(1, 10), alpha=st.floats(1e-4, 1e3), seed=SEEDS)
@settings(max_examples=60)
def test_dirichlet_deals_out_every_sample(labels, clients, alpha, seed):
    clients = min(clients, len(labels))
    partition = assert_law(Dirichlet(clients, alpha, min_samples=0), labels, seed)
    assert sum(len(indices) for indices in partition) == len(labels)


@pytest.mark.parametrize("seed", range(5))
def test_dirichlet_at_the_published_alpha_gives_every_client_ten_samples(seed):
    labels = np.repeat(np.arange(10), 500)
    partition = assert_law(Dirichlet(10, alpha=0.005, min_samples=10), labels, seed)
    sizes = [len(indices) for indices in partition]
    assert min(sizes) >= 10
    assert sum(sizes) == 5000
    # A client is closed once it holds N / K = 500 samples, so it holds less than that and one whole class.
    assert max(sizes) < 1000


def by_the_box(
    labels: np.ndarray, clients: int, alpha: float, n_min: int, generator: np.random.Generator
) -> np.ndarray:
    """The published algorithm (GPT-FL, section 5.2) as it stands there, without guards: counts (clients, classes)."""
    while True:
        held = np.zeros(clients, dtype=int)
        table = []
        for count in np.bincount(labels):
            p = generator.dirichlet(np.full(clients, alpha))
            p[held >= len(labels) / clients] = 0
            cuts = np.floor(np.cumsum(p / p.sum()) * count).astype(int)[:-1]
            table.append(np.diff(cuts, prepend=0, append=count))
            held += table[-1]
        if held.min() >= n_min:
            return np.array(table).T


@pytest.mark.parametrize(
    ("classes", "per_class", "clients", "alpha", "n_min"),
    [(10, 500, 20, 0.1, 20), (10, 5000, 100, 0.5, 32), (5, 400, 10, 0.5, 5)],
)
def test_dirichlet_is_the_published_algorithm(classes, per_class, clients, alpha, n_min):
    labels = np.repeat(np.arange(classes), per_class)
    expected = by_the_box(labels, clients, alpha, n_min, np.random.default_rng(8))
    partition = assert_law(Dirichlet(clients, alpha, min_samples=n_min), labels, seed=8)
    assert np.array_equal(label_table(partition, labels, classes), expected)


@pytest.mark.parametrize(
    ("classes", "per_class", "clients", "alpha", "n_min", "median", "mean_classes"),
    [
        (10, 5000, 100, 0.5, 32, 525, 7.9),
        (100, 500, 100, 0.1, 5, 509.5, 32.6),
        (100, 500, 100, 0.5, 5, 506.5, 72.4),
        (102, 10, 50, 0.1, 5, 21, 13.3),
        (50, 32, 100, 0.1, 5, 16, 7.4),
    ],
    ids=["CIFAR-10", "CIFAR-100 skewed", "CIFAR-100", "Flowers-102", "ESC-50"],
)
def test_dirichlet_looks_like_the_published_partitions(classes, per_class, clients, alpha, n_min, median, mean_classes):
    labels = np.repeat(np.arange(classes), per_class)
    partition = split(Dirichlet(clients, alpha, min_samples=n_min), labels, seed=8)
    sizes = np.array([len(indices) for indices in partition])
    assert sizes.min() >= n_min
    assert np.median(sizes) == pytest.approx(median, rel=0.05)
    assert (label_table(partition, labels, classes) > 0).sum(axis=1).mean() == pytest.approx(mean_classes, rel=0.05)
    # A client is closed once it holds N / K samples, so it holds less than that and one whole class.
    assert sizes.max() < len(labels) / clients + per_class


def test_dirichlet_spreads_evenly_at_large_alpha_and_not_at_small_alpha():
    labels = np.repeat(np.arange(10), 500)
    even = label_table(split(Dirichlet(10, alpha=1e5), labels), labels, 10)
    uneven = label_table(split(Dirichlet(10, alpha=0.05), labels), labels, 10)
    assert even.min() >= 45
    assert even.max() <= 55
    assert (uneven > 0).sum() < 60


def test_dirichlet_takes_labels_that_are_a_plain_list():
    labels = [0, 1, 2, 3] * 25
    partition = Dirichlet(2, alpha=1.0, min_samples=1).split(labels, {}, np.random.default_rng(0))
    assert sum(len(indices) for indices in partition) == 100


@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e-12])
def test_dirichlet_survives_proportions_that_vanish(alpha):
    labels = np.repeat(np.arange(6), 20)
    table = label_table(split(Dirichlet(3, alpha=alpha, min_samples=0), labels), labels, 6)
    assert sorted(table[table > 0]) == [20] * 6  # each class goes to one client as a whole


def test_dirichlet_gives_up_after_the_stated_number_of_draws():
    with pytest.raises(UsageError, match=r"in 50 draws with `--partition.alpha 0.001`.*of 20.*--partition.min_samples"):
        split(Dirichlet(20, alpha=0.001, min_samples=10, max_draws=50), np.repeat(np.arange(2), 500))


def test_dirichlet_refuses_at_once_what_no_draw_can_give():
    with pytest.raises(UsageError, match=r"min_samples 10` need 100 samples but there are 60; use at most 6"):
        split(Dirichlet(10, max_draws=10**9), np.zeros(60, dtype=int))


def test_by_attribute_gives_each_half_one_value_in_file_order():
    male = np.array([1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0])  # men: 0 3 5 8 10; women: 1 2 4 6 7 9 11
    partition = assert_law(ByAttribute(4, "Male"), np.zeros(12, dtype=int), seed=0, Male=male)
    assert [indices.tolist() for indices in partition] == [[0, 3], [5, 8], [1, 2], [4, 6]]


@given(male=st.lists(st.booleans(), min_size=2, max_size=100), half=st.integers(1, 5))
def test_by_attribute_shares_the_smaller_group_evenly(male, half):
    values = np.array(male, dtype=np.int64)
    smaller = min(values.sum(), len(values) - values.sum())
    partitioner = ByAttribute(2 * half, "Male")
    if smaller < half:
        with pytest.raises(UsageError, match="--partition"):
            split(partitioner, values, Male=values)
        return
    partition = assert_law(partitioner, values, seed=0, Male=values)
    assert {len(indices) for indices in partition} == {2 * smaller // (2 * half)}
    assert all(set(values[indices]) == {1} for indices in partition[:half])
    assert all(set(values[indices]) == {0} for indices in partition[half:])


def test_by_attribute_without_a_number_makes_one_client_of_each_value():
    speaker = np.array([7, 3, 7, 9, 3, 7])
    for partitioner in (ByAttribute(attribute="speaker"), ByAttribute(0, "speaker")):
        partition = split(partitioner, np.zeros(6, dtype=int), speaker=speaker)
        assert [indices.tolist() for indices in partition] == [[1, 4], [0, 2, 5], [3]]


def test_by_attribute_leaves_out_values_with_too_few_samples():
    speaker = np.array([7, 3, 7, 9, 3, 7])
    partition = split(ByAttribute(attribute="speaker", min_samples=2), np.zeros(6, dtype=int), speaker=speaker)
    assert [indices.tolist() for indices in partition] == [[1, 4], [0, 2, 5]]
    with pytest.raises(UsageError, match=r"min_samples` is 4 but the most samples of one speaker are 3"):
        split(ByAttribute(attribute="speaker", min_samples=4), np.zeros(6, dtype=int), speaker=speaker)


def test_by_attribute_with_a_number_says_what_to_do_about_more_than_two_values():
    with pytest.raises(UsageError, match=r"speaker` takes 6 values .*leave out `--partition.clients` for one client"):
        split(ByAttribute(2, "speaker"), np.zeros(6, dtype=int), speaker=np.arange(6))


@given(clients=st.integers(1, 15), per_client=st.integers(1, 6), classes=st.integers(1, 6), seed=SEEDS)
def test_pathological_gives_exactly_n_classes_and_shares_each_evenly(clients, per_client, classes, seed):
    per_client = min(per_client, classes)
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), 30))
    table = label_table(assert_law(Pathological(clients, per_client), labels, seed), labels, classes)
    owners = (table > 0).sum(axis=0)
    assert ((table > 0).sum(axis=1) == per_client).all()
    assert owners.max() - owners.min() <= 1
    if clients * per_client >= classes:
        assert owners.min() >= 1
    for column in table.T[owners > 0]:
        shares = column[column > 0]
        assert shares.sum() == 30
        assert shares.max() - shares.min() <= 1


def test_pathological_in_blocks_deals_out_all_samples_of_the_classes_that_have_owners(caplog):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(102), np.arange(40, 142)))
    with caplog.at_level("WARNING", logger="flgen"):
        table = label_table(assert_law(Pathological(20, 10, "blocks"), labels, 1), labels, 102)
    assert np.flatnonzero(table.sum(axis=0) == 0).tolist() == [100, 101]
    assert table.sum() == len(labels) - 140 - 141
    assert np.flatnonzero(table[3]).tolist() == list(range(10, 20))
    assert caplog.messages[0] == "no client holds classes 100, 101: 281 samples are not used"
    shares = table[table > 0].reshape(20, 10)
    assert (np.abs(shares[::2] - shares[1::2]) <= 1).all()


def test_pathological_says_nothing_where_every_class_has_an_owner(caplog):
    with caplog.at_level("WARNING", logger="flgen"):
        split(Pathological(20, 2, "blocks"), np.repeat(np.arange(10), 60))
        assert caplog.messages == []
        split(Pathological(2, 1), np.repeat(np.arange(3), 60))
    (line,) = caplog.messages
    assert line.startswith("no client holds class ")
    assert line.endswith(": 60 samples are not used")


def test_pathological_with_unbalanced_shares_follows_the_published_rule():
    labels = np.repeat(np.arange(10), 6000)
    table = label_table(assert_law(Pathological(20, 2, "blocks", "unbalanced"), labels, 2), labels, 10)
    for label, column in enumerate(table.T):
        shares = column[column > 0]
        assert len(shares) == 4
        assert shares.sum() == 6000
        assert all(150 <= share < 1500 for share in shares[:-1])  # mean 1500, a tenth of it, 40 / 10
        assert shares[-1] > 1500, label


@pytest.mark.parametrize(("counts", "pairs"), [([6000] * 10, 102), ([600] * 100, 900)], ids=["CIFAR-10", "CIFAR-100"])
def test_dirichlet_at_one_tenth_with_forty_samples_looks_like_the_published_partition(counts, pairs):
    labels = np.repeat(np.arange(len(counts)), counts)
    found = []
    for seed in range(5):
        table = label_table(split(Dirichlet(20, alpha=0.1, min_samples=40), labels, seed), labels, len(counts))
        assert table.sum() == len(labels)
        assert table.sum(axis=1).min() >= 40
        assert table.sum(axis=1).max() < len(labels) / 20 + max(counts)  # a client that holds N / K is closed
        found.append((table > 0).sum())
    assert np.mean(found) == pytest.approx(pairs, rel=0.1)  # 102 client-class pairs in the published CIFAR-10 one


def test_pathological_mixes_its_pairs_of_classes():
    labels = np.repeat(np.arange(10), 100)
    table = label_table(split(Pathological(50, 2), labels), labels, 10)
    assert len({tuple(np.flatnonzero(row)) for row in table}) > 20


@pytest.mark.parametrize("partitioner", [IID(5), Shards(5, 2), Dirichlet(5, 0.5), Pathological(5, 2)])
def test_another_seed_gives_another_partition(partitioner):
    labels = np.repeat(np.arange(5), 40)
    one, other = split(partitioner, labels, seed=1), split(partitioner, labels, seed=2)
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: IID(0), r"--partition.clients` is 0"),
        (lambda: Shards(10, 0), r"--partition.shards_per_client` is 0"),
        (lambda: Dirichlet(10, alpha=0.0), r"--partition.alpha` is 0.0"),
        (lambda: Dirichlet(10, alpha=-1.0), r"--partition.alpha` is -1.0"),
        (lambda: Dirichlet(10, alpha=float("nan")), r"--partition.alpha` is nan"),
        (lambda: Dirichlet(10, min_samples=-1), r"--partition.min_samples` is -1"),
        (lambda: Dirichlet(10, max_draws=0), r"--partition.max_draws` is 0"),
        (lambda: ByAttribute(9), r"--partition.clients` is 9.*even number, such as 10"),
        (lambda: ByAttribute(min_samples=0), r"--partition.min_samples` is 0"),
        (lambda: Pathological(10, 0), r"--partition.classes_per_client` is 0"),
        (lambda: Pathological(10, 2, min_samples=-1), r"--partition.min_samples` is -1"),
    ],
)
def test_options_out_of_range_are_refused_by_name(build, says):
    with pytest.raises(UsageError, match=says):
        build()


@pytest.mark.parametrize(
    ("partitioner", "says"),
    [
        (IID(31), r"--partition.clients` is 31 but there are 30 training samples; ask for at most 30"),
        (Shards(10, 4), r"shards_per_client 4` need 40 samples but there are 30; use at most 3"),
        (Pathological(5, 4), r"classes_per_client` is 4 but the data have 3 classes"),
        (Pathological(30, 3), r"class 0 has 10 samples for 30 owners; lower `--partition.clients`"),
        (Pathological(9, 3, shares="unbalanced", min_samples=6), r"10 samples of a class are too few for 9 owners"),
        (ByAttribute(2, "male"), r"attribute male` is unknown; these data have Male, Young; did you mean Male\?"),
        (ByAttribute(2, "Young"), r"attribute Young` takes 1 values"),
        (ByAttribute(4, "Male"), r"smaller group of Male has 1 samples; ask for at most 2 clients"),
        (AsStored(), r"AsStored` needs .*--data ClientShards"),
    ],
)
def test_requests_that_the_data_cannot_meet_say_what_would_work(partitioner, says):
    labels = np.repeat(np.arange(3), 10)
    attributes = {"Male": np.arange(30) == 7, "Young": np.ones(30, dtype=int)}
    with pytest.raises(UsageError, match=says) as caught:
        split(partitioner, labels, **attributes)
    assert "\n" not in str(caught.value)


def test_a_split_by_attribute_of_data_without_attributes_is_refused():
    with pytest.raises(UsageError, match="these data have no attributes"):
        split(ByAttribute(2), np.zeros(10, dtype=int))


def test_label_table_counts_samples_by_client_and_class():
    labels = np.array([0, 1, 1, 2, 2, 2])
    table = label_table([np.array([0, 1, 3]), np.array([], dtype=np.int64), np.array([4, 5])], labels, classes=4)
    assert table.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 2, 0]]
    assert table.dtype == np.int64


def test_a_partitioner_describes_itself_with_its_options():
    assert Shards(20, 2).describe() == {"class": "Shards", "clients": 20, "shards_per_client": 2}
