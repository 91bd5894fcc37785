"""Partitioners: who owns which training image. Every rule is seeded, ends, and says so when it cannot be met."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from flgen.data.class_owners import balanced_owners, block_owners, unbalanced_sizes
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
else:
    np = deferred_module("numpy")

log = logging.getLogger("flgen")


class Partitioner:
    """The rule that deals the training samples out to clients.

    Args:
        clients: Number of clients.

    Raises:
        UsageError: If `clients` is below 1.
    """

    def __init__(self, clients: int = 10) -> None:
        if clients < 1:
            raise UsageError(f"`--partition.clients` is {clients}; at least 1 client is needed")
        self.clients = clients

    def split(
        self, labels: np.ndarray, attributes: Mapping[str, np.ndarray], generator: np.random.Generator
    ) -> list[np.ndarray]:
        """Deal the samples out.

        Args:
            labels: Class ids, (N,), any sequence of integers.
            attributes: Further values per sample, each (N,), by name.
            generator: Source of every random choice.

        Returns:
            One int64 array of sample indices per client; no index appears twice.

        Raises:
            UsageError: If the request cannot be met with these samples.
        """
        labels = np.asarray(labels, dtype=np.int64)
        if self.clients > len(labels):
            raise UsageError(
                f"`--partition.clients` is {self.clients} but there are {len(labels)} training samples; "
                f"ask for at most {len(labels)} clients"
            )
        return [np.asarray(indices, dtype=np.int64) for indices in self._deal(labels, attributes, generator)]

    def _deal(
        self, labels: np.ndarray, attributes: Mapping[str, np.ndarray], generator: np.random.Generator
    ) -> list[np.ndarray]:
        raise TypeError(f"{type(self).__name__} is not a complete partitioner: it needs a method _deal")

    def describe(self) -> dict[str, Any]:
        """Return the rule's name and options as plain values, for the index of stored shards."""
        return {"class": type(self).__name__, **vars(self)}


class IID(Partitioner):
    """Every client draws floor(N / clients) samples at random; up to clients - 1 samples stay unused.

    Args:
        clients: Number of clients; null is 10.
    """

    def __init__(self, clients: int | None = None) -> None:
        # Null by default: the parser hands the values of this default rule on to another that is named instead.
        super().__init__(10 if clients is None else clients)

    def _deal(
        self, labels: np.ndarray, attributes: Mapping[str, np.ndarray], generator: np.random.Generator
    ) -> list[np.ndarray]:
        share = len(labels) // self.clients
        return list(generator.permutation(len(labels))[: self.clients * share].reshape(self.clients, share))


class Shards(Partitioner):
    """Samples sorted by label are cut into equal shards, and every client gets some of them at random.

    With 10 clients and 4 shards each this is the published "4-class non-IID" split. The sort is stable, and with
    S shards the first S * floor(N / S) sorted samples are used, so N need not be a multiple of S (PRISM, section 4).

    Args:
        clients: Number of clients.
        shards_per_client: Shards that one client holds; about the number of its classes.

    Raises:
        UsageError: If `shards_per_client` is below 1.
    """

    def __init__(self, clients: int = 10, shards_per_client: int = 4) -> None:
        super().__init__(clients)
        if shards_per_client < 1:
            raise UsageError(f"`--partition.shards_per_client` is {shards_per_client}; it must be at least 1")
        self.shards_per_client = shards_per_client

    def _deal(
        self, labels: np.ndarray, attributes: Mapping[str, np.ndarray], generator: np.random.Generator
    ) -> list[np.ndarray]:
        shards = self.clients * self.shards_per_client
        if shards > len(labels):
            raise UsageError(
                f"{self.clients} clients with `--partition.shards_per_client {self.shards_per_client}` need {shards} "
                f"samples but there are {len(labels)}; use at most {len(labels) // self.clients} shards per client"
            )
        size = len(labels) // shards
        by_label = np.argsort(labels, kind="stable")[: shards * size].reshape(shards, size)
        return list(by_label[generator.permutation(shards)].reshape(self.clients, self.shards_per_client * size))


