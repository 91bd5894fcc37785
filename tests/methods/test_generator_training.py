"""What methods share that train a generator of images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from flgen import IID, Digits, KernelMMD, SpokenDigits
from flgen.data.image_set import to_bytes
from flgen.errors import UsageError
from flgen.federation.clients import Client
from flgen.job import prepare_job
from flgen.methods.generator_training import check_decays, checked_generator, draw_images, real_batches


class Echo(nn.Module):
    """Draws its own noise, so that images say which it was; counts the batches."""

    channels, image_size = 1, 8

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return torch.rand(count, 1, 8, 8, generator=generator) * 2 - 1

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(noise))
        return noise


@pytest.mark.parametrize(("count", "batches"), [(1, 1), (128, 1), (130, 2)])
def test_images_are_drawn_in_whole_batches_of_128(count: int, batches: int) -> None:
    generator = Echo()
    drawn = draw_images(generator, count, torch.Generator().manual_seed(1))
    assert generator.batches == [128] * batches
    assert drawn.shape == (count, 1, 8, 8)
    z = torch.Generator().manual_seed(1)
    assert torch.equal(drawn, to_bytes(torch.cat([generator.noise(128, z) for _ in range(batches)]))[:count])


class WithoutReals(KernelMMD):
    """A loss that needs no real images in a step."""

    def __init__(self) -> None:
        super().__init__()
        self.real_batch = 0


@pytest.fixture(scope="module")
def client() -> Client:
    from flgen import FedAvg, SmallCNN

    data = Digits()
    data.setup()
    job = prepare_job(FedAvg(), SmallCNN(image_size=8, width=4), data, IID(clients=2), 3, 1, None)
    return job.federation.clients[1]


def test_a_loss_gets_the_real_images_that_it_asks_for(client: Client) -> None:
    batches = list(real_batches(KernelMMD(real_batch=6), client, 4, t=2))
    assert [batch.shape for batch in batches if batch is not None] == [(6, 1, 8, 8)] * 4
    again = client.data.batches(6, client.random("reals", 2), steps=4)
    assert all(torch.equal(batch, other) for batch, (other, _) in zip(batches, again, strict=True) if batch is not None)


def test_a_loss_that_asks_for_none_gets_none(client: Client) -> None:
    batches = real_batches(WithoutReals(), client, 4, t=2)
    assert [next(batches) for _ in range(4)] == [None] * 4


def test_what_is_no_image_cannot_be_drawn() -> None:
    model: Any = Echo()
    with pytest.raises(UsageError, match=r"--method Some draws images, but --data SpokenDigits holds .*: give images"):
        checked_generator(model, SpokenDigits("nowhere"), "Some", ["noise"], "another")
    with pytest.raises(UsageError, match=r"--model Echo cannot be trained by Some \(it has no loss, weights\): use X"):
        checked_generator(model, Digits(), "Some", ["noise", "loss", "weights"], "X")


@pytest.mark.parametrize(("given", "shown"), [((0.5, -0.1), "0.5, -0.1"), (1.0, "1"), (float("nan"), "nan")])
def test_decays_lie_below_1(given: Any, shown: str) -> None:
    check_decays(betas=(0.0, 0.999), momentum=0.0)
    with pytest.raises(UsageError, match=f"--method.momentum is {shown}: give 0 or more, below 1"):
        check_decays(momentum=given)
