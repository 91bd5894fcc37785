"""The random projection: sigmoid(A w), A from a seed."""

from __future__ import annotations

import pytest
import torch

from flgen.errors import UsageError
from flgen.synthesis.random_latents import RandomProjection


def drawn(w: torch.Tensor, **options: int) -> torch.Tensor:
    generator = RandomProjection(**options)  # type: ignore[arg-type]
    generator.load("cpu")
    return generator.synthesize(w)


def test_its_sizes_are_those_of_the_specification_unless_options_say_otherwise() -> None:
    assert (RandomProjection().latent_dim, RandomProjection().image_shape) == (8, (3, 8, 8))
    other = RandomProjection(latent_dim=5, channels=1, image_size=12)
    assert (other.latent_dim, other.image_shape, other.prior) == (5, (1, 12, 12), "gaussian")


def test_an_image_is_the_sigmoid_of_a_linear_map() -> None:
    images = drawn(torch.cat([torch.zeros(1, 8), torch.eye(8)]))
    assert torch.equal(images[0], torch.full((3, 8, 8), 0.5))
    A = torch.logit(images[1:]).flatten(1).T  # its columns
    w = torch.linspace(-0.3, 0.4, 8)
    torch.testing.assert_close(torch.logit(drawn(w[None]))[0].flatten(), A @ w, rtol=1e-4, atol=1e-4)


def test_the_matrix_follows_from_the_seed_alone() -> None:
    w = torch.ones(1, 8)
    first = drawn(w)
    torch.manual_seed(5)
    assert torch.equal(drawn(w), first)
    assert not torch.equal(drawn(w, seed=1), first)


def test_numbers_below_1_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^--method.generator.latent_dim is 0: give 1 or more"):
        RandomProjection(latent_dim=0)