class Dirichlet(Partitioner):
    """Each class is spread over the clients in proportions drawn from a symmetric Dirichlet law (PRISM, section 4).

    A client that already holds N / clients samples takes no further class. The whole assignment is redrawn until
    every client holds `min_samples`; all samples are used.

    Args:
        clients: Number of clients.
        alpha: Concentration: near 0 each class goes to one client, above about 100 all clients are alike.
        min_samples: Least number of samples of every client.
        max_draws: Draws after which the request is given up as impossible.

    Raises:
        UsageError: If `alpha` is not positive, or `min_samples` or `max_draws` is out of range.
    """

    def __init__(self, clients: int = 10, alpha: float = 0.005, min_samples: int = 10, max_draws: int = 1000) -> None:
        super().__init__(clients)
        if not 0.0 < alpha <= 1e6:  # beyond it the shares are equal anyway, and their sum would overflow
            raise UsageError(f"`--partition.alpha` is {alpha}; it must be positive and at most 1e6, such as 0.1")
        if min_samples < 0:
            raise UsageError(f"`--partition.min_samples` is {min_samples}; it must be 0 or more")
        if max_draws < 1:
            raise UsageError(f"`--partition.max_draws` is {max_draws}; it must be at least 1")
        self.alpha = alpha
        self.min_samples = min_samples
        self.max_draws = max_draws

    def _deal(
        self, labels: np.ndarray, attributes: Mapping[str, np.ndarray], generator: np.random.Generator
    ) -> list[np.ndarray]:
        if self.clients * self.min_samples > len(labels):
            raise UsageError(
                f"{self.clients} clients with `--partition.min_samples {self.min_samples}` need "
                f"{self.clients * self.min_samples} samples but there are {len(labels)}; "
                f"use at most {len(labels) // self.clients}"
            )
        members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        best = 0
        for _ in range(self.max_draws):
            cuts, sizes = self._draw_cuts([len(indices) for indices in members], generator)
            best = max(best, int((sizes >= self.min_samples).sum()))
            if best == self.clients:
                break
        else:
            raise UsageError(
                f"in {self.max_draws} draws with `--partition.alpha {self.alpha}` at most {best} of {self.clients} "
                f"clients got `--partition.min_samples {self.min_samples}`; raise alpha or lower min_samples or clients"
            )
        pieces = [np.split(generator.permutation(indices), at) for indices, at in zip(members, cuts, strict=True)]
        return [np.concatenate(of_client) for of_client in zip(*pieces, strict=True)]

    def _draw_cuts(self, counts: list[int], generator: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
        """Draw where each class is cut into one piece per client; return the cuts and the clients' sizes."""
        sizes = np.zeros(self.clients, dtype=np.int64)
        cuts = []
        for count in counts:
            has_room = sizes < sum(counts) / self.clients
            share = generator.dirichlet(np.full(self.clients, self.alpha)) * has_room
            if not share.sum() > 0.0:  # all of the mass fell on full clients; for alpha -> 0 one client takes it all
                share = np.zeros(self.clients)
                share[generator.choice(np.flatnonzero(has_room))] = 1.0
            ends = np.floor(np.cumsum(share / share.sum()) * count).astype(np.int64)
            # Rounding must neither lose a sample nor give one to a client that is full.
            ends[np.flatnonzero(share)[-1] :] = count
            cuts.append(ends[:-1])
            sizes += np.diff(ends, prepend=0)
        return cuts, sizes


class ByAttribute(Partitioner):
    """Every value of an attribute is one client, such as every speaker; or a binary attribute divides the clients.

    With a number of clients the first half of them holds one value of a binary attribute, the second half the other.
    The larger group is cut down to the size n of the smaller one, and each client takes floor(2 n / clients)
    samples of its group in file order: with CelebA's `Male` and ten clients, clients 0 to 4 see men only and 5 to 9
    women only (PRISM, section 4).

    Args:
        clients: Number of clients, even; null (or 0) makes one client of each value, in the order of the values, with
            all of its samples.
        attribute: Name of the attribute; the clients of the first half hold its greater value.
        min_samples: Values with fewer samples have no client; with a number of clients it does not matter.

    Raises:
        UsageError: If `clients` is odd, or `min_samples` is below 1.
    """

    def __init__(self, clients: int | None = None, attribute: str = "Male", min_samples: int = 1) -> None:
        clients = clients or 0
        super().__init__(clients or 1)
        if clients % 2:
            raise UsageError(
                f"`--partition.clients` is {clients}; a split by attribute needs an even number, such as "
                f"{clients + 1}, or null for one client of each value"
            )
        if min_samples < 1:
            raise UsageError(f"`--partition.min_samples` is {min_samples}; it must be at least 1")
        self.clients = clients
        self.attribute = attribute
        self.min_samples = min_samples

    def _deal(
        self, labels: np.ndarray, attributes: Mapping[str, np.ndarray], generator: np.random.Generator
    ) -> list[np.ndarray]:
        if self.attribute not in attributes:
            near = difflib.get_close_matches(self.attribute, attributes, n=1, cutoff=0.0)
            known = f"{', '.join(sorted(attributes))}; did you mean {near[0]}?" if near else "no attributes at all"
            raise UsageError(f"`--partition.attribute {self.attribute}` is unknown; these data have {known}")
        values = np.asarray(attributes[self.attribute])
        found = np.unique(values)
        groups = [np.flatnonzero(values == value) for value in found]
        return self._two_halves(groups) if self.clients else self._one_client_each(groups)

    def _one_client_each(self, groups: list[np.ndarray]) -> list[np.ndarray]:
        kept = [group for group in groups if len(group) >= self.min_samples]
        if not kept:
            raise UsageError(
                f"`--partition.min_samples` is {self.min_samples} but the most samples of one {self.attribute} are "
                f"{max(map(len, groups))}; ask for fewer"
            )
        return kept

    def _two_halves(self, groups: list[np.ndarray]) -> list[np.ndarray]:
        if len(groups) != 2:
            raise UsageError(
                f"`--partition.attribute {self.attribute}` takes {len(groups)} values in these data; leave out "
                "`--partition.clients` for one client of each, or choose an attribute that takes two"
            )
        smaller = min(len(group) for group in groups)
        half = self.clients // 2
        share = smaller // half
        if share == 0:
            raise UsageError(
                f"`--partition.clients` is {self.clients} but the smaller group of {self.attribute} has {smaller} "
                f"samples; ask for at most {2 * smaller} clients"
            )
        return [group[i * share : (i + 1) * share] for group in groups[::-1] for i in range(half)]


class Pathological(Partitioner):
    """Every client holds n classes, and the samples of a class are shared by its owners.

    Balanced: each client takes the classes with the fewest owners so far, ties broken at random. Owners per class
    differ by at most one, and every class has an owner as soon as clients * classes_per_client reaches the number of
    classes.

    Blocks, as published for FedKTL: the classes, in their order, go to the first ceil(clients * n / classes) clients
    that still have room, so neighbours share the same classes. All clients may be full before the last class (20
    clients with 10 classes of Flowers-102 leave out two), or the last clients may get fewer than n.

    A warning names the classes that no client holds.

    Args:
        clients: Number of clients.
        classes_per_client: Number n of classes of every client.
        assignment: How classes get their owners, "balanced" or in "blocks".
        shares: "even", or "unbalanced": all owners of a class but the last draw their number of samples uniformly from
            [max(mean / 10, min_samples / classes), mean), and the last takes the rest.
        min_samples: With unbalanced shares, what a client with a least share of every class would hold.

    Raises:
        UsageError: If `classes_per_client` is below 1, or `min_samples` below 0.

    Source: fedktl.md, section 4.
    """

    def __init__(
        self,
        clients: int = 10,
        classes_per_client: int = 2,
        assignment: Literal["balanced", "blocks"] = "balanced",
        shares: Literal["even", "unbalanced"] = "even",
        min_samples: int = 40,
    ) -> None:
        super().__init__(clients)
        if classes_per_client < 1:
            raise UsageError(f"`--partition.classes_per_client` is {classes_per_client}; it must be at least 1")
        if min_samples < 0:
            raise UsageError(f"`--partition.min_samples` is {min_samples}; it must be 0 or more")
        self.classes_per_client = classes_per_client
        self.assignment = assignment
        self.shares = shares
        self.min_samples = min_samples

    def _deal(
        self, labels: np.ndarray, attributes: Mapping[str, np.ndarray], generator: np.random.Generator
    ) -> list[np.ndarray]:
        classes = np.unique(labels)
        if self.classes_per_client > len(classes):
            raise UsageError(
                f"`--partition.classes_per_client` is {self.classes_per_client} "
                f"but the data have {len(classes)} classes"
            )
        if self.assignment == "blocks":
            owners = block_owners(self.clients, self.classes_per_client, len(classes))
        else:
            owners = balanced_owners(self.clients, self.classes_per_client, len(classes), generator)
        _warn_of_nobodys(labels, [int(label) for label, own in zip(classes, owners, strict=True) if not own])
        pieces: list[list[np.ndarray]] = [[] for _ in range(self.clients)]
        for label, of_class in zip(classes, owners, strict=True):
            members = np.flatnonzero(labels == label)
            if len(of_class) > len(members):
                raise UsageError(
                    f"class {label} has {len(members)} samples for {len(of_class)} owners; "
                    "lower `--partition.clients` or `--partition.classes_per_client`"
                )
            if of_class:
                shares = self._cut(generator.permutation(members), len(of_class), len(classes), generator)
                for client, share in zip(of_class, shares, strict=True):
                    pieces[client].append(share)
        return [np.concatenate(of_client) for of_client in pieces]

    def _cut(self, members: np.ndarray, owners: int, classes: int, generator: np.random.Generator) -> list[np.ndarray]:
        """Cut the shuffled samples of a class into one share per owner."""
        if self.shares == "even":
            return np.array_split(members, owners)
        sizes = unbalanced_sizes(len(members), owners, self.min_samples / classes, generator)
        if sizes is None:
            raise UsageError(
                f"`--partition.shares unbalanced`: {len(members)} samples of a class are too few for {owners} owners; "
                "lower `--partition.min_samples`, `--partition.clients` or `--partition.classes_per_client`"
            )
        return np.split(members, np.cumsum(sizes[:-1]))


class AsStored(Partitioner):
    """The clients as `flgen partition` stored them; the data must be `ClientShards`.

    The number of clients is the index's: `clients` is 0 here.
    """

    def __init__(self) -> None:
        self.clients = 0

    def _deal(
        self, labels: np.ndarray, attributes: Mapping[str, np.ndarray], generator: np.random.Generator
    ) -> list[np.ndarray]:
        raise UsageError(
            "`--partition AsStored` needs data that are already split: give the output of `flgen partition` "
            "with `--data ClientShards --data.root DIR`, or choose another partition"
        )


def label_table(partition: Sequence[np.ndarray], labels: np.ndarray, classes: int) -> np.ndarray:
    """Count each client's samples of each class.

    Args:
        partition: One array of sample indices per client.
        labels: Class ids of all samples, (N,).
        classes: Number of classes.

    Returns:
        int64 array (clients, classes).
    """
    labels = np.asarray(labels, dtype=np.int64)
    return np.stack([np.bincount(labels[indices], minlength=classes) for indices in partition]).astype(np.int64)


def _warn_of_nobodys(labels: np.ndarray, classes: list[int]) -> None:
    """Say which classes no client holds, and how many samples that leaves unused."""
    if classes:
        named = f"class{'es' * (len(classes) > 1)} {', '.join(map(str, classes))}"
        log.warning("no client holds %s: %d samples are not used", named, np.isin(labels, classes).sum())
