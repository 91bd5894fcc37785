"""Local test sets: every client is tested on classes in the proportions in which it trains on them."""

from __future__ import annotations

from collections.abc import Sequence

from flgen.deferred import TYPE_CHECKING, deferred_module

if TYPE_CHECKING:
    import numpy as np
else:
    np = deferred_module("numpy")


def local_test_rows(
    label_counts: np.ndarray, test_labels: np.ndarray, generators: Sequence[np.random.Generator]
) -> list[np.ndarray]:
    """Draw each client's test images from the common ones, with the label distribution of its training images.

    A client k with n_k samples, n_kc of them of class c, gets ceil(n_kc / n_k * ceil(N / K)) of the N test images,
    all of class c and none twice, or all images of that class if there are fewer. Clients draw independently, so
    their test sets overlap; a client without samples gets none.

    Args:
        label_counts: Training samples of each client and class, int64 array (K, classes).
        test_labels: Labels of the test images, int64 array (N,).
        generators: One source of draws per client.

    Returns:
        Rows of the test images, ascending, one int64 array per client.

    Source: DisPFL, section 8.1.
    """
    clients, classes = label_counts.shape
    of_class = [np.flatnonzero(test_labels == label) for label in range(classes)]
    share = _divided_up(len(test_labels), clients)
    chosen = []
    for counts, generator in zip(label_counts.tolist(), generators, strict=True):
        samples = sum(counts)
        rows = [np.empty(0, dtype=np.int64)]
        for members, count in zip(of_class, counts, strict=True):
            if count:
                wanted = min(_divided_up(count * share, samples), len(members))
                rows.append(generator.choice(members, wanted, replace=False, shuffle=False))
        chosen.append(np.sort(np.concatenate(rows)))
    return chosen


def _divided_up(dividend: int, divisor: int) -> int:
    """Return ceil(dividend / divisor) of integers, exactly."""
    return -(-dividend // divisor)
