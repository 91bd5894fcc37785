"""The partition of the personalised methods: equally large clients, each with label proportions of its own."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping

from flgen.data.partition import Partitioner
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
else:
    np = deferred_module("numpy")


class ClientDirichlet(Partitioner):
    """Every client, or group of clients, draws its label proportions from a symmetric Dirichlet law (DisPFL, sec. 8.1).

    All clients hold equally many samples, and none twice; what is left over stays unused.
    One sample at a time goes to a random client that is not full yet: a label is drawn from the client's proportions
    over the classes that are not used up, and a random sample of that class is taken. A client all of whose classes
    are used up draws among the others evenly. `Dirichlet` is the other way round: it spreads each class over clients.

    Args:
        clients: Number of clients.
        alpha: Concentration: near 0 a client has one class, above about 100 all clients are alike.
        groups: Number of groups of consecutive clients that share their proportions, each of floor(clients / groups)
            clients (the last one takes the remainder); by default every client has its own.
        samples_per_client: Samples of every client, for trials with less than all of the data; by default
            floor(N / clients).

    Raises:
        UsageError: If `alpha` is not positive, `groups` not among 1 to `clients`, or `samples_per_client` below 1.
    """

    def __init__(
        self,
        clients: int = 100,
        alpha: float = 0.3,
        groups: int | None = None,
        samples_per_client: int | None = None,
    ) -> None:
        super().__init__(clients)
        if not 0.0 < alpha <= 1e6:  # beyond it the shares are equal anyway, and their sum would overflow
            raise UsageError(f"`--partition.alpha` is {alpha}; it must be positive and at most 1e6, such as 0.3")
        if groups is not None and not 1 <= groups <= clients:
            raise UsageError(
                f"`--partition.groups` is {groups} with `--partition.clients {clients}`; "
                f"it must be among 1 to {clients}, or null for clients without groups"
            )
        if samples_per_client is not None and samples_per_client < 1:
            raise UsageError(f"`--partition.samples_per_client` is {samples_per_client}; it must be at least 1")
        self.alpha = alpha
        self.groups = groups
        self.samples_per_client = samples_per_client

    def draw_proportions(self, classes: int, generator: np.random.Generator) -> np.ndarray:
        """Draw the label proportions of every client.

        Args:
            classes: Number of classes.
            generator: Source of the draws; it has to be the one of `split` and fresh to repeat those of a partition.

        Returns:
            float64 array (clients, classes), every row of which sums to 1; the rows of a group are equal.
        """
        groups = self.clients if self.groups is None else self.groups
        of_group = generator.dirichlet(np.full(classes, self.alpha), size=groups)
        return of_group[np.minimum(np.arange(self.clients) // (self.clients // groups), groups - 1)]

    def _deal(
        self, labels: np.ndarray, attributes: Mapping[str, np.ndarray], generator: np.random.Generator
    ) -> list[np.ndarray]:
        classes = np.unique(labels)
        proportions = self.draw_proportions(len(classes), generator)
        pools = [generator.permutation(np.flatnonzero(labels == label)).tolist() for label in classes]
        share = self.samples_per_client or len(labels) // self.clients
        if share * self.clients > len(labels):
            raise UsageError(
                f"`--partition.samples_per_client` is {share} for {self.clients} clients, but there are {len(labels)} "
                f"training samples; use at most {len(labels) // self.clients}"
            )
        dealt: list[list[int]] = [[] for _ in range(self.clients)]
        unfilled = list(range(self.clients))
        sums = _running_sums(proportions, pools)
        for which, where in generator.random((self.clients * share, 2)).tolist():
            place = int(which * len(unfilled))
            client = unfilled[place]
            pool = pools[_inverse(sums[client], where)]
            dealt[client].append(pool.pop())
            if not pool:
                sums = _running_sums(proportions, pools)
            if len(dealt[client]) == share:
                unfilled[place] = unfilled[-1]
                unfilled.pop()
        return [np.array(indices, dtype=np.int64) for indices in dealt]


def _running_sums(proportions: np.ndarray, pools: list[list[int]]) -> list[list[float]]:
    """Return each client's running sum over the classes of its proportions, where used-up classes count 0."""
    has_samples = np.array([bool(pool) for pool in pools])
    left = proportions * has_samples
    left[left.sum(axis=1) == 0.0] = has_samples
    return np.cumsum(left, axis=1).tolist()


def _inverse(sums: list[float], where: float) -> int:
    """Return the class at the fraction `where`, in [0, 1), of all mass; it has some mass of its own."""
    found = bisect_right(sums, where * sums[-1])
    return found if found < len(sums) else bisect_left(sums, sums[-1])  # the product was rounded up to the sum
