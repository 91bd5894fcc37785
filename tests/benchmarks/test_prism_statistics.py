"""The statistics of a client's real images: what they cost, and what the cache saves."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest
import torch
from clocks import Seconds
from prism_workload import Blobs
from report import Report

from flgen import VggMoments
from flgen.data.client_data import ClientData

pytestmark = pytest.mark.benchmark

IMAGES = 256
BATCH_SIZE = 64
REPETITIONS = 3


@pytest.fixture(scope="module")
def images() -> ClientData:
    """A client's images, of 32x32."""
    data = Blobs(IMAGES)
    data.setup()
    return data.client_data(0, torch.arange(IMAGES).numpy())


def seconds(loss: VggMoments, images: ClientData) -> Seconds:
    """Return how long a client takes to prepare."""
    began = Seconds.now()
    loss.prepare(images, torch.Generator().manual_seed(0))
    return Seconds.now() - began


def test_taking_the_statistics_of_an_image(images: ClientData, report: Report) -> None:
    loss = VggMoments(weights="random", batch_size=BATCH_SIZE)
    seconds(loss, images)  # draws the network's weights
    taken = [seconds(loss, images) for _ in range(REPETITIONS)]
    report.add(
        "PRISM statistics of a real image",
        1000 * median(one.cpu for one in taken) / IMAGES,
        None,
        "ms",
        f"VGG19-BN with random weights, grey 32x32, batches of {BATCH_SIZE}, float64 sums, 1 thread; processor time, "
        f"median of {REPETITIONS} clients of {IMAGES} images; once in a run",
    )


def test_a_cache_that_has_the_statistics_over_one_that_has_not(
    images: ClientData, report: Report, tmp_path: Path
) -> None:
    seconds(VggMoments(weights="random", batch_size=BATCH_SIZE), images)  # warms up
    misses, hits = [], []
    for repetition in range(REPETITIONS):
        loss = VggMoments(weights="random", batch_size=BATCH_SIZE, cache_dir=str(tmp_path / str(repetition)))
        loss.load()
        loss.feature_recipe()  # the digest of the weights, once in a run and not once for each client
        misses.append(seconds(loss, images))
        hits.append(seconds(loss, images))
    miss, hit = (median(one.cpu for one in times) for times in (misses, hits))
    report.add(
        "PRISM statistics of a client out of the cache, over taking them",
        100 * hit / miss,
        None,
        "%",
        f"VGG19-BN with random weights, {IMAGES} grey images of 32x32, 1 thread; processor time, median of "
        f"{REPETITIONS} clients in turns: {1000 * hit:.0f} ms beside {1000 * miss:.0f} ms, which put them there",
    )
